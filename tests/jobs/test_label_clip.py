"""Videos that are labelled by one cut through all frames: masks, records, failures, memory."""

from __future__ import annotations

import re
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import selfment
from helpers import mortal, processes
from helpers.commands import call
from helpers.pictures import files_in, picture, records
from helpers.videos import decoded, disc, disc_mask, video
from selfment import LandmarkOptions, PseudoLabeler, VideoLabeler
from selfment.core.spill import SpilledFrames
from selfment.images.video import VideoReader
from selfment.jobs import label_video
from selfment.jobs.video_labels import ClipSummary

pytest.importorskip("av")

FRAMES = [f"frames/clip/{index:06}.png" for index in range(12)]
ESTIMATED = ["eigenvalue", "gap", "residual", "confidence", "angle", "turn", "changing"]


def label(capsys: Any, *arguments: object) -> tuple[int, str]:
    """Labels frames of 12 x 12 patches, by 600 landmarks unless the arguments say otherwise."""
    options = () if "--landmarks" in arguments else ("--landmarks", 600)
    code, _, err = call(capsys, "label", *arguments, "--size", 192, *options)
    return code, err


def clip(path: Path, **options: Any) -> Path:
    return video(path, draw=disc, **options)


def masks_in(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) > 0 for path in sorted(folder.iterdir())]


def test_a_video_has_the_files_of_windows_and_the_record_of_one_cut(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "labels"
    code, err = label(capsys, source, "--out", out, "--overlay")
    assert code == 0
    assert "1 labelled, 0 already done, 0 failed" in err
    assert files_in(out) == ["clip.mp4", *FRAMES, "labels.jsonl", "overlays/clip.mp4"]
    shown, times = decoded(out / "clip.mp4")
    assert times == pytest.approx([index / 10 for index in range(12)])
    drawn = decoded(out / "overlays/clip.mp4")[0]
    for index, mask in enumerate(masks_in(out / "frames/clip")):
        truth = disc_mask(index)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.6
        assert ((shown[index][..., 0] > 127) == mask).mean() > 0.99
        assert drawn[index][truth & mask].mean() > drawn[index][~truth & ~mask].mean() + 30
    row = records(out)["clip.mp4"]
    assert (row["name"], row["mask"], row["mask_frames"]) == ("clip.mp4",) * 2 + ("frames/clip",)
    assert (row["frames"], row["fps"], row["landmarks"]) == (12, 10, 600)
    assert (row["rejected"], row["rejected_frames"], row["error"]) == (False, 0, None)
    assert row["estimated"] == ESTIMATED
    assert row["notes"] == []
    assert not {"windows", "flips", "agreement"} & set(row)


@pytest.mark.parametrize("landmarks", [600, 12 * 144])
def test_masks_and_numbers_are_those_of_the_joint_cut(tmp_path, landmarks):
    """Estimated from fewer landmarks than patches, and exact, to the bit, from as many."""
    source = clip(tmp_path / "clip.mp4")
    model = PseudoLabeler(size=192, batch_size=5)
    labeler = VideoLabeler(model, LandmarkOptions(landmarks, 3))
    summary = label_video(
        source, tmp_path / "m.mp4", labeler, mask_frames=tmp_path / "m", progress=False
    )
    with VideoReader(source) as reader:
        pixels = torch.stack([model.preprocess(image) for _, image in reader])
    features, grid = model.backbone(pixels), model.backbone.grid(192)
    exact = landmarks == 12 * 144
    options: dict[str, Any] = {} if exact else {"landmarks": landmarks, "landmark_seed": 3}
    expected = selfment.joint_label(features, grid, orient="corners", **options)
    assert isinstance(summary, ClipSummary)
    numbers = ("eigenvalue", "gap", "residual", "separation", "tau", "confidence", "ipo_iters")
    for name in (*numbers, *(() if exact else ("angle", "turn", "changing", "side_margin"))):
        assert getattr(summary, name) == getattr(expected, name), name
    assert summary.landmarks == (None if exact else 600)
    assert summary.estimated == ([] if exact else ESTIMATED)
    assert (summary.angle is None, summary.side_margin is None) == (exact, exact)
    assert summary.foreground == pytest.approx(float(expected.mask.float().mean()))
    found = masks_in(tmp_path / "m")
    for index, (mask, label) in enumerate(zip(found, labeler(source), strict=True)):
        assert torch.equal(label.mask, expected.mask[index])
        assert torch.equal(label.fiedler, expected.fiedler[index])
        assert np.array_equal(mask, np.asarray(label.at_image_size()) > 0)


def test_other_landmarks_label_the_video_again_and_not_the_image(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    clip(folder / "clip.mp4")
    picture(folder / "photo.png")
    assert "2 labelled, 0 already done" in label(capsys, folder, "--out", out)[1]
    assert "0 labelled, 2 already done" in label(capsys, folder, "--out", out)[1]
    for options in (["--landmark-seed", 1], ["--landmarks", 601]):
        code, err = label(capsys, folder, "--out", out, *options)
        assert code == 0
        assert "the settings have changed: 1 image to label again" in err
        assert "1 labelled, 1 already done" in err
    assert records(out)["clip.mp4"]["landmarks"] == 601
    _, _, err = call(capsys, "label", folder, "--out", out, "--size", 192)
    assert "1 labelled, 1 already done" in err
    assert records(out)["clip.mp4"]["windows"] == 2


def test_what_the_landmarks_do_not_determine_is_said_and_recorded(tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    clip(folder / "a.mp4")
    video(folder / "b.mp4", times=range(6), draw=lambda *_: np.full((64, 96, 3), 90, np.uint8))
    monkeypatch.setattr("selfment.core.landmarks.CLOSE", 0.9)
    code, err = label(capsys, folder, "--out", out, "--min-confidence", 0.25)
    assert code == 0
    found = records(out)
    for name, sentence in (
        ("a.mp4", r"the other side .* as the foreground: side_margin is 0\.\d+"),
        ("b.mp4", "all patches have the same landmark neighbours, and are not cut"),
    ):
        assert re.fullmatch(sentence, found[name]["notes"][0])
        assert f"{name}: {found[name]['notes'][0]}\n" in err
    assert "RuntimeWarning" not in err
    assert (found["b.mp4"]["rejected"], found["b.mp4"]["rejected_frames"]) == (True, 6)
    assert not np.any(masks_in(out / "frames/b"))
    assert not found["a.mp4"]["rejected"]


def test_a_video_that_fails_leaves_nothing_and_the_run_goes_on(tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        clip(folder / name, times=range(6))
    label_spilled = VideoLabeler.label_spilled

    def failing(self: VideoLabeler, frames: SpilledFrames) -> Any:
        monkeypatch.setattr(VideoLabeler, "label_spilled", label_spilled)
        assert len(frames) == 6
        raise MemoryError("not enough memory for the graph")

    monkeypatch.setattr(VideoLabeler, "label_spilled", failing)
    code, err = label(capsys, folder, "--out", out, "--no-frames")
    assert code == 1
    assert f"cannot label {folder}/a.mp4: not enough memory for the graph" in err
    assert "1 labelled, 0 already done, 1 failed" in err
    assert files_in(out) == ["b.mp4", "labels.jsonl"]
    assert not list(out.rglob(".*"))


def test_a_disk_without_room_for_the_features(tmp_path, capsys, monkeypatch):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "out"
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("selfment.core.spill.shutil.disk_usage", lambda _: usage)
    code, err = label(capsys, source, "--out", out)
    assert code == 1
    assert f"cannot label {source}: No space left on device (the features of 12 frames take" in err
    assert f"bytes, 1,000,000 are free): {out}\n" in err
    assert files_in(out) == ["labels.jsonl"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_the_features_of_a_killed_run_are_gone(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "out"
    arguments = ("label", source, "--out", out, "--size", 192, "--landmarks", 600)
    where = "selfment.models.video:VideoLabeler.label_spilled"
    command = mortal.command(tmp_path, where, 1, *arguments)
    assert processes.run([sys.executable, *command]).returncode == -signal.SIGKILL
    left = [path for path in out.rglob("*") if path.is_file() and path.name != "labels.jsonl"]
    assert sum(path.stat().st_size for path in left) < 10_000  # a video that is empty so far
    assert "1 labelled" in label(capsys, source, "--out", out)[1]
    assert set(files_in(out)) > {"clip.mp4", *FRAMES}


class Alive:
    """Counts objects that exist at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def add(self, thing: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(thing, self._gone)

    def _gone(self) -> None:
        self.now -= 1


def test_features_and_frames_are_not_kept_in_memory(tmp_path, monkeypatch):
    pictures, pixels, features = Alive(), Alive(), Alive()

    class Watching(PseudoLabeler):
        def preprocess(self, image: Image.Image) -> Tensor:
            made = super().preprocess(image)
            pixels.add(made.untyped_storage())
            return made

    def upright(self: VideoReader, frame: Any) -> Image.Image:
        pictures.add(made := original(self, frame))
        return made

    def add(self: SpilledFrames, rows: Tensor, grid: Any) -> None:
        features.add(rows)
        write(self, rows, grid)

    original, write = VideoReader._upright, SpilledFrames.add
    monkeypatch.setattr(VideoReader, "_upright", upright)
    monkeypatch.setattr(SpilledFrames, "add", add)
    source = clip(tmp_path / "in.mp4", times=range(120))
    labeler = VideoLabeler(Watching(size=96, batch_size=4), LandmarkOptions(300))
    summary = label_video(
        source, tmp_path / "m.mp4", labeler, overlay=tmp_path / "o.mp4", progress=False
    )
    assert summary.frames == 120
    assert features.most <= 2 * 4
    # A batch that was in use, the one after it, and one that is being read; one frame of an earlier
    # one may still be drawn.
    assert pixels.most <= 3 * 4
    assert pictures.most <= 3 * 4 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--landmarks", 1], "`landmarks` must be an integer >= 2: got 1"),
        (["--landmark-seed", -1], "`landmark_seed` must be an integer from 0 to 2^63 - 1: got -1"),
        (["--window", 5], "`window` must be left alone with `landmarks`, which cut all frames"),
        (["--overlap", 0], "`overlap` must be left alone with `landmarks`, which cut all frames"),
        (
            ["--graph", "weighted"],
            "must be None with a weighted graph, also for videos: got 600 for clip.mp4",
        ),
        (["--objects", 3], "the method 'selfment' makes: got the method 'objects' for clip.mp4"),
    ],
)
def test_what_does_not_go_with_landmarks_is_said_first(tmp_path, capsys, options, message):
    source = clip(tmp_path / "clip.mp4", times=range(3))
    code, err = label(capsys, source, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_seed_without_landmarks_is_an_error(tmp_path, capsys):
    source = clip(tmp_path / "clip.mp4", times=range(3))
    code, _, err = call(capsys, "label", source, "--out", tmp_path / "out", "--landmark-seed", 4)
    assert code == 2
    assert "`landmark_seed` must be left alone without `landmarks`: got 4" in err
