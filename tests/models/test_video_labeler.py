"""VideoLabeler: the labels of each frame of a video or of a list of images."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import selfment
from helpers.landmark_cases import QUIET, assert_same
from helpers.videos import SIZE, av, disc, disc_mask, video
from selfment import CutOptions, LandmarkOptions, PseudoLabeler, VideoLabeler, WindowOptions
from selfment.backbones import ModuleBackbone
from selfment.core.spill import SpilledFrames, spilled_frames
from selfment.images.video import VideoError
from selfment.methods import METHODS, MultiObject, Selfment
from selfment.models import transfers


def labeler_of(window: int = 5, **options: object) -> VideoLabeler:
    return VideoLabeler(PseudoLabeler(size=128, batch_size=3, **options), WindowOptions(window, 1))


def test_each_frame_has_its_label_which_can_be_saved(tmp_path: Path) -> None:
    pictures = [Image.fromarray(disc(index)) for index in range(12)]
    model = PseudoLabeler(size=256)
    labels = list(VideoLabeler(model)(pictures))
    assert len(labels) == 12
    for index, label in enumerate(labels):
        label.save(tmp_path / "mask.png")
        mask = np.asarray(Image.open(tmp_path / "mask.png"))
        assert mask.shape == SIZE[::-1]
        print((mask > 0).mean(), disc_mask(index).mean())
        both, either = (mask > 0) & disc_mask(index), (mask > 0) | disc_mask(index)
        assert both.sum() / either.sum() > 0.6
        assert np.array_equal(label.image, pictures[index])


def test_a_window_has_the_labels_of_its_joint_cut() -> None:
    pictures = [disc(index) for index in range(4)]
    model = PseudoLabeler(size=128, batch_size=3, method=Selfment(CutOptions(tau=0.3)))
    labels = list(VideoLabeler(model, WindowOptions(4))(pictures))
    pixels = torch.stack([model.preprocess(Image.fromarray(frame)) for frame in pictures])
    rows, grid = model.backbone(pixels), model.backbone.grid(128)
    expected = selfment.joint_label(rows, grid, tau=0.3, orient="corners")
    for index, label in enumerate(labels):
        assert torch.equal(label.mask, expected.mask[index])
        assert torch.equal(label.fiedler, expected.fiedler[index])
        assert (label.eigenvalue, label.tau) == (expected.eigenvalue, 0.3)


def test_a_video_is_the_same_as_its_frames(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.mp4", draw=disc)
    with av().open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    ours, theirs = list(labeler_of()(path)), list(labeler_of()(frames))
    assert len(ours) == len(theirs) == 12
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(ours, theirs, strict=True))
    path.write_bytes(b"nothing")
    with pytest.raises(VideoError, match=r"cannot read .*clip\.mp4: "):
        list(labeler_of()(path))


def test_frames_keep_their_aspect_ratio_also_where_it_changes() -> None:
    frames = [disc(0), disc(1), disc(2, (64, 96)), disc(3)]
    model = PseudoLabeler(size=192, keep_aspect=True)
    labels = list(VideoLabeler(model)(frames))
    assert [label.mask.shape for label in labels] == [(8, 12), (8, 12), (12, 8), (8, 12)]
    pixels = [model.preprocess(Image.fromarray(frame))[None] for frame in frames]
    rows = [model.backbone(frame)[0] for frame in pixels]
    grids = [model.backbone.grid(*frame.shape[-2:]) for frame in pixels]
    expected = selfment.joint_label(rows, grids, orient="corners")
    assert all(torch.equal(a.mask, b) for a, b in zip(labels, expected.mask, strict=True))


def test_frames_are_read_as_far_as_labels_need_them() -> None:
    read = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal read
        while True:
            read += 1
            yield disc(read)

    labels = labeler_of(window=5)(endless())
    for index in range(40):
        next(labels)
        # The rest of the window, and of the batch that it ends in.
        assert read - index <= 5 + 3


@pytest.mark.parametrize("method", [MultiObject(2), *sorted(set(METHODS) - {"selfment"})])
def test_other_methods_do_not_label_videos(method: object) -> None:
    backbone = "vit_small_patch16_224.dino"
    model = PseudoLabeler(backbone, 224, method=method)
    name = model.method.name
    sentence = f"which only the method 'selfment' makes: got the method {name!r}"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        VideoLabeler(model)


def test_a_backbone_of_ones_own_and_its_patches_that_are_not_finite() -> None:
    class Bad(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features = nn.functional.avg_pool2d(pixels, 16)
            return torch.where(features > 0.9, torch.nan, features)

    frames = [np.full((64, 64, 3), level, np.uint8) for level in (40, 90, 120)]
    own = ModuleBackbone(Bad(), patch_size=16, mean=(0, 0, 0), std=(1, 1, 1))
    model = PseudoLabeler(own, 64)
    assert len(list(VideoLabeler(model)(frames))) == 3
    with pytest.raises(ValueError, match="finite"):
        list(VideoLabeler(model)([*frames, np.full((64, 64, 3), 255, np.uint8)]))


def test_settings_are_those_of_the_labeler_and_the_windows() -> None:
    labeler = labeler_of()
    windows = {"window": 5, "overlap": 1}
    assert labeler.settings == {**labeler.labeler.settings, "windows": windows}


@QUIET
@pytest.mark.parametrize("landmarks", [100, 4 * 64])
def test_landmarks_cut_all_frames_together(landmarks: int) -> None:
    pictures = [disc(index) for index in range(4)]
    model = PseudoLabeler(size=128, batch_size=3, method=Selfment(CutOptions(tau=0.3)))
    pixels = torch.stack([model.preprocess(Image.fromarray(frame)) for frame in pictures])
    rows, grid = model.backbone(pixels), model.backbone.grid(128)
    options = {"tau": 0.3, "orient": "corners", "landmarks": landmarks, "landmark_seed": 5}
    expected = selfment.joint_label(rows, grid, **options)
    found = list(VideoLabeler(model, LandmarkOptions(landmarks, 5))(pictures))
    assert len(found) == 4
    for index, label in enumerate(found):
        assert torch.equal(label.mask, expected.mask[index])
        assert torch.equal(label.fiedler, expected.fiedler[index])
        assert (label.eigenvalue, label.gap) == (expected.eigenvalue, expected.gap)
        assert np.array_equal(label.image, pictures[index])


def test_one_cut_of_frames_of_different_aspect_ratios() -> None:
    frames = [disc(0), disc(1), disc(2, (64, 96)), disc(3)]
    model = PseudoLabeler(size=192, keep_aspect=True, batch_size=2)
    labels = list(VideoLabeler(model, LandmarkOptions(200))(frames))
    pixels = [model.preprocess(Image.fromarray(frame))[None] for frame in frames]
    rows = [model.backbone(frame)[0] for frame in pixels]
    grids = [(8, 12), (8, 12), (12, 8), (8, 12)]
    expected = selfment.joint_label(rows, grids, orient="corners", landmarks=200)
    assert all(torch.equal(a.mask, b) for a, b in zip(labels, expected.mask, strict=True))


class Device:
    """Stands for a CUDA device, in the memory of the CPU: notes what is copied to it."""

    name = torch.device("cuda", 0)

    def __init__(self, patch: pytest.MonkeyPatch, full_after: int | None = None) -> None:
        self.copies: list[torch.Size] = []
        self.alive = self.most = self.done = 0
        self._full_after = full_after
        patch.setattr(transfers, "upload", self._upload)
        patch.setattr(torch.cuda, "current_stream", lambda _: self)

    def _upload(self, rows: torch.Tensor, device: torch.device) -> torch.Tensor:
        if device != self.name:
            return rows
        if len(self.copies) == self._full_after:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        self.copies.append(rows.shape)
        copied = rows.clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(copied.untyped_storage(), self._gone)
        return copied

    def _gone(self) -> None:
        self.alive -= 1

    @property
    def waiting(self) -> int:
        """Copies whose work may not be done."""
        return len(self.copies) - self.done

    def record_event(self) -> Any:
        return SimpleNamespace(synchronize=partial(setattr, self, "done", len(self.copies)))


def spilled(labeler: VideoLabeler, frames: SpilledFrames, count: int) -> None:
    pixels = [labeler.labeler.preprocess(Image.fromarray(disc(index))) for index in range(count)]
    labeler.spill(torch.stack(pixels).split(3), frames)


@QUIET
@pytest.mark.parametrize("landmarks", [100, 10_000])
def test_a_cut_is_made_on_the_device_of_the_features_frame_by_frame(
    landmarks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeler = VideoLabeler(PseudoLabeler(size=128), LandmarkOptions(landmarks))
    with spilled_frames() as frames:
        spilled(labeler, frames, 7)
        assert frames.device == torch.device("cpu")
        expected = labeler.label_spilled(frames)
        device = Device(monkeypatch)
        frames.device = device.name
        found = labeler.label_spilled(frames)
    assert_same(found, expected)
    assert set(device.copies) == {(64, 384)}
    # One for the form of the frames, and all of them in each pass over the features; of these the
    # exact cut has one.
    passes = 4 + int(found.ipo_iters) if landmarks == 100 else 1
    assert len(device.copies) == 1 + 7 * passes
    assert device.alive == 0
    if landmarks == 100:
        assert device.most <= 3


def test_copies_to_a_device_do_not_run_ahead_of_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    device, rows = Device(monkeypatch), torch.zeros(5, 3)
    for _ in transfers.uploads([rows] * 9, device.name):
        assert device.waiting <= 2
    assert len(device.copies) == 9


@QUIET
def test_a_cut_that_does_not_fit_the_device_is_made_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labeler = VideoLabeler(PseudoLabeler(size=128), LandmarkOptions(100))
    with spilled_frames() as frames:
        spilled(labeler, frames, 7)
        expected = labeler.label_spilled(frames)
        for full_after in (0, 12, 7 * 4 + 3):  # at first, in the passes of the cut, and in IPO
            device = Device(monkeypatch, full_after)
            frames.device = device.name
            said = "^the cut was made on the CPU, as cuda:0 has too little memory for it$"
            with pytest.warns(RuntimeWarning, match=said):
                assert_same(labeler.label_spilled(frames), expected)
            assert device.alive == 0


@QUIET
def test_frames_that_are_read_once_or_change_cannot_be_cut_together() -> None:
    labeler = VideoLabeler(PseudoLabeler(size=64), LandmarkOptions(30))
    pictures = [disc(index) for index in range(4)]
    with pytest.raises(TypeError, match="such as a list, not an iterator: got list_iterator"):
        next(labeler(iter(pictures)))

    class Changing:
        reads: Iterator[int]

        def __iter__(self) -> Iterator[np.ndarray]:
            return iter([*pictures, *pictures][: next(self.reads)])

    for later, sentence in ((3, "4 frames, then 3"), (5, "4 frames, then more")):
        Changing.reads = iter((4, later))
        with pytest.raises(ValueError, match=f"has changed while it was read: {sentence}"):
            list(labeler(Changing()))


def test_a_cut_is_of_the_kind_that_was_chosen() -> None:
    model = PseudoLabeler(size=64)
    pixels = model.preprocess(Image.fromarray(disc(0)))[None]
    labeler = VideoLabeler(model, LandmarkOptions(30))
    with pytest.raises(ValueError, match="`cuts` must be WindowOptions to label windows: got Land"):
        next(labeler.label_batches([pixels]))
    with spilled_frames() as frames:
        labeler.spill([pixels], frames)
        with pytest.raises(ValueError, match="must be LandmarkOptions for one cut: got WindowOp"):
            VideoLabeler(model).label_spilled(frames)
    weighted = PseudoLabeler(size=64, method=Selfment(CutOptions(graph="weighted")))
    with pytest.raises(ValueError, match=r"with a weighted graph, .*: got 30"):
        VideoLabeler(weighted, LandmarkOptions(30))
    assert labeler.settings["landmarks"] == {"landmarks": 30, "landmark_seed": 0}
    assert "windows" not in labeler.settings
