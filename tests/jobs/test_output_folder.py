"""The output folder over several runs: files of other options, and runs with nothing to do."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import call
from helpers.pictures import files_in, picture, records
from helpers.runs import label, predict
from selfment.jobs import folder as output_folder
from selfment.jobs import predict as prediction
from selfment.jobs.runner import Runner
from selfment.util.lines import with_checksum, without_checksum

FIELDS = ("saliency", "mask", "overlay", "binary")


PHOTOS = ("a.png", "sub/b.png", "sub/c.png")  # of the fixture photos_in


def fields(out: Path, name: str) -> tuple:
    return tuple(records(out, "predictions.jsonl")[name][field] for field in FIELDS)


# Predictions of other options.


def test_no_file_of_another_prediction_stays(photos_in, tmp_path):
    out = tmp_path / "out"
    assert predict(photos_in, out, overlays=True, binary=0.5) == (3, 0, 0)
    assert predict(photos_in / "sub", out, head=1) == (2, 0, 0)
    of_a = ["a_mask.png", "a_saliency.png", "overlays/a_overlay.jpg"]
    rest = ["predictions.jsonl", "sub/b_saliency.png", "sub/c_saliency.png"]
    assert files_in(out) == sorted(of_a + rest)
    assert fields(out, "b.png") == ("sub/b_saliency.png", None, None, None)
    assert fields(out, "a.png") == ("a_saliency.png", "a_mask.png", "overlays/a_overlay.jpg", 0.5)
    assert predict(photos_in, out, head=1, overlays=True) == (3, 0, 0)
    assert not (out / "a_mask.png").exists()
    assert (out / "overlays/sub/b_overlay.jpg").exists()


def test_no_file_of_an_image_that_has_changed_stays(photos_in, tmp_path):
    out = tmp_path / "out"
    predict(photos_in, out, overlays=True, binary=0.5)
    picture(photos_in / "a.png", 9)
    os.utime(photos_in / "a.png", ns=(1, 1))
    assert predict(photos_in, out) == (1, 2, 0)
    assert fields(out, "a.png") == ("a_saliency.png", None, None, None)
    assert [name for name in files_in(out) if "a_" in Path(name).name] == ["a_saliency.png"]
    assert (out / "sub/b_mask.png").exists()


def test_files_of_the_same_prediction_stay_done(photos_in, tmp_path):
    out = tmp_path / "out"
    assert predict(photos_in, out, binary=0.5) == (3, 0, 0)
    assert predict(photos_in, out, overlays=True) == (3, 0, 0)
    assert predict(photos_in, out, overlays=True, binary=0.5) == (0, 3, 0)
    assert fields(out, "a.png") == ("a_saliency.png", "a_mask.png", "overlays/a_overlay.jpg", 0.5)
    # A mask of another threshold takes its place; the overlay is drawn again when it is wanted.
    assert predict(photos_in, out, binary=0.7) == (3, 0, 0)
    assert fields(out, "a.png") == ("a_saliency.png", "a_mask.png", "overlays/a_overlay.jpg", 0.7)
    assert predict(photos_in, out, overlays=True, binary=0.7) == (3, 0, 0)
    assert predict(photos_in, out, overlays=True, binary=0.7) == (0, 3, 0)
    fresh = tmp_path / "fresh"
    predict(photos_in, fresh, overlays=True, binary=0.7)
    assert files_in(fresh) == files_in(out)
    for file in fresh.rglob("*.*g"):
        assert file.read_bytes() == (out / file.relative_to(fresh)).read_bytes()
    (out / "a_mask.png").unlink()
    (out / "overlays/a_overlay.jpg").unlink()
    assert predict(photos_in, out, overlays=True) == (3, 0, 0)  # drawn at 0.5
    assert fields(out, "a.png") == ("a_saliency.png", None, "overlays/a_overlay.jpg", None)
    assert fields(out, "b.png")[1:] == ("sub/b_mask.png", "overlays/sub/b_overlay.jpg", 0.7)


def test_the_threshold_of_masks_that_a_killed_run_left_is_unknown(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(photos_in, out, overlays=True, binary=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_record_written", lambda self, most: None)
        predict(photos_in, out, binary=0.9)
    assert predict(photos_in, out) == (3, 0, 0)
    assert fields(out, "a.png") == ("a_saliency.png", None, "overlays/a_overlay.jpg", None)
    assert not list(out.rglob("*_mask.png"))


def test_no_file_of_a_prediction_that_a_killed_run_left_stays(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_record_written", lambda self, most: None)
        predict(photos_in, out, head=1, overlays=True, binary=0.5)
    assert len(files_in(out)) == 3 * 3 + 1
    assert predict(photos_in, out) == (3, 0, 0)
    assert len(files_in(out)) == 3 + 1


def test_a_prediction_that_fails_records_no_file_of_earlier_ones(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(photos_in, out, overlays=True, binary=0.5)

    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "write_atomically", full)
        assert predict(photos_in, out, head=1) == (0, 0, 3)
        assert predict(photos_in, out, head=1) == (0, 0, 3)
    row = records(out, "predictions.jsonl")["a.png"]
    assert row["error"] is not None
    assert (row["mask"], row["overlay"]) == (None, None)
    assert row["last"]["mask"] == "a_mask.png"
    assert len(files_in(out)) == 3 * 3 + 1
    assert predict(photos_in, out, head=1) == (3, 0, 0)
    assert len(files_in(out)) == 3 + 1


def test_an_error_costs_no_file_of_the_same_prediction(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(photos_in, out, binary=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "tint_saliency", lambda *_: 1 / 0)
        assert predict(photos_in, out, overlays=True) == (0, 0, 3)
    assert predict(photos_in, out, overlays=True) == (3, 0, 0)
    assert fields(out, "a.png") == ("a_saliency.png", "a_mask.png", "overlays/a_overlay.jpg", 0.5)


def test_an_overlay_shows_the_mask_of_its_threshold(photos_in, tmp_path):
    out = tmp_path / "out"
    assert predict(photos_in, out, overlays=True) == (3, 0, 0)
    drawn = (out / "overlays/a_overlay.jpg").read_bytes()
    assert predict(photos_in, out, overlays=True, binary=0.5) == (3, 0, 0)
    assert (out / "overlays/a_overlay.jpg").read_bytes() == drawn
    assert predict(photos_in, out, overlays=True, binary=0.99) == (3, 0, 0)
    assert (out / "overlays/a_overlay.jpg").read_bytes() != drawn
    assert predict(photos_in, out, binary=0.99) == (0, 3, 0)


def test_what_is_done_again_because_of_other_settings_is_counted(photos_in, tmp_path, capsys):
    def run(*options):
        arguments = ("label", photos_in, "--out", tmp_path / "out", "--size", 96, *options)
        return call(capsys, *arguments)[2]

    assert "settings have changed" not in run()
    (photos_in / "new.png").write_bytes((photos_in / "a.png").read_bytes())
    assert "the settings have changed: 3 images to label again" in run("--tau", 0.3)
    assert "settings have changed" not in run("--tau", 0.3, "--overlay")
    assert "the settings have changed: 4 images to label again" in run("--tau", 0.3, "--fill-holes")


def test_predictions_spare_the_files_of_others(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    predict(photos_in, out)
    for name in ("a_mask.png", "overlays"):
        (out / name).write_text("by hand")
    assert predict(photos_in, out, binary=0.5) == (2, 0, 1)
    assert "must hold no a_mask.png of another program" in capsys.readouterr().err
    assert predict(photos_in, out, head=1) == (3, 0, 0)
    assert (out / "a_mask.png").read_text() == (out / "overlays").read_text() == "by hand"
    assert not (out / "sub/b_mask.png").exists()


def edit(out: Path, name: str, file: str = "predictions.jsonl", **changes) -> None:
    """Changes what the records say of an image."""
    lines = []
    for line in (out / file).read_text().splitlines():
        row = json.loads(without_checksum(line) or "")
        lines.append(
            with_checksum(json.dumps(row | (changes if Path(row["image"]).name == name else {})))
        )
    (out / file).write_text("\n".join(lines) + "\n")


def test_files_of_another_image_stay(photos_in, tmp_path):
    out = tmp_path / "out"
    predict(photos_in, out, overlays=True, binary=0.5)
    files = {
        field: records(out, "predictions.jsonl")["c.png"][field]
        for field in ("saliency", "mask", "overlay")
    }
    edit(out, "b.png", **files)  # the later record's image has them
    before = {file: (out / file).read_bytes() for file in files.values()}
    assert predict(photos_in / "sub/b.png", out, head=1) == (1, 0, 0)
    assert {file: (out / file).read_bytes() for file in files.values()} == before
    assert records(out, "predictions.jsonl")["b.png"]["saliency"].startswith("sub/c-")
    assert fields(out, "c.png") == (*files.values(), 0.5)


def test_names_that_are_not_of_the_image_are_not_removed(photos_in, tmp_path):
    out = tmp_path / "out"
    predict(photos_in, out, binary=0.5)
    (out / "precious.png").write_text("precious")
    (tmp_path / "precious.png").write_text("precious")
    for name in ("precious.png", "../precious.png", str(tmp_path / "precious.png")):
        edit(out, "a.png", mask=name, overlay=name)
        predict(photos_in, out, head=1)
        predict(photos_in, out, head=0)
        assert (out / "precious.png").exists()
        assert (tmp_path / "precious.png").exists()


@pytest.mark.parametrize("command", [predict, label])
def test_a_linked_folder_holds_results_as_any_other(photos_in, tmp_path, command):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "mine.jpg").write_bytes(b"precious")
    (out / "overlays").symlink_to(elsewhere)
    command(photos_in, out, overlays=True)
    made = files_in(elsewhere)
    assert len(made) == 4
    other = {"head": 1} if command is predict else {"tau": 0.4}
    assert command(photos_in, out, **other) == (3, 0, 0)
    assert files_in(elsewhere) == ["mine.jpg"]
    assert command(photos_in, out, overlays=True, **other) == (3, 0, 0)
    assert files_in(elsewhere) == made
    assert (elsewhere / "mine.jpg").read_bytes() == b"precious"


@pytest.mark.parametrize("command", [label, predict])
def test_files_that_a_damaged_record_names_are_of_its_image(photos_in, tmp_path, command):
    out = tmp_path / "out"
    command(photos_in, out, overlays=True)
    overlay = out / ("overlays/a.jpg" if command is label else "overlays/a_overlay.jpg")
    assert overlay.exists()
    file = out / ("labels.jsonl" if command is label else "predictions.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    damaged = [
        line.replace('"bytes": ', '"bytes": 1') if "a.png" in line else line for line in lines
    ]
    assert damaged != lines
    file.write_text("".join(damaged))
    assert command(photos_in / "a.png", out) == (1, 0, 0)
    assert not overlay.exists()
    assert command(photos_in, out, overlays=True) == (1, 2, 0)
    assert overlay.exists()


def test_broken_annotations_outside_of_the_folder_stay(photos_in, tmp_path):
    out = tmp_path / "out"
    label(photos_in, out, formats=["coco"])
    victim = tmp_path / "victim.json"
    victim.write_text("precious")
    edit(out, "a.png", "labels.jsonl", annotations="../victim.json")
    (out / "annotations.json").unlink()
    label(photos_in / "sub", out, formats=["coco"])
    assert victim.read_text() == "precious"


def test_no_file_of_another_prediction_of_a_video_stays(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is missing")
    source = tmp_path / "in/a.mp4"
    source.parent.mkdir()
    with av.open(str(source), "w") as container:
        stream = container.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(4):
            pixels = np.full((48, 64, 3), 40 + 10 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    out = tmp_path / "out"
    assert predict(source, out, overlays=True, binary=0.5) == (1, 0, 0)
    assert fields(out, "a.mp4") == ("a_saliency.mp4", "a_mask.mp4", "overlays/a_overlay.mp4", 0.5)
    assert predict(source, out, overlays=True) == (0, 1, 0)
    assert predict(source, out, head=1, overlays=True) == (1, 0, 0)
    assert fields(out, "a.mp4") == ("a_saliency.mp4", None, "overlays/a_overlay.mp4", None)
    assert files_in(out) == ["a_saliency.mp4", "overlays/a_overlay.mp4", "predictions.jsonl"]


# Runs with nothing to do.
