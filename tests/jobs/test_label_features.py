"""`selfment label` on files of patch features, alone and with their images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import processes
from helpers.commands import call
from helpers.pictures import files_in, picture, records
from selfment import pseudo_label, refine_mask
from selfment.backbones import load_backbone

GRID = (6, 8)
SIZES = {"a.jpg": (64, 48), "sub/b.png": (120, 90), "c.png": (77, 50)}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Photographs in `photos`, and their features in `features`."""
    backbone = load_backbone("statistics")
    for seed, (name, size) in enumerate(SIZES.items()):
        photo = Image.open(picture(tmp_path / "photos" / name, seed, size))
        pixels = np.asarray(photo.resize((128, 96)), dtype=np.float32) / 255
        rows = backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
        file = (tmp_path / "features" / name).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, rows.numpy().astype(np.float16))
    return tmp_path


def mask_of(inputs: Path, name: str) -> np.ndarray:
    file = (inputs / "features" / name).with_suffix(".npy")
    return np.asarray(pseudo_label(np.load(file), GRID).mask)


def label(capsys, inputs: Path, *options: object) -> tuple[int, str]:
    words = ("label", inputs / "features", "--grid", "6x8", "--out", inputs / "out", *options)
    code, _, err = call(capsys, *words)
    return code, err


def test_masks_at_the_size_of_the_grid(inputs: Path, capsys) -> None:
    assert "3 labelled, 0 already done, 0 failed" in label(capsys, inputs)[1]
    assert "0 labelled, 3 already done, 0 failed" in label(capsys, inputs)[1]
    assert files_in(inputs / "out") == ["a.png", "c.png", "labels.jsonl", "sub/b.png"]
    for name in SIZES:
        mask = np.asarray(Image.open((inputs / "out" / name).with_suffix(".png")))
        assert np.array_equal(mask, 255 * mask_of(inputs, name))
    row = records(inputs / "out")["b.npy"]
    assert (row["image"], row["path"]) == ("sub/b.npy", str(inputs / "features/sub/b.npy"))
    assert 0 < row["foreground"] < 1
    # Other features of a file, and another reading of all files, make other labels.
    np.save(inputs / "features/a.npy", np.load(inputs / "features/c.npy"))
    assert "1 labelled, 2 already done, 0 failed" in label(capsys, inputs)[1]
    assert "3 labelled, 0 already done, 0 failed" in label(capsys, inputs, "--tau", "0.3")[1]
    words = ("label", inputs / "features", "--grid", "8x6", "--out", inputs / "out")
    assert "3 labelled, 0 already done, 0 failed" in call(capsys, *words, "--tau", "0.3")[2]


def test_masks_and_all_files_at_the_size_of_the_images(inputs: Path, capsys) -> None:
    pytest.importorskip("pycocotools")
    options = ("--images", inputs / "photos", "--overlay", "--format", "png,coco,yolo")
    code, err = label(capsys, inputs, *options)
    assert code == 0, err
    assert "0 labelled, 3 already done, 0 failed" in label(capsys, inputs, *options)[1]
    out = inputs / "out"
    for name, size in SIZES.items():
        mask = Image.open((out / name).with_suffix(".png"))
        expected = Image.fromarray(mask_of(inputs, name)).resize(size, Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(mask) > 0, np.asarray(expected))
        assert (out / "overlays" / name).with_suffix(".jpg").is_file()
    row = records(out)["b.png"]
    assert (row["image"], row["path"]) == ("sub/b.png", str(inputs / "photos/sub/b.png"))
    assert row["features"]["path"] == str(inputs / "features/sub/b.npy")
    images = json.loads((out / "annotations.json").read_text())["images"]
    assert {i["file_name"]: (i["width"], i["height"]) for i in images} == SIZES
    # An image is labelled again when its features or its pixels change, and only then.
    os.utime(inputs / "features/sub/b.npy", ns=(1, 1))
    assert "1 labelled, 2 already done" in label(capsys, inputs, *options)[1]
    picture(inputs / "photos/c.png", 9, SIZES["c.png"])
    assert "1 labelled, 2 already done" in label(capsys, inputs, *options)[1]
    assert "0 labelled, 3 already done" in label(capsys, inputs, *options)[1]
    # These labels are trained on like any others.
    words = ("train", inputs / "photos", "--labels", out, "--out", inputs / "run", "--size", 96)
    assert "trained on 3 images, 0 failed" in call(capsys, *words, "--epochs", 1)[2]


def test_masks_are_refined_along_the_edges_of_the_images(inputs: Path, capsys) -> None:
    options = ("--images", inputs / "photos", "--refine", "bilateral", "--fill-holes")
    assert label(capsys, inputs, *options)[0] == 0
    for name in SIZES:
        mask = np.asarray(Image.open((inputs / "out" / name).with_suffix(".png"))) > 0
        photo = inputs / "photos" / name
        refined = refine_mask(mask_of(inputs, name), photo, "bilateral", fill_holes=True)
        assert np.array_equal(mask, refined)


def test_holes_are_filled_without_images_too(inputs: Path, capsys) -> None:
    rows = np.tile(np.float32([1, 0]), (48, 1))
    ring = np.zeros(GRID, bool)
    ring[1:5, 1:6], ring[2:4, 2:5] = True, False
    rows[ring.ravel()] = (-1, 0.5)
    np.save(inputs / "features/a.npy", rows)
    assert label(capsys, inputs, "--fill-holes")[0] == 0
    mask = np.asarray(Image.open(inputs / "out/a.png")) > 0
    assert mask.sum() == 20
    assert mask[1:5, 1:6].all()


def test_broken_files_and_missing_partners_are_told(inputs: Path, capsys) -> None:
    (inputs / "features/c.npy").write_bytes(b"not features")
    bad = np.full((48, 4), np.nan, np.float32)
    np.save(inputs / "features/sub/b.npy", bad)
    np.save(inputs / "features/lonely.npy", bad)
    picture(inputs / "photos/d.png", 5)
    code, err = label(capsys, inputs, "--images", inputs / "photos", "--batch", 3)
    assert code == 1
    assert "1 labelled, 0 already done, 2 failed" in err
    assert "files of features without an image: 1, as lonely.npy\n" in err
    assert "images without features: 1, as d.png\n" in err
    errors = {name: row["error"] for name, row in records(inputs / "out").items()}
    assert errors["a.jpg"] is None
    photo, file = inputs / "photos/c.png", inputs / "features/c.npy"
    assert errors["c.png"] == (
        f"cannot label {photo}: cannot read {file}: it is damaged, or has objects, which are not "
        "loaded"
    )
    assert "`features` must be finite" in errors["b.png"]
    np.save(file, np.load(inputs / "features/a.npy"))
    _, err = label(capsys, inputs, "--images", inputs / "photos")
    assert "1 labelled, 1 already done, 1 failed" in err


def test_images_that_share_a_stem(inputs: Path, capsys) -> None:
    picture(inputs / "photos/a.png", 7, (32, 32))
    images = ("--images", inputs / "photos")
    code, err = label(capsys, inputs, *images)
    assert (code, "files of features without an image: 1, as a.npy" in err) == (1, True)
    (inputs / "features/a.npy").rename(inputs / "features/a.jpg.npy")
    code, err = label(capsys, inputs, *images)
    assert (code, "images without features: 1, as a.png" in err) == (0, True)
    assert Image.open(inputs / "out/a.jpg.png").size == SIZES["a.jpg"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("features",), "the folder 'features' holds no image: 3 files were left out: 3 .npy (not"),
        (("features/a.npy",), "`grid` must be given with files of features, as --grid 48x48: got"),
        (("features", "--grid", "6x8", "--overlay"), "`overlay` must come with the images of the"),
        (("features", "--grid", "6x8", "--refine", "crf"), "`refine` must come with the images of"),
        (("features", "--grid", "6x8", "--format", "yolo"), "`format` must come with the images"),
        (("features", "--grid", "6x8", "--size", "96"), "`size` must be left alone with `grid`"),
        (("features", "--grid", "6x8", "--samples"), "`samples` must be left alone with `grid`"),
        (("features", "--grid", "6x8", "--keep-aspect"), "`keep_aspect` must be left alone with"),
        (("features", "--grid", "6x8", "--method", "found"), "`method` 'found' needs a ViT's"),
        (
            ("features", "--grid", "6x8", "--prefix-tokens", "-1"),
            "`prefix_tokens` must be an inte",
        ),
        (("features", "--grid", "6x8", "--images", "other"), "`images` must hold images named aft"),
        (("photos", "--images", "photos"), "`images` must be left alone without `grid`"),
        (("features", "--grid", "48"), "argument --grid: must be HxW, the rows and columns of pat"),
        (("features", "--grid", "0x8"), "argument --grid: must be HxW, the rows and columns of pa"),
    ],
)
def test_wrong_options_are_one_sentence(
    inputs: Path, capsys, monkeypatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(inputs)
    picture(inputs / "other/x.png")
    code, _, err = call(capsys, "label", *words, "--out", "out")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"selfment label: {sentence}")
    assert not Path("out").exists()


@pytest.mark.slow
def test_two_processes_share_the_files(inputs: Path) -> None:
    folders = {name: str(inputs / name) for name in ("features", "photos", "out")}
    words = ("label", folders["features"], "--grid", "6x8", "--images", folders["photos"])
    done = processes.torchrun(inputs, "-m", "selfment", *words, "--out", folders["out"])
    assert done.returncode == 0, done.stderr
    assert sorted(records(inputs / "out")) == ["a.jpg", "b.png", "c.png"]
    assert not list((inputs / "out").glob("labels-rank*"))
