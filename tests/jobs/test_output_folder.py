"""The output folder over several runs: files of other options, and runs with nothing to do."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.heads import a_head
from selfment import CutOptions, PseudoLabeler, Segmenter
from selfment.images.load import find_images
from selfment.jobs import coco
from selfment.jobs import predict as prediction
from selfment.jobs.label import label_images
from selfment.jobs.predict import find_inputs, predict_images
from selfment.jobs.records import Records
from selfment.jobs.runner import Runner
from selfment.methods import Selfment
from selfment.util.lines import with_checksum, without_checksum

FIELDS = ("saliency", "mask", "overlay", "binary")


@pytest.fixture
def photos_in(tmp_path):
    folder = tmp_path / "photos"
    for index, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        picture(folder / name, index)
    return folder


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 255, (30, 40, 3)).astype(np.uint8)
    pixels[:15] //= 4
    Image.fromarray(pixels).save(path)


@cache
def segmenter_of(seed: int) -> Segmenter:
    return Segmenter(a_head(seed), "classic", 64, batch_size=2)


def predict(inputs, out: Path, *, head: int = 0, **options) -> tuple[int, int, int]:
    entries = find_inputs([inputs], out=out)
    done = predict_images(entries, out, segmenter_of(head), progress=False, **options)
    return done.predicted, done.skipped, done.failed


def label(inputs, out: Path, *, tau: float = 0.2, **options) -> tuple[int, int, int]:
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau=tau)), batch_size=2)
    entries = find_images([inputs], out=out)
    done = label_images(entries, out, labeler, progress=False, **options)
    return done.labelled, done.skipped, done.failed


def records(out: Path, file: str = "predictions.jsonl") -> dict[str, dict]:
    rows = [json.loads(line) for line in (out / file).read_text().splitlines()]
    return {Path(row["image"]).name: row for row in rows}


def fields(out: Path, name: str) -> tuple:
    return tuple(records(out)[name][field] for field in FIELDS)


def files_in(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


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
    # A mask of another threshold takes its place; the overlay has none.
    assert predict(photos_in, out, binary=0.7) == (3, 0, 0)
    assert predict(photos_in, out, overlays=True, binary=0.7) == (0, 3, 0)
    fresh = tmp_path / "fresh"
    predict(photos_in, fresh, overlays=True, binary=0.7)
    assert files_in(fresh) == files_in(out)
    for file in fresh.rglob("*.*g"):
        assert file.read_bytes() == (out / file.relative_to(fresh)).read_bytes()
    (out / "a_mask.png").unlink()
    (out / "overlays/a_overlay.jpg").unlink()
    assert predict(photos_in, out, overlays=True) == (1, 2, 0)
    assert fields(out, "a.png") == ("a_saliency.png", None, "overlays/a_overlay.jpg", None)


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
        patch.setattr(prediction, "write_atomically", full)
        assert predict(photos_in, out, head=1) == (0, 0, 3)
        assert predict(photos_in, out, head=1) == (0, 0, 3)
    row = records(out)["a.png"]
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
    files = {field: records(out)["c.png"][field] for field in ("saliency", "mask", "overlay")}
    edit(out, "b.png", **files)  # the later record's image has them
    before = {file: (out / file).read_bytes() for file in files.values()}
    assert predict(photos_in / "sub/b.png", out, head=1) == (1, 0, 0)
    assert {file: (out / file).read_bytes() for file in files.values()} == before
    assert records(out)["b.png"]["saliency"].startswith("sub/c-")
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


def state(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of each file: a file that is written again has others."""
    stats = {file: os.stat(out / file) for file in files_in(out)}
    return {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in stats.items()}


def forbidden(*arguments):
    raise AssertionError(f"a run with nothing to do must not do this: {arguments}")


@pytest.mark.slow
@pytest.mark.parametrize("shard", [(0, 1), (0, 2)])
@pytest.mark.parametrize("formats", [["png"], ["coco"]])
def test_a_run_with_nothing_to_do_writes_nothing(photos_in, tmp_path, monkeypatch, shard, formats):
    out = tmp_path / "out"
    label(photos_in, out, formats=("png", "coco"))
    predict(photos_in, tmp_path / "saliency")
    before = state(out), state(tmp_path / "saliency")
    monkeypatch.setattr("os.walk", forbidden)
    monkeypatch.setattr(coco, "write_coco", forbidden)
    entries = find_images([photos_in / name for name in ("a.png", "sub/b.png", "sub/c.png")])
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau=0.2)))
    done = label_images(entries, out, labeler, formats=formats, progress=False, shard=shard)
    assert done.labelled == done.failed == 0
    folder = tmp_path / "saliency"
    predict_images(entries, folder, segmenter_of(0), progress=False, shard=shard)
    assert (state(out), state(tmp_path / "saliency")) == before


def temporary(folder: Path) -> Path:
    """Makes a temporary file like one of a process that was killed an hour ago."""
    path = folder / f".{'0' * 32}.tmp"
    path.write_bytes(b"half")
    os.utime(path, (1, 1))
    return path


def test_the_next_run_that_writes_removes_what_killed_processes_left(photos_in, tmp_path):
    out = tmp_path / "out"
    label(photos_in / "sub", out, formats=["coco"])
    for change in ("nothing", "an image", "the set", "the records"):
        left = temporary(out / "annotations")
        if change == "an image":
            picture(photos_in / "sub/new.png", 5)
        elif change == "the set":
            (out / "annotations.json").unlink()
        elif change == "the records":
            with (out / "labels.jsonl").open("a") as file:
                file.write('{"image": "cut o')
        label(photos_in / "sub", out, formats=["coco"])
        assert left.exists() == (change == "nothing")


def test_a_set_that_is_damaged_or_of_others_is_composed_again(photos_in, tmp_path):
    out = tmp_path / "out"
    label(photos_in, out, formats=["coco"])
    composed = out / "annotations.json"
    whole = composed.read_bytes()
    label(photos_in / "sub", tmp_path / "part", formats=["coco"])
    label(photos_in, tmp_path / "other", tau=0.4, formats=["coco"])
    others = [(tmp_path / name / "annotations.json").read_bytes() for name in ("part", "other")]
    damaged = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in (len(whole) // 2, len(whole) - 40, len(whole) - 5)
    ]
    for content in (*others, *damaged, whole[:-1], whole[:-60], whole[:100], whole + b"\n"):
        assert content != whole
        composed.write_bytes(content)
        assert label(photos_in, out, formats=["coco"]) == (0, 3, 0)
        assert composed.read_bytes() == whole
    # A run that does not ask for the set keeps it whole, too.
    composed.write_bytes(others[0])
    label(photos_in / "sub", out, formats=["coco"])
    assert composed.read_bytes() == whole
    (out / "annotations/a.json").unlink()
    label(photos_in / "sub", out, formats=["coco"])
    names = [one["file_name"] for one in json.loads(composed.read_bytes())["images"]]
    assert names == ["sub/b.png", "sub/c.png"]


def test_each_byte_of_a_composed_set_counts(tmp_path):
    file = tmp_path / "a.json"
    instances = np.eye(5, dtype=np.uint16)
    file.write_text(with_checksum(json.dumps(coco.coco_record(instances, [0.5]))))
    sources = [("a.png", "settings 5", file)]
    path = tmp_path / "annotations.json"
    assert coco.write_coco(path, sources) == {}
    whole = path.read_bytes()
    assert json.loads(whole)["images"][0]["file_name"] == "a.png"
    assert coco.is_composed(path, sources)
    for other in ([], [("b.png", *sources[0][1:])], [("a.png", "other 5", file)], 2 * sources):
        assert not coco.is_composed(path, other)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not coco.is_composed(path, sources), place
        path.write_bytes(whole[:place])
        assert not coco.is_composed(path, sources), place


def test_a_set_that_could_not_be_composed_is_by_the_next_run(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    label(photos_in, out, formats=["coco"])
    size = (photos_in / "a.png").stat().st_size
    Image.new("RGB", (40, 30), (90, 90, 90)).save(photos_in / "a.png")
    with (photos_in / "a.png").open("ab") as file:
        file.write(bytes(size - file.tell()))  # so that only the records tell of the change

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(coco, "write_coco", full)
        with pytest.raises(OSError, match="No space left on device"):
            label(photos_in, out, formats=["coco"])
    assert label(photos_in, out, formats=["coco"]) == (0, 3, 0)
    label(photos_in, tmp_path / "fresh", formats=["coco"])
    expected = (tmp_path / "fresh/annotations.json").read_bytes()
    assert (out / "annotations.json").read_bytes() == expected
    assert len((out / "labels.jsonl").read_text().splitlines()) == 3


def test_records_are_parsed_once_and_written_where_they_have_changed(tmp_path, monkeypatch):
    path = tmp_path / "labels.jsonl"
    first = Records(path, "mask")
    for index in range(5):
        first.add({"image": f"{index}", "mask": f"{index}.png", "settings": "A"})
    first.close()
    whole = path.read_bytes()
    parsed, loads = [], json.loads
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", lambda line: parsed.append(line) or loads(line))
        again = Records(path, "mask")
    assert len(parsed) == 5
    assert not again.changed
    inode = path.stat().st_ino
    again.close()
    assert (path.stat().st_ino, path.read_bytes()) == (inode, whole)
    lines = whole.decode().splitlines(keepends=True)
    for content in ([*lines, lines[0]], [*lines, "\n"], [*lines, "{"], [*lines, "damaged\n"]):
        path.write_text("".join(content))
        again = Records(path, "mask")
        assert again.changed
        again.close()
        assert path.read_bytes() == whole
    # A damaged line of an image that no run asks for stays as it is.
    path.write_text("".join([*lines[1:], lines[0].replace('"A"', '"B"')]))
    kept = path.read_bytes()
    again = Records(path, "mask")
    assert not again.changed
    again.close()
    assert path.read_bytes() == kept
