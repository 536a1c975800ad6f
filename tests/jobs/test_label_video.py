"""Videos that are labelled: masks, folders of frames, records, and runs that fail or go on."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from helpers.commands import call
from helpers.heads import a_head
from helpers.pictures import files_in, picture, records
from helpers.videos import SIZE, decoded, disc, disc_mask, turned, video
from selfment import LandmarkOptions, PseudoLabeler, Segmenter, VideoLabeler, WindowOptions
from selfment.evaluation import evaluate
from selfment.jobs import find_inputs, label_images, label_video
from selfment.jobs.video_labels import WindowSummary
from selfment.models.head import HeadInfo, save_head

av = pytest.importorskip("av")

FRAMES = [f"frames/clip/{index:06}.png" for index in range(12)]


def label(capsys: Any, *arguments: object) -> tuple[int, str]:
    code, _, err = call(capsys, "label", *arguments, "--size", 256, "--window", 5)
    return code, err


def clip(path: Path, **options: Any) -> Path:
    return video(path, draw=disc, **options)


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / (mask | truth).sum())


def as_mask(frame: np.ndarray) -> np.ndarray:
    return frame[..., 0] > 127


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def test_a_video_has_a_mask_video_masks_of_its_frames_and_a_record(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "labels"
    code, err = label(capsys, source, "--out", out, "--overlay")
    assert code == 0
    assert "1 labelled, 0 already done, 0 failed" in err
    assert files_in(out) == ["clip.mp4", *FRAMES, "labels.jsonl", "overlays/clip.mp4"]
    shown, times = decoded(out / "clip.mp4")
    assert times == pytest.approx([index / 10 for index in range(12)])
    for index, (name, frame) in enumerate(zip(FRAMES, shown, strict=True)):
        mask = pixels_of(out / name)
        assert set(np.unique(mask)) == {0, 255}
        assert iou(mask > 0, disc_mask(index)) > 0.6
        assert (as_mask(frame) == (mask > 0)).mean() > 0.99
    ground = decoded(out / "overlays/clip.mp4")[0][0][:8].mean((0, 1))
    assert np.abs(ground - 0.65 * 70).max() < 10  # the frame, darkened
    row = records(out)["clip.mp4"]
    assert (row["name"], row["mask"], row["mask_frames"]) == ("clip.mp4",) * 2 + ("frames/clip",)
    assert (row["frames"], row["fps"], row["windows"], row["flips"]) == (12, 10, 3, 0)
    assert row["foreground"] == pytest.approx(disc_mask(0).mean(), abs=0.04)
    assert row["agreement"] > 0.95
    assert (row["rejected"], row["rejected_frames"], row["error"]) == (False, 0, None)


def test_the_masks_are_those_of_the_video_labeler(tmp_path):
    source = clip(tmp_path / "clip.mp4")
    labeler = VideoLabeler(PseudoLabeler(size=128, batch_size=3), WindowOptions(4, 1))
    summary = label_video(
        source, tmp_path / "m.mp4", labeler, mask_frames=tmp_path / "m", progress=False
    )
    assert isinstance(summary, WindowSummary)
    assert (summary.frames, summary.size, summary.rate, summary.windows) == (12, SIZE, 10, 4)
    for index, expected in enumerate(labeler(source)):
        found = Image.open(tmp_path / f"m/{index:06}.png")
        assert np.array_equal(found, expected.at_image_size())


def test_a_folder_of_both_kinds_goes_on_after_what_is_broken(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    clip(folder / "sub/clip.MOV")
    picture(folder / "sub/clip.png")
    whole = clip(tmp_path / "whole.mp4", times=range(40))
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / "broken.mkv").write_bytes(b"nothing")
    code, err = label(capsys, folder, "--out", out)
    assert code == 1
    assert f"cannot read {folder}/broken.mkv: " in err
    assert f"cannot read {folder}/cut.mp4: " in err
    assert "2 labelled, 0 already done, 2 failed" in err
    frames = [f"frames/sub/clip/{index:06}.png" for index in range(12)]
    assert files_in(out) == sorted([*frames, "labels.jsonl", "sub/clip.mp4", "sub/clip.png"])
    assert not list(out.rglob(".*"))
    truth = tmp_path / "truth/sub/clip.png"
    truth.parent.mkdir(parents=True)
    truth.write_bytes((out / "sub/clip.png").read_bytes())
    scored = evaluate(out, tmp_path / "truth", protocol="paper", progress=False)
    assert [image.name for image in scored.images] == ["sub/clip"]
    (folder / "cut.mp4").unlink()
    whole.rename(folder / "broken.mkv")
    code, err = label(capsys, folder, "--out", out)
    assert code == 0
    assert "1 labelled, 2 already done, 0 failed" in err
    assert len(decoded(out / "broken.mp4")[0]) == 40


def test_other_windows_label_the_video_again_and_not_the_image(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    clip(folder / "clip.mp4")
    picture(folder / "photo.png")
    assert "2 labelled, 0 already done" in label(capsys, folder, "--out", out)[1]
    assert "0 labelled, 2 already done" in label(capsys, folder, "--out", out)[1]
    _, err = label(capsys, folder, "--out", out, "--overlap", 3, "--no-frames")
    assert "1 labelled, 1 already done" in err
    assert files_in(out) == ["clip.mp4", "labels.jsonl", "photo.png"]
    assert records(out)["clip.mp4"]["windows"] == 5
    _, err = label(capsys, folder, "--out", out, "--overlap", 3)
    assert "1 labelled, 1 already done" in err
    # A frame that is lost is noticed, and so is one that a power failure has left empty.
    (out / FRAMES[3]).unlink()
    assert "1 labelled" in label(capsys, folder, "--out", out, "--overlap", 3)[1]
    (out / FRAMES[3]).write_bytes(b"")
    assert "1 labelled" in label(capsys, folder, "--out", out, "--overlap", 3)[1]
    assert "0 labelled" in label(capsys, folder, "--out", out, "--overlap", 3)[1]
    # Frames that are not wanted stay as long as they are the same result.
    assert "0 labelled" in label(capsys, folder, "--out", out, "--overlap", 3, "--no-frames")[1]
    assert (out / FRAMES[11]).exists()


@pytest.mark.parametrize("cuts", [WindowOptions(3), LandmarkOptions(200)])
def test_one_of_so_many_frames_is_labelled(tmp_path, capsys, cuts):
    source, out = clip(tmp_path / "clip.mp4", times=range(0, 44, 4)), tmp_path / "labels"
    options = ["--landmarks", 200] if isinstance(cuts, LandmarkOptions) else ["--window", 3]
    command = ["label", source, "--out", out, "--size", 128, *options]
    assert "1 labelled" in call(capsys, *command, "--overlay", "--every", 3)[2]
    names = [f"frames/clip/{index:06}.png" for index in (0, 3, 6, 9)]
    assert files_in(out) == ["clip.mp4", *names, "labels.jsonl", "overlays/clip.mp4"]
    row = records(out)["clip.mp4"]
    assert (row["frames"], row["every"]) == (4, 3)
    with av.open(str(source)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    found = VideoLabeler(PseudoLabeler(size=128), cuts)(pictures[::3])
    for name, label in zip(names, found, strict=True):
        label.save(tmp_path / "mask.png")
        assert np.array_equal(pixels_of(out / name), pixels_of(tmp_path / "mask.png"))
    for file in ("clip.mp4", "overlays/clip.mp4"):
        assert decoded(out / file)[1] == pytest.approx([0, 1.2, 2.4, 3.6])
    assert "1 already done" in call(capsys, *command, "--overlay", "--every", 3)[2]
    # A video of fewer frames has one of them, and files of other frames go.
    assert "1 labelled" in call(capsys, *command, "--every", 11)[2]
    assert files_in(out) == ["clip.mp4", names[0], "labels.jsonl"]
    assert records(out)["clip.mp4"]["frames"] == 1


def test_a_run_that_is_interrupted_leaves_no_half_result(tmp_path, capsys, monkeypatch):
    source, out = clip(tmp_path / "clip.mp4", times=range(30)), tmp_path / "out"
    label_batches = VideoLabeler.label_batches

    def interrupted(self: VideoLabeler, batches: Any) -> Any:
        for index, window in enumerate(label_batches(self, batches)):
            if index == 3:
                raise KeyboardInterrupt
            yield window

    with monkeypatch.context() as patch:
        patch.setattr(VideoLabeler, "label_batches", interrupted)
        code, _ = label(capsys, source, "--out", out, "--overlay")
        assert code == 130
    assert [path for path in out.rglob("*") if path.is_file()] == [out / "labels.jsonl"]
    assert records(out)["clip.mp4"]["error"] == "the run was interrupted"
    assert label(capsys, source, "--out", out, "--overlay")[0] == 0
    assert len(list((out / "frames/clip").iterdir())) == 30


def test_the_folder_of_a_killed_run_is_removed(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "out"
    abandoned = out / "frames" / f".{'0' * 32}.tmp"
    abandoned.mkdir(parents=True)
    (abandoned / "000000.png").write_bytes(b"half")
    old = time.time() - 3600
    os.utime(abandoned, (old, old))
    assert label(capsys, source, "--out", out)[0] == 0
    assert files_in(out) == ["clip.mp4", *FRAMES, "labels.jsonl"]


def test_files_of_others_in_a_folder_of_frames_stay(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mp4"), tmp_path / "out"
    assert label(capsys, source, "--out", out)[0] == 0
    (out / "frames/clip/notes.txt").write_text("mine")
    before = (out / "clip.mp4").stat().st_mtime_ns
    code, err = label(capsys, source, "--out", out, "--overlap", 2)
    assert code == 1
    assert f"cannot label {source}: Directory not empty: {out}/frames/clip" in err
    assert (out / "frames/clip/notes.txt").read_text() == "mine"
    assert (out / "clip.mp4").stat().st_mtime_ns == before
    assert not list(out.rglob(".*"))


def test_odd_sizes_turned_frames_and_uneven_times(tmp_path):
    labeler = VideoLabeler(PseudoLabeler(size=96), WindowOptions(3))
    odd = clip(tmp_path / "odd.mkv", times=(0, 1, 5, 6), size=(51, 37))
    turn = turned(clip(tmp_path / "turn.mp4", times=range(3)))
    for source, size, times in ((odd, (51, 37), (0, 0.1, 0.5, 0.6)), (turn, (64, 96), None)):
        paths = {name: tmp_path / source.stem / name for name in ("overlay", "mask_frames")}
        mask = tmp_path / source.stem / "mask"
        summary = label_video(source, mask, labeler, progress=False, **paths)
        assert summary.size == size
        masks = [pixels_of(path) for path in sorted(paths["mask_frames"].iterdir())]
        assert [found.shape for found in masks] == [size[::-1]] * summary.frames
        shown, when = decoded(mask)
        assert shown[0].shape == (size[1] // 2 * 2, size[0] // 2 * 2, 3)
        if times is not None:
            assert when == pytest.approx(times)
        # Pixels are at the same places in both.
        for frame, found in zip(shown, masks, strict=True):
            inner = found[: frame.shape[0], : frame.shape[1]] > 0
            assert (as_mask(frame) == inner).mean() > 0.98
        assert decoded(paths["overlay"])[0][0].shape == shown[0].shape
    assert summary.record()["notes"] == ["rotated as its metadata says"]


def test_masks_are_refined_along_the_frames(tmp_path):
    source = clip(tmp_path / "clip.mp4", times=range(4))
    labeler = VideoLabeler(PseudoLabeler(size=256))
    scores = []
    for steps in (None, {"method": "bilateral", "largest_component": True}):
        out = tmp_path / str(steps is None)
        label_video(
            source, out / "m.mp4", labeler, mask_frames=out / "m", steps=steps, progress=False
        )
        masks = [pixels_of(path) > 0 for path in sorted((out / "m").iterdir())]
        scores.append(np.mean([iou(mask, disc_mask(i)) for i, mask in enumerate(masks)]))
    assert scores[1] > max(0.9, scores[0] + 0.05), scores


class Watching(PseudoLabeler):
    """Counts the frames that have been read."""

    prepared = 0

    def preprocess(self, image: Image.Image) -> Tensor:
        self.prepared += 1
        return super().preprocess(image)


def test_a_frame_that_cannot_be_written_ends_the_reading(tmp_path, monkeypatch):
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selfment.jobs.video_labels.mask_image", full)
    model = Watching(size=64, batch_size=4)
    source = clip(tmp_path / "in.mp4", times=range(120))
    with pytest.raises(OSError, match="No space left"):
        label_video(source, tmp_path / "m.mp4", VideoLabeler(model), progress=False)
    assert model.prepared <= 4 * 8
    assert list(tmp_path.iterdir()) == [source]


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    model = Watching(size=64, batch_size=4)
    labeler = VideoLabeler(model, WindowOptions(6, 2))
    drawn, ahead = 0, 0

    def counted(*arguments: Any) -> Any:
        nonlocal drawn, ahead
        drawn += 1
        ahead = max(ahead, model.prepared - drawn)
        return mask_at_size(*arguments)

    mask_at_size = sys.modules["selfment.jobs.video_labels"].mask_at_size  # type: ignore[attr-defined]
    monkeypatch.setattr("selfment.jobs.video_labels.mask_at_size", counted)
    source = clip(tmp_path / "in.mp4", times=range(120))
    summary = label_video(
        source, tmp_path / "m.mp4", labeler, overlay=tmp_path / "o.mp4", progress=False
    )
    assert summary.frames == drawn == 120
    # A window that is written, the next one that is complete, and a batch that is read ahead.
    assert ahead <= 3 * 6 + 2 * 4


def test_shards_share_images_and_videos(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        clip(folder / name, times=range(4))
    picture(folder / "d.png")
    model = PseudoLabeler(size=64)
    counts = []
    for rank in range(2):
        found = find_inputs([folder], out=out)
        done = label_images(found, out, model, progress=False, shard=(rank, 2))
        counts.append((done.labelled, done.failed))
    assert counts == [(2, 0), (2, 0)]
    assert sorted(records(out)) == ["a.mp4", "b.mp4", "c.mp4", "d.png"]
    assert len(list(out.rglob("frames/*/*.png"))) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--method", "maskcut"],
            "the method 'selfment' makes: got the method 'maskcut' for clip.mp4",
        ),
        (["--objects", "3"], "the method 'selfment' makes: got the method 'objects' for clip.mp4"),
        (["--window", "0"], "`window` must be an integer >= 1: got 0"),
        (["--every", "0"], "`every` must be an integer >= 1: got 0"),
        (["--every", "2", "--to", "tar"], "`every` must be left alone with tar files, tables and"),
        (["--overlap", "8"], "`overlap` must be an integer >= 0 and < window = 8: got 8"),
    ],
)
def test_what_does_not_go_with_a_video_is_said_first(tmp_path, capsys, options, message):
    source = clip(tmp_path / "clip.mp4", times=range(3))
    code, _, err = call(capsys, "label", source, "--out", tmp_path / "out", *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_other_formats_are_for_images_and_that_is_said(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        clip(folder / name, times=range(3))
    picture(folder / "photo.png")
    code, err = label(capsys, folder, "--out", out, "--format", "yolo,coco", "--no-frames")
    assert code == 0
    assert "nothing is written as coco or yolo for a.mp4 and 1 more" in err
    files = files_in(out)
    assert {"annotations/photo.json", "labels/photo.txt"} < set(files)
    assert [name for name in files if Path(name).stem in ("a", "b")] == ["a.mp4", "b.mp4"]
    composed = json.loads((out / "annotations.json").read_text())
    assert [image["file_name"] for image in composed["images"]] == ["photo.png"]


def test_without_pyav_there_is_one_sentence(tmp_path, capsys, monkeypatch):
    source = clip(tmp_path / "clip.mp4", times=range(3))
    monkeypatch.setitem(sys.modules, "av", None)
    code, err = label(capsys, source, "--out", tmp_path / "out")
    assert code == 2
    assert 'a video needs PyAV, which is missing here: pip install "selfment[video]"' in err
    picture(tmp_path / "photo.png")
    code, err = label(capsys, tmp_path / "photo.png", source, "--out", tmp_path / "out")
    assert code == 1
    assert f"cannot label {source}: a video needs PyAV" in err
    assert "1 labelled, 0 already done, 1 failed" in err


def test_results_are_no_inputs_of_the_next_run(tmp_path, capsys):
    out = tmp_path / "out"
    clip(out / "clips/clip.mp4")
    picture(out / "photo.jpg")
    assert label(capsys, out / "clips", "--out", out)[0] == 0
    found = [entry.name for entry in find_inputs([out])]
    assert found == ["photo.jpg", "clips/clip.mp4"]
    assert "13 files were left out, which records beside them name" in capsys.readouterr().err


def test_predict_writes_frames_where_they_are_wanted(tmp_path, capsys):
    source, out = clip(tmp_path / "clip.mkv", times=range(5), size=(51, 37)), tmp_path / "out"
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    command = ["predict", source, "--head", tmp_path / "head", "--out", out, "--size", 64]
    assert call(capsys, *command, "--binary", 0.5, "--frames")[0] == 0
    row = records(out, "predictions.jsonl")["clip.mkv"]
    folders = {field: row[field] for field in ("saliency_frames", "mask_frames")}
    assert list(folders.values()) == ["frames/clip_saliency", "frames/clip_mask"]
    segmenter = Segmenter(tmp_path / "head", size=64)
    with av.open(str(source)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for index, frame in enumerate(pictures):
        saliency, mask = (pixels_of(out / f"{f}/{index:06}.png") for f in folders.values())
        expected = segmenter(frame)
        assert saliency.shape == expected.shape == (37, 51)
        assert np.abs(saliency - 255 * expected.numpy()).max() <= 1
        assert np.array_equal(mask > 0, expected.numpy() > 0.5)
    assert "0 segmented, 1 already done" in call(capsys, *command, "--binary", 0.5, "--frames")[2]
    # Masks of another threshold are others; folders that are not wanted go with them.
    assert "1 segmented" in call(capsys, *command, "--binary", 0.6)[2]
    assert not (out / folders["mask_frames"]).exists()
    assert (out / folders["saliency_frames"]).exists()
    # One of two frames, by its number in the video.
    few = ["--binary", 0.5, "--frames", "--every", 2, "--overlay"]
    assert "1 segmented" in call(capsys, *command, *few)[2]
    for name in folders.values():
        assert files_in(out / name) == [f"{index:06}.png" for index in (0, 2, 4)]
    assert np.array_equal(pixels_of(out / name / "000004.png"), mask)
    row = records(out, "predictions.jsonl")["clip.mkv"]
    assert (row["frames"], row["fps"], row["every"]) == (3, 5, 2)
    assert decoded(out / row["overlay"])[1] == pytest.approx([0, 0.2, 0.4])
