"""Photographs are the same wherever they lie, and results are no photographs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.commands import call
from helpers.pictures import picture
from helpers.training import run
from selfment import PseudoLabeler, PseudoLabels
from selfment.evaluation.pairs import match
from selfment.images import suffixes as _suffixes
from selfment.images.load import ImageError, find_images, load_image
from selfment.jobs.predict import find_inputs, predict_images
from selfment.models.head import PatchHead
from selfment.models.segmenter import Segmenter

SMALL = ("--size", 48, "--threads", 1)


PHOTOS = ("a.png", "b.png", "sub/c.png")  # of the fixture photos_in


def label(capsys: Any, *arguments: object) -> str:
    """The counts that a run without failures ends with."""
    code, _, err = call(capsys, "label", *arguments, *SMALL)
    assert code == 0, err
    return err


def masks(out: Path) -> list[str]:
    return sorted(str(file.relative_to(out)) for file in out.rglob("*.png"))


def coco_names(out: Path) -> list[str]:
    content = json.loads((out / "annotations.json").read_text())
    assert content["licenses"] == []
    return [image["file_name"] for image in content["images"]]


@pytest.mark.parametrize("way", ["moved", "copied", "linked"])
def test_photographs_elsewhere_are_the_same(photos_in, tmp_path, capsys, way):
    out, there = tmp_path / "out", tmp_path / "elsewhere" / "renamed"
    options = ("--out", out, "--format", "png,coco")
    assert "3 labelled" in label(capsys, photos_in, *options)
    before = masks(out)
    there.parent.mkdir()
    if way == "moved":
        photos_in.rename(there)
    elif way == "copied":
        shutil.copytree(photos_in, there, copy_function=shutil.copyfile)
        shutil.rmtree(photos_in)
    else:
        there.symlink_to(photos_in)
    assert "0 labelled, 3 already done" in label(capsys, there, *options)
    assert masks(out) == before == ["a.png", "b.png", "sub/c.png"]
    names = coco_names(out)
    assert names == ["a.png", "b.png", "sub/c.png"]
    assert all((there / name).is_file() for name in names)
    # It is known from then on: nothing is written again.
    stamp = (out / "labels.jsonl").stat().st_mtime_ns
    assert "3 already done" in label(capsys, there, *options)
    assert (out / "labels.jsonl").stat().st_mtime_ns == stamp


def test_other_photographs_of_the_same_names_are_not_mixed(photos_in, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    label(capsys, photos_in, "--out", out)
    first = {name: (out / name).read_bytes() for name in masks(out)}
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        # The same size in bytes and the same time, as raw pixels of a camera have.
        path = picture(other / name, 10 + seed)
        stat = (photos_in / name).stat()
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    err = label(capsys, other, "--out", out)
    assert "3 labelled" in err
    assert "other images have the same names" in err
    assert {name: (out / name).read_bytes() for name in first} == first
    assert len(masks(out)) == 6
    # Both are found again, wherever they lie by then.
    other.rename(tmp_path / "moved")
    assert "3 already done" in label(capsys, tmp_path / "moved", "--out", out)
    assert "3 already done" in label(capsys, photos_in, "--out", out)
    assert len(masks(out)) == 6


def test_a_photograph_that_has_changed_keeps_its_name(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out)
    picture(photos_in / "a.png", 7, (50, 30))
    assert "1 labelled, 2 already done" in label(capsys, photos_in, "--out", out)
    # And so it does where it has changed in a folder that has moved.
    photos_in.rename(tmp_path / "moved")
    picture(tmp_path / "moved/b.png", 8, (50, 30))
    assert "1 labelled, 2 already done" in label(capsys, tmp_path / "moved", "--out", out)
    assert masks(out) == ["a.png", "b.png", "sub/c.png"]
    assert Image.open(out / "b.png").size == (50, 30)


def test_other_ways_to_name_the_same_files(photos_in, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out)
    monkeypatch.chdir(tmp_path)
    for given in (["photos"], ["photos/*"], ["photos/sub/c.png"], ["./photos/../photos/sub"]):
        assert "0 labelled" in label(capsys, *given, "--out", out)
    assert masks(out) == ["a.png", "b.png", "sub/c.png"]


def test_folders_with_the_same_names_at_once_and_alone(tmp_path, capsys):
    out = tmp_path / "out"
    for seed, name in enumerate(("x/a.png", "y/a.png")):
        picture(tmp_path / "in" / name, seed)
    one, two = tmp_path / "in/x", tmp_path / "in/y"
    assert "2 labelled" in label(capsys, one, two, "--out", out)
    assert masks(out) == ["x/a.png", "y/a.png"]
    assert "0 labelled, 1 already done" in label(capsys, two, "--out", out)


def test_a_set_names_the_files_of_one_folder(photos_in, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    options = ("--out", out, "--format", "coco")
    label(capsys, photos_in / "sub/c.png", *options)
    assert coco_names(out) == ["c.png"]
    label(capsys, photos_in, *options)
    names = ["a.png", "b.png", "sub/c.png"]
    assert sorted(coco_names(out)) == names
    label(capsys, photos_in / "sub", *options)
    assert sorted(coco_names(out)) == names
    # As if both folders had been labelled at once, although two images have the name a.png.
    picture(other / "a.png", 10)
    label(capsys, other, *options)
    assert sorted(coco_names(out)) == ["other/a.png", *(f"photos/{name}" for name in names)]


def test_a_set_names_files_behind_links(photos_in, tmp_path, capsys):
    (photos_in / "sub").rename(tmp_path / "elsewhere")
    (photos_in / "sub").symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "out"
    inputs = (photos_in / "a.png", photos_in / "b.png", photos_in / "sub")
    label(capsys, *inputs, "--out", out, "--format", "coco")
    names = ["a.png", "b.png", "sub/c.png"]
    assert coco_names(out) == names
    picture(tmp_path / "other/0.png", 10)
    label(capsys, tmp_path / "other", "--out", out, "--format", "coco")
    assert coco_names(out) == ["other/0.png", *(f"photos/{name}" for name in names)]
    # Where the folder of the names is not known, the files themselves are named.
    label(capsys, photos_in / "sub/c.png", "--out", tmp_path / "one", "--format", "coco")
    assert coco_names(tmp_path / "one") == ["c.png"]


def test_photographs_that_are_gone_are_not_in_the_set(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    options = (photos_in, "--out", out, "--format", "coco")
    label(capsys, *options)
    (photos_in / "b.png").unlink()
    assert "without an image that is gone, as b.png" in label(capsys, *options)
    assert coco_names(out) == ["a.png", "sub/c.png"]


def test_a_training_goes_on_with_photographs_that_have_moved(photos_in, tmp_path):
    run(photos_in, tmp_path / "run", epochs=1)
    moved = photos_in.rename(tmp_path / "moved")
    assert run(moved, tmp_path / "run", epochs=2, resume=True).steps == 3
    picture(moved / "a.png", 9)
    with pytest.raises(ValueError, match=r"a\.png has changed"):
        run(moved, tmp_path / "run", epochs=2, resume=True)


def test_results_are_not_taken_for_photographs(photos_in, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(photos_in)
    assert "3 labelled" in label(capsys, ".", "--out", "one", "--overlay")
    err = label(capsys, ".", "--out", "two", "--overlay")
    assert "3 labelled" in err
    assert "1 folder with results of selfment was not searched" in err
    for pattern in (".", "*", "**/*.png", "**"):
        found = find_images(pattern)
        assert [entry.path.name for entry in found] == ["a.png", "b.png", "c.png"], pattern
    capsys.readouterr()
    code, _, err = call(capsys, "label", "one", "--out", "three", *SMALL)
    assert code == 2
    assert "results of selfment are not taken for images" in err
    assert call(capsys, "label", "one/overlays", "--out", "three", *SMALL)[0] == 2


def test_photographs_beside_records_are_taken(photos_in, tmp_path, capsys):
    label(capsys, photos_in, "--out", tmp_path)
    found = find_images(tmp_path)
    assert [entry.name for entry in found] == [f"photos/{name}" for name in masks(photos_in)]
    assert "3 files were left out, which records beside them name" in capsys.readouterr().err


def test_files_of_others_named_as_records_are_no_reason(photos_in):
    (photos_in / "sub/labels.jsonl").write_text('{"image": "c.png", "text": "a caption"}\n')
    assert len(find_images(photos_in)) == 3


@pytest.fixture
def truths(photos_in: Path, tmp_path: Path) -> Path:
    for file in photos_in.rglob("*.png"):
        there = tmp_path / "truths" / file.relative_to(photos_in)
        there.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tri(30, 40, dtype=np.uint8) * 255).save(there)
    return tmp_path / "truths"


def test_overlays_are_not_scored(photos_in, truths, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out, "--overlay")
    pairs, missing, extra = match(out, truths)
    assert [pair.prediction for pair in pairs] == [out / name for name in masks(photos_in)]
    assert not missing
    assert not extra
    assert call(capsys, "eval", "--pred", out, "--gt", truths)[0] == 0


def test_labels_and_predictions_in_one_folder(photos_in, truths, tmp_path, capsys):
    out = tmp_path / "out"
    label(capsys, photos_in, "--out", out)
    head = PatchHead(384).eval()
    segmenter = Segmenter(head, "classic", 48)
    predict_images(find_inputs(photos_in), out, segmenter, overlays=True, binary=0.5)
    capsys.readouterr()
    pairs, missing, extra = match(out, truths)
    assert {pair.prediction.name for pair in pairs} == {f"{n}_saliency.png" for n in "abc"}
    assert not missing
    assert not extra
    assert "the predictions are scored" in capsys.readouterr().err
    for suffix, end in (("", ""), ("_mask", "_mask"), ("_saliency", "_saliency")):
        pairs, missing, extra = match(out, truths, suffix)
        assert {pair.prediction.name for pair in pairs} == {f"{n}{end}.png" for n in "abc"}
        assert not missing
        assert not extra


def test_boxes_of_the_first_of_two_suffixes_are_where_they_are_looked_for(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        picture(folder / name, seed)
    options = (folder, "--out", out, "--format", "png,yolo")
    picture(folder / "a.png", 2)
    err = label(capsys, *options)
    assert (
        "the boxes of a.png are in labels/a.png.txt, where programs find them by data.yaml" in err
    )
    names = ["a.png.txt", "a.txt", "b.txt"]
    assert sorted(file.name for file in (out / "labels").iterdir()) == names
    assert [name for name in masks(out) if not name.startswith("images/")] == [
        *("a.jpg.png", "a.png.png", "b.png")
    ]
    # An image that comes first later takes no file of another.
    picture(folder / "a.bmp", 3)
    assert "1 labelled, 3 already done" in label(capsys, *options)
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    boxes = {row["image"]: row["boxes"] for row in rows}
    assert boxes["a.jpg"] == "labels/a.txt"
    assert len(set(boxes.values())) == 4
    # They go with their label, and only they.
    label(capsys, *options[:-1], "png", "--tau", 0.3)
    assert not list((out / "labels").iterdir())


@pytest.mark.parametrize("command", ["train", "predict"])
def test_what_is_left_out_is_said(photos_in, tmp_path, capsys, command):
    for name in ("x.HEIC", "y.heic", "z.nef", "clip.wmv", "notes.txt", "code.ts", "a.json"):
        (photos_in / name).write_bytes(b"nothing")
    suffixes = _suffixes.image_suffixes() - {".heic"}
    if command == "train":
        assert len(find_images(photos_in, suffixes=suffixes)) == 3
    else:
        found = find_images(photos_in, suffixes={*suffixes, *_suffixes.VIDEO_SUFFIXES})
        assert [entry.path.name for entry in found] == ["a.png", "b.png", "clip.wmv", "c.png"]
    (err,) = capsys.readouterr().err.splitlines()
    assert err.startswith(f"{7 if command == 'train' else 6} files were left out: ")
    assert "2 .heic (no reader is installed: pip install pillow-heif)" in err
    assert "1 .nef (raw data of a camera, to be developed first, as to TIFF)" in err
    video = "1 .wmv (a video, which selfment label and selfment predict take, but not"
    assert (video in err) == (command == "train")
    others = ".json, .ts, .txt" if command == "train" else ".json, .txt"
    assert err.endswith(f"of no kind that is read ({others})")
    assert ("1 .ts (not an MPEG stream)" in err) == (command == "predict")


def test_videos_by_suffix_and_what_they_begin_with(tmp_path):
    stream = (b"\x47" + bytes(187)) * 3
    (tmp_path / "a.ts").write_bytes(stream)
    (tmp_path / "b.mts").write_bytes(b"".join(bytes(4) + b"\x47" + bytes(187) for _ in range(3)))
    (tmp_path / "c.ts").write_text("export const value = 1;\n" * 20)
    for name in ("d.mpg", "e.flv", "f.3gp", "g.ogv", "h.WMV"):
        (tmp_path / name).touch()
    found = [entry.path.name for entry in find_inputs(tmp_path)]
    assert found == ["a.ts", "b.mts", "d.mpg", "e.flv", "f.3gp", "g.ogv", "h.WMV"]


def test_a_video_that_is_loaded_as_an_image_is_named_as_one(tmp_path):
    (tmp_path / "clip.mpg").write_bytes(b"\0\0\1\xba" + bytes(100))
    with pytest.raises(ImageError, match="a video, which `selfment label` and `selfment predict`"):
        load_image(tmp_path / "clip.mpg")


def test_plug_ins_of_pillow_are_used(photos_in, monkeypatch):
    (photos_in / "x.heic").write_bytes(b"nothing")
    assert "x.heic" not in [entry.name for entry in find_images(photos_in, suffixes={".png"})]
    extensions = {**Image.registered_extensions(), ".heic": "PNG"}
    monkeypatch.setattr(Image, "registered_extensions", lambda: extensions)
    assert "x.heic" in [entry.name for entry in find_images(photos_in)]


def test_a_folder_that_may_not_be_listed_fails_the_run(photos_in, tmp_path, capsys, monkeypatch):
    scandir = os.scandir

    def forbidden(path: Any) -> Any:
        if os.fspath(path) == str(photos_in / "sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    code, _, err = call(capsys, "label", photos_in, "--out", tmp_path / "out", *SMALL)
    assert code == 1
    assert f"cannot list {photos_in}/sub: what is in there is left out" in err
    assert "2 labelled, 0 already done, 0 failed" in err
    assert find_images([photos_in]).unlisted == (str(photos_in / "sub"),)


def test_one_input_is_a_string_or_a_path(photos_in, monkeypatch):
    monkeypatch.chdir(photos_in.parent)
    expected = find_images([photos_in])
    assert find_images("photos") == find_images(Path("photos")) == expected
    assert find_inputs("photos") == expected


@pytest.mark.parametrize("column", ["path", "image"])
def test_a_row_of_one_image(photos_in, column):
    labeler = PseudoLabeler(size=48)
    for value in (photos_in / "a.png", str(photos_in / "a.png")):
        entry = np.asarray(Image.open(value)) if column == "image" else value
        row = labeler({column: entry, "id": 3})
        assert row["id"] == 3
        expected = labeler(value)
        for name in (field.name for field in dataclasses.fields(PseudoLabels)):
            assert np.array_equal(row[name], getattr(expected, name).numpy(), equal_nan=True), name


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "eval"])
def test_a_closed_pipe_ends_a_command_quietly(truths, command):
    arguments = ["--pred", truths, "--gt", truths] if command == "eval" else []
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-m", "selfment", command, *map(str, arguments)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    os.close(writer)
    assert process.returncode == 141
    assert "Traceback" not in process.stderr
    assert "roken" not in process.stderr
