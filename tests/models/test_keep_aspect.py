"""Labels, heads and predictions of images in their aspect ratios, without padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import call
from helpers.pictures import picture, records
from selfment import PseudoLabeler, PseudoLabels, Segmenter, pseudo_label
from selfment.backbones import load_backbone
from selfment.backbones.base import resize
from selfment.methods import MultiObject, SelfMask
from selfment.models.head import load_head

SIZES = {
    "wide": (120, 50),
    "tall": (40, 90),
    "square": (64, 64),
    "thin": (200, 3),
    "wide2": (60, 25),
}
GRIDS = {"wide": (2, 6), "tall": (6, 3), "square": (6, 6), "thin": (1, 6), "wide2": (2, 6)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate(SIZES.items()):
        picture(tmp_path / f"photos/{name}.png", seed, size)
    return tmp_path / "photos"


def test_the_shorter_side_is_the_nearest_multiple_of_the_patch_size() -> None:
    backbone = load_backbone("classic")
    assert backbone.fitted_size((640, 480), 768) == (576, 768)
    assert backbone.fitted_size((480, 640), 768) == (768, 576)
    assert backbone.fitted_size((481, 321), 768) == (512, 768)
    with pytest.raises(ValueError, match="`size` must be a multiple of 16"):
        backbone.fitted_size((640, 480), 770)


def test_labels_are_those_of_the_resized_image(photos: Path) -> None:
    labeler = PseudoLabeler(size=96, keep_aspect=True, batch_size=2)
    paths = [photos / f"{name}.png" for name in SIZES]
    labels = labeler(paths)
    assert [tuple(one.mask.shape) for one in labels] == list(GRIDS.values())
    for path, one in zip(paths, labels, strict=True):
        h, w = GRIDS[path.stem]
        pixels = resize(Image.open(path), (w * 16, h * 16))
        features = labeler.backbone(labeler.backbone._standardised(pixels)[None])
        alone = pseudo_label(features[0], (h, w), orient="corners")
        assert torch.equal(one.mask, alone.mask)
        assert torch.equal(one.fiedler, alone.fiedler)
        assert torch.equal(labeler(path).mask, one.mask)
        row = labeler({"path": str(path)})
        assert np.array_equal(row["mask"], one.mask)
    assert isinstance(PseudoLabeler(size=96)(paths), PseudoLabels)
    with pytest.raises(ValueError, match="`keep_aspect` must be False for batches"):
        labeler({"path": [str(path) for path in paths]})


def test_several_objects_have_the_grid_of_their_image(photos: Path) -> None:
    labeler = PseudoLabeler(size=96, keep_aspect=True, method=MultiObject(2))
    found = labeler([photos / "wide.png", photos / "tall.png"])
    assert [tuple(objects.instances.shape) for objects in found] == [(2, 6), (6, 3)]


def test_voters_are_refused() -> None:
    with pytest.raises(ValueError, match="`keep_aspect` must be left alone with `voters`"):
        PseudoLabeler(method=SelfMask(voters=["statistics"]), keep_aspect=True)


def test_the_commands(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "labels"
    words = ("label", photos, "--out", out, "--size", 96, "--keep-aspect", "--overlay")
    code, _, err = call(capsys, *words)
    assert code == 0, err
    labeler = PseudoLabeler(size=96, keep_aspect=True)
    rows = records(out)
    for name, size in SIZES.items():
        mask = Image.open(out / f"{name}.png")
        assert mask.size == size
        label = labeler(photos / f"{name}.png")
        assert rows[f"{name}.png"]["foreground"] == pytest.approx(float(label.mask.float().mean()))
        resized = Image.fromarray(label.mask.numpy()).resize(size, Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(mask) > 0, np.asarray(resized))
    assert "0 labelled, 5 already done" in call(capsys, *words)[2]
    # Without the option the labels are others.
    assert "5 labelled, 0 already done" in call(capsys, *words[:6], "--overlay")[2]


def test_a_head_is_trained_and_used_so(photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    from selfment.training import loop

    def spy(head, samples, **options):
        seen.update({n: tuple(samples[i][1].shape) for i, n in enumerate(samples.names)})
        return loop.fit(head, samples, **options)

    monkeypatch.setattr("selfment.training.run.fit", spy)
    words = ("train", photos, "--size", 96, "--keep-aspect", "--epochs", 8, "--batch", 2)
    err = call(capsys, *words, "--out", tmp_path / "run")[2]
    assert "trained on 5 images, 0 failed" in err
    assert "cache: up to 0.1 MiB for each of 5 images" in err
    assert seen == {f"{name}.png": (h * w,) for name, (h, w) in GRIDS.items()}
    labels = tmp_path / "labels"
    call(capsys, "label", photos, "--out", labels, "--size", 96, "--keep-aspect")
    seen.clear()
    err = call(capsys, *words, "--out", tmp_path / "masks", "--labels", labels)[2]
    assert "trained on 5 images, 0 failed" in err
    assert seen == {f"{name}.png": (h * w,) for name, (h, w) in GRIDS.items()}
    # Cached features without labels know their grid, too.
    again = (*words, "--tau", "0.3", "--cache", tmp_path / "run/cache", "--out", tmp_path / "tau")
    assert "trained on 5 images, 0 failed" in call(capsys, *again)[2]

    head = load_head(tmp_path / "run/head")[1]
    assert (head.keep_aspect, head.settings["keep_aspect"]) == (True, True)
    settings = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    assert settings["keep_aspect"] is True
    assert Segmenter(tmp_path / "run/head").keep_aspect
    assert not Segmenter(tmp_path / "run/head", keep_aspect=False).keep_aspect
    for option, keeps in (((), True), (("--no-keep-aspect",), False)):
        out = tmp_path / f"predictions{keeps}"
        words = ("predict", photos, "--head", tmp_path / "run/head", "--out", out, "--size", 96)
        assert call(capsys, *words, *option)[0] == 0
        segmenter = Segmenter(tmp_path / "run/head", size=96, keep_aspect=keeps)
        expected = (255 * segmenter(photos / "wide.png").numpy()).astype(np.uint8)
        assert np.array_equal(np.asarray(Image.open(out / "wide_saliency.png")), expected)
