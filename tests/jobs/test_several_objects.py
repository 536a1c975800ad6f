"""Several objects of an image: labels, files and the command line."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.scenes import coco_of, labeler
from selfment import PseudoLabeler, cli, multi_label, refine_mask
from selfment.images.draw import CAPTION, GAP, overlay_instances
from selfment.images.load import find_images, sample_images
from selfment.methods import MultiObject, Selfment
from selfment.training.run import train


def test_the_labeler_finds_what_multi_label_finds(scenes):
    model = labeler(tau=0.3)
    paths = sorted(scenes.rglob("*.*g"))
    batch = torch.stack([model.preprocess(Image.open(path).convert("RGB")) for path in paths])
    features, grid = model.backbone(batch), model.backbone.grid(160)
    expected = multi_label(features, grid, max_objects=3, tau=0.3, orient="corners")
    for found in (model(paths), pickle.loads(pickle.dumps(model))(paths)):
        assert len(found) == 3
        for one, other in zip(found, expected, strict=True):
            for name, value in vars(one).items():
                assert torch.equal(value, getattr(other, name)), name
    assert torch.equal(model(paths[0]).masks, expected[0].masks)
    assert model.settings["method"]["max_objects"] == 3
    name = "vit_small_patch16_224"  # which marks objects by itself
    labelers = [PseudoLabeler(name, 160, method=method) for method in (Selfment(), MultiObject(1))]
    orients = [labeler.method.cut.orient for labeler in labelers]
    assert orients == ["seed", "corners"]


def test_objects_are_no_single_mask(scenes, tmp_path):
    model = labeler(MultiObject(np.int64(2)))
    assert json.dumps(model.settings["method"]["max_objects"]) == "2"
    sentence = r"`method` must make one mask of each image for training: got MultiObject\(max_obj"
    with pytest.raises(ValueError, match=sentence):
        train(find_images([scenes], out=tmp_path), tmp_path / "run", model, epochs=1)


def test_a_batch_of_objects_has_columns_of_fixed_shapes(scenes):
    model = labeler(MultiObject(4))
    paths = sorted(map(str, scenes.rglob("*.*g")))
    columns = model({"path": np.array(paths), "other": np.arange(3)})
    assert columns["instances"].shape == (3, 10, 10)
    assert columns["boxes"].shape == (3, 4, 4)
    assert np.array_equal(columns["other"], np.arange(3))
    for i, objects in enumerate(model(paths)):
        count = columns["count"][i]
        assert count == len(objects.masks) < 4
        for name, filling in (("boxes", 0), ("seeds", -1), ("eigenvalues", np.nan)):
            assert np.array_equal(columns[name][i, :count], getattr(objects, name))
            rest = columns[name][i, count:]
            assert np.array_equal(rest, np.full_like(rest, filling), equal_nan=name != "seeds")
        assert np.array_equal(columns["instances"][i], objects.instances)


@pytest.mark.parametrize("count", [0, 1.5, True])
def test_a_wrong_number_of_objects(count):
    with pytest.raises(ValueError, match=f"`max_objects` must be an integer >= 1: got {count}"):
        MultiObject(count)


def test_objects_are_drawn_in_colours_of_their_own():
    instances = np.zeros((40, 60), dtype=int)
    for number in range(1, 7):
        instances[5:35, 10 * number - 8 : 10 * number] = number
    drawn = np.asarray(overlay_instances(np.full((40, 60, 3), 128, np.uint8), instances))
    assert drawn.shape == (CAPTION + 40, 60 + GAP + 60, 3)
    panel = drawn[CAPTION:, 60 + GAP :].astype(int)
    colours = [panel[instances == number] for number in range(7)]
    assert all((pixels == pixels[0]).all() for pixels in colours)
    for i in range(7):
        for j in range(i):
            assert np.abs(colours[i][0] - colours[j][0]).sum() > 30


def label_samples(out: Path, *options: str) -> int:
    arguments = ["label", "--samples", "--out", str(out), "--size", "160", *map(str, options)]
    return cli.main(arguments)


def test_the_command_line_writes_objects_in_all_formats(tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--objects", 3, "--format", "coco,yolo,png", "--overlay")
    assert label_samples(out, *options) == 0
    coco = coco_of(out / "annotations.json")
    entries = sample_images()
    assert [one["file_name"] for one in coco.dataset["images"]] == [e.path.name for e in entries]
    model = PseudoLabeler(size=160, method=MultiObject(3))
    counts = [len(model(entry.path).masks) for entry in entries]
    assert [len(coco.getAnnIds(imgIds=one["id"])) for one in coco.dataset["images"]] == counts
    for entry, count in zip(entries, counts, strict=True):
        assert np.asarray(Image.open(out / entry.mask_name)).max() == count
        stem = Path(entry.mask_name).stem
        assert len((out / f"labels/{stem}.txt").read_text().splitlines()) == count
    panels = Image.open(out / "overlays/chelsea.jpg")
    assert panels.size == (2 * 451 + GAP, CAPTION + 300)


def test_the_help_says_that_numbers_of_objects_are_not_scored(capsys):
    with pytest.raises(SystemExit):
        cli.main(["label", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "PNG files hold their numbers, not for eval" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--refine", "bilateral"], {"method": "bilateral"}),
        (["--refine", "guided"], {"method": "guided"}),
        (["--fill-holes", "--size", 480], {"fill_holes": True}),
        (["--largest-component"], {"largest_component": True}),
    ],
)
def test_the_command_line_refines(tmp_path, options, steps):
    # Their masks have holes and several components.
    assert label_samples(tmp_path / "out", "--backbone", "statistics", *options) == 0
    entries = sample_images()
    model = PseudoLabeler("statistics", size=480 if 480 in options else 160)
    changed = 0
    for entry, mask in zip(entries, model([e.path for e in entries]).mask, strict=True):
        png = np.asarray(Image.open(tmp_path / "out" / entry.mask_name)) > 0
        assert np.array_equal(png, refine_mask(mask, entry.path, **steps))
        changed += not np.array_equal(png, refine_mask(mask, entry.path))
    assert changed > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--format", "png,voc"],
            "argument --format: must be of png, coco, yolo, yolo-seg, fiedler: got 'voc'",
        ),
        (["--objects", "0"], "`objects` must be an integer >= 1: got 0"),
    ],
)
def test_wrong_options_are_one_sentence(tmp_path, capsys, options, sentence):
    try:
        code = label_samples(tmp_path / "out", *options)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
