"""A run with nothing to do writes nothing; sets and records are written if they have changed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import files_in, picture
from helpers.runs import label, predict, segmenter_of
from selfment import CutOptions, PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs import coco
from selfment.jobs.label import label_images
from selfment.jobs.predict import predict_images
from selfment.jobs.records import Records
from selfment.methods import Selfment
from selfment.util.lines import with_checksum

PHOTOS = ("a.png", "sub/b.png", "sub/c.png")  # of the fixture photos_in


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
