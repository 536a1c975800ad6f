"""Data sets for YOLO: links, their list and data.yaml, read as programs that train on them do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import processes
from helpers.commands import call
from helpers.pictures import files_in, picture, records
from helpers.scenes import labeler, run, scene
from selfment.jobs.exports import as_instances, yolo_polygons
from selfment.jobs.label import LabelSummary
from selfment.methods import Selfment
from selfment.util import files


def yolo_set(out: Path) -> dict[str, Path]:
    """The labels by image, found as YOLO finds them."""
    lines = (out / "data.yaml").read_text().splitlines()
    assert lines[1:2] + lines[3:] == ["train: images.txt", "names:", "  0: object"]
    listed = (out / "images.txt").read_text().splitlines()
    assert listed == sorted(set(listed))
    found = {}
    for line in listed:
        image = os.path.join(out, line.removeprefix("./"))
        assert Image.open(image).width > 0
        before, after = image.rsplit("/images/", 1)
        found[line.removeprefix("./images/")] = Path(f"{before}/labels/{after}").with_suffix(".txt")
        assert found[line.removeprefix("./images/")].is_file()
    return found


def boxes_of(text: str) -> np.ndarray:
    return np.array([[float(value) for value in line.split()] for line in text.splitlines()])


def label(capsys, *arguments: object) -> str:
    """Exit code and stderr of ``selfment label``."""
    code, _, err = call(capsys, "label", "--size", 96, *arguments)
    return f"exit code {code}: {err}"


PHOTOS = ("a.jpg", "a.png", "sub/b.jpg", "images/c.png")  # of the fixture photos_in


def test_each_photograph_has_its_label(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    found = yolo_set(out)
    assert list(found) == ["a.jpg", "a.png.png", "images_/c.png", "sub/b.jpg"]
    rows = records(out)
    for link, text in found.items():
        path = os.path.realpath(out / "images" / link)
        assert Path(path).parent.parent in (tmp_path, photos_in)
        name = "a.png" if link == "a.png.png" else os.path.basename(link)
        assert rows[name]["path"] == path
        assert str(text.relative_to(out)) == rows[name]["boxes"]
    assert (out / "images/sub/b.jpg").is_symlink()


def test_polygons_are_the_masks(tmp_path):
    out = tmp_path / "out"
    scene(tmp_path / "in/a.png", (90, 60), 0)
    run([tmp_path / "in"], out, labeler(Selfment()), formats=("png", "yolo-seg"), fill_holes=True)
    (text,) = yolo_set(out).values()
    mask = np.asarray(Image.open(out / "a.png")) > 0
    (line,) = text.read_text().splitlines()
    kind, *values = line.split()
    corners = (np.array(values, dtype=float).reshape(-1, 2) * (90, 60)).flatten().tolist()
    coder = pytest.importorskip("pycocotools.mask", reason="pycocotools is missing")
    drawn = coder.decode(coder.frPyObjects([corners], 60, 90))[..., 0] > 0
    assert kind == "0"
    assert mask.any()
    assert (drawn != mask).mean() < 0.01


def test_a_polygon_has_the_box_of_its_object():
    masks = np.zeros((2, 40, 60), dtype=bool)
    masks[0, 5:20, 10:30], masks[0, 30:33, 2:4] = True, True
    masks[1, 25:39, 40:60] = True
    lines = yolo_polygons(as_instances(masks, (60, 40))).splitlines()
    for line, box in zip(lines, ((2, 5, 30, 33), (40, 25, 60, 39)), strict=True):
        corners = np.array(line.split()[1:], dtype=float).reshape(-1, 2) * (60, 40)
        found = (*corners.min(axis=0), *corners.max(axis=0))
        assert found == pytest.approx(box, abs=1e-4)


def test_boxes_and_polygons_replace_each_other(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    counts = [boxes_of(text.read_text()).shape[1] for text in yolo_set(out).values()]
    assert counts == [5] * 4
    assert "4 labelled" in label(capsys, photos_in, "--out", out, "--format", "yolo-seg")
    counts = [boxes_of(text.read_text()).shape[1] for text in yolo_set(out).values()]
    assert all(count >= 9 and count % 2 == 1 for count in counts)
    assert "0 labelled, 4 already" in label(capsys, photos_in, "--out", out, "--format", "yolo-seg")
    assert "0 labelled, 4 already" not in label(capsys, photos_in, "--out", out, "--format", "yolo")
    code, _, err = call(capsys, "label", photos_in, "--out", out, "--format", "yolo,yolo-seg")
    assert code == 2
    assert "`format` must be without one of 'yolo' and 'yolo-seg'" in err


def test_an_idle_run_writes_nothing_and_repairs_links(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    options = (photos_in, "--out", out, "--format", "yolo")
    label(capsys, *options)
    before = {name: (out / name).lstat().st_mtime_ns for name in files_in(out)}
    label(capsys, *options)
    assert {name: (out / name).lstat().st_mtime_ns for name in files_in(out)} == before
    (out / "images/a.jpg").unlink()
    assert "0 labelled, 4 already done" in label(capsys, *options)
    assert len(yolo_set(out)) == 4


def test_photographs_that_move_keep_their_labels(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    moved = photos_in.rename(tmp_path / "elsewhere")
    assert "0 labelled, 4 already" in label(capsys, moved, "--out", out, "--format", "yolo")
    assert len(yolo_set(out)) == 4
    assert os.path.realpath(out / "images/a.jpg") == str(moved / "a.jpg")


def test_what_fails_or_is_gone_is_not_in_the_set(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    (photos_in / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    options = ("--out", out, "--format", "yolo")
    assert label(capsys, photos_in, *options).startswith("exit code 1")
    assert len(yolo_set(out)) == 4
    (photos_in / "a.jpg").unlink()
    err = label(capsys, photos_in / "sub", *options)
    assert "data.yaml is without an image that is gone, a.jpg" in err
    assert list(yolo_set(out)) == ["a.png.png", "images_/c.png", "sub/b.jpg"]
    assert not (out / "images/a.jpg").is_symlink()
    label(capsys, photos_in, "--out", out, "--tau", 0.3)
    assert (out / "images.txt").read_text() == ""
    assert not [path for path in (out / "images").rglob("*") if path.is_symlink()]
    assert (photos_in / "sub/b.jpg").is_file()


def test_photographs_in_the_place_of_their_links(tmp_path, capsys):
    """The layout of YOLO itself: photographs in images/, labels beside it."""
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "set/images" / name)
    os.symlink(picture(tmp_path / "c.jpg"), tmp_path / "set/images/c.jpg")
    options = (tmp_path / "set/images", "--out", tmp_path / "set", "--format", "yolo")
    for expected in ("3 labelled", "0 labelled, 3 already done"):
        assert expected in label(capsys, *options)
        assert list(yolo_set(tmp_path / "set")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert not (tmp_path / "set/images/a.jpg").is_symlink()
    label(capsys, *options[:-2], "--tau", 0.3)
    assert files_in(tmp_path / "set/images") == ["a.jpg", "b.jpg", "c.jpg"]


def test_files_of_others_stay(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    picture(out / "images/a.jpg", 9)
    before = (out / "images/a.jpg").read_bytes()
    code, _, err = call(capsys, "label", photos_in, "--out", out, "--size", 96, "--format", "yolo")
    assert code == 1
    assert "data.yaml is without an image: images/a.jpg is of another program" in err
    assert (out / "images/a.jpg").read_bytes() == before
    assert len(yolo_set(out)) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other/data.yaml").write_text("train: mine\n")
    code, _, err = call(capsys, "label", photos_in, "--out", tmp_path / "other", "--format", "yolo")
    assert code == 2
    assert "`out` must hold no file data.yaml of another kind" in err
    assert files_in(tmp_path / "other") == ["data.yaml"]


def test_copies_where_links_are_refused(photos_in, tmp_path, capsys, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(files.os, "symlink", refuse)
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    copy = out / "images/a.jpg"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (photos_in / "a.jpg").read_bytes()
    picture(photos_in / "a.jpg", 7)
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    assert copy.read_bytes() == (photos_in / "a.jpg").read_bytes()
    assert len(yolo_set(out)) == 4


def test_links_are_no_photographs_and_no_predictions(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in / "sub", "--out", out, "--format", "png,yolo")
    masks = list(out.glob("*.png"))
    (tmp_path / "truth").mkdir()
    for mask in masks:
        shutil.copy(mask, tmp_path / "truth")
    scored = call(capsys, "eval", "--pred", out, "--gt", tmp_path / "truth", "--protocol", "paper")
    assert scored[0] == 0
    assert f"protocol paper, {len(masks)} image" in scored[1]
    assert "IoU    1.0000" in scored[1]
    code, _, err = call(capsys, "label", out / "images", "--out", tmp_path / "again")
    assert code == 2
    assert "results of selfment are not taken for images" in err


@pytest.mark.slow
def test_the_last_process_of_a_sharded_run_composes(photos_in, tmp_path):
    shards = [(0, 2), (1, 2)]
    for shard in shards:
        run([photos_in], tmp_path / "out", formats=["yolo"], shard=shard)
    assert len(yolo_set(tmp_path / "out")) == 4
    assert run([photos_in], tmp_path / "out", formats=["yolo"]) == LabelSummary(skipped=4)


ULTRALYTICS = """
import json, sys
from pathlib import Path
from ultralytics.data.utils import check_det_dataset
from ultralytics.data.dataset import YOLODataset

data = check_det_dataset(sys.argv[1])
found = YOLODataset(data["train"], data=data, task=sys.argv[2], augment=False, imgsz=64)
labels = {Path(one["im_file"]).name: (len(one["bboxes"]), len(one["segments"]))
          for one in found.labels}
print(json.dumps([data["names"], labels]))
"""
DATUMARO = """
import json, sys
from datumaro import Dataset

found = {}
for item in Dataset.import_from(sys.argv[1], sys.argv[2]):
    kinds = sorted(one.type.name for one in item.annotations)
    found[item.id] = kinds, list(item.media.data.shape[:2])
print(json.dumps(found))
"""


def read_by(library: str, code: str, folder: Path, *arguments: object) -> Any:
    """What a program that uses a large library prints, as JSON."""
    if find_spec(library) is None:
        pytest.skip(f"needs {library}, which no extra installs: it brings OpenCV and many more")
    home = folder / "home"
    home.mkdir()
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, "YOLO_CONFIG_DIR": str(home), "HOME": str(home)}
    return json.loads(processes.run(command, check=True, env=env).stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), [("detect", "yolo"), ("segment", "yolo-seg")])
def test_the_reader_of_ultralytics(photos_in, tmp_path, capsys, task, kind):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", kind)
    found = read_by("ultralytics", ULTRALYTICS, tmp_path, out / "data.yaml", task)
    counts = [1, int(task == "segment")]
    names = ("a.jpg", "a.png.png", "b.jpg", "c.png")
    assert found == [{"0": "object"}, dict.fromkeys(names, counts)]


@pytest.mark.slow
def test_the_readers_of_datumaro(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--format", "yolo")
    found = read_by("datumaro", DATUMARO, tmp_path, out, "yolo")
    assert sorted(found) == ["a", "a.png", "b", "c"]
    assert list(found.values()) == [[["bbox"], [30, 50]]] * 4
    (photos_in / "a.png").unlink()  # its reader of COCO tells images by their stems
    label(capsys, photos_in, "--out", out, "--format", "coco")
    (tmp_path / "set/annotations").mkdir(parents=True)
    (tmp_path / "set/annotations/instances_train.json").symlink_to(out / "annotations.json")
    (tmp_path / "set/images").symlink_to(photos_in)
    shutil.rmtree(tmp_path / "home")
    found = read_by("datumaro", DATUMARO, tmp_path, tmp_path / "set", "coco")
    assert list(found.values()) == [[["bbox", "mask"], [30, 50]]] * 3
