"""The confidence is the stated rule, and tells images without an object from those with one."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, generator, noise, object_on_ground, smooth
from selfment import PseudoLabeler, PseudoLabels, reference
from selfment.core.confidence import confidence
from selfment.core.options import RECOMMENDED_MIN_CONFIDENCE
from selfment.images.draw import CAPTION, overlay
from selfment.images.load import find_images, load_image
from selfment.jobs.label import label_images
from selfment.methods import Selfment
from selfment.training.losses import head_loss

LIMIT = RECOMMENDED_MIN_CONFIDENCE


def literal(eigenvalue: float, gap: float, separation: float, mask: Tensor) -> float:
    """The rule as it is written down, patch by patch."""
    h, w = mask.shape
    inside = sum(bool(mask[y, x]) for y in range(h) for x in range(w))
    outside = h * w - inside
    if inside == 0 or outside == 0:
        return 0.0
    cost = min(1.0, max(0.0, eigenvalue))
    apart = max(0.0, min(1.0, separation**2) - 1 / inside - 1 / outside) ** 0.5
    ambiguous = cost / (cost + gap) if cost > 0 else 0.0
    corners = sum(bool(mask[y, x]) for y in (0, h - 1) for x in (0, w - 1))
    ground = inside / (h * w) * corners / 4
    return (1 - cost) * apart * (1 - ambiguous / 4 - ground / 4)


def of(eigenvalue: float, gap: float, separation: float, mask: Tensor) -> float:
    numbers = (torch.tensor([v], dtype=torch.float64) for v in (eigenvalue, gap, separation))
    found = confidence(*numbers, mask.flatten()[None], [tuple(mask.shape)])
    assert (found.shape, found.dtype) == ((1,), torch.float64)
    return found.item()


def masks() -> list[Tensor]:
    rng = generator(0)
    sizes = [(9, 12), (1, 30), (2, 2), (1, 1), (30, 1), (24, 24)]
    random = [torch.rand(h, w, generator=rng) < share for h, w in sizes for share in (0.1, 0.5, 1)]
    return [*random, *(torch.zeros(size, dtype=torch.bool) for size in sizes)]


def test_equals_the_rule_as_it_is_written_down() -> None:
    values = product((-1e-17, 0.0, 0.3, 1.0, 1.1), (0.0, 0.2, math.inf), (0.0, 0.4, 0.9, 1.5))
    for (eigenvalue, gap, separation), mask in product(values, masks()):
        expected = literal(eigenvalue, gap, separation, mask)
        found = of(eigenvalue, gap, separation, mask)
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-15)
        assert 0 <= found <= 1


def test_frames_of_a_joint_cut_have_corners_of_their_own() -> None:
    frames = [mask for mask in masks() if mask.numel() > 1]
    labels = torch.cat([mask.flatten() for mask in frames])
    corners = [float(m[y, x]) for m in frames for y in (0, -1) for x in (0, -1)]
    ground = labels.double().mean().item() * sum(corners) / len(corners)
    chance = 1 / labels.sum().item() + 1 / (~labels).sum().item()
    expected = 0.7 * (0.9**2 - chance) ** 0.5 * (1 - 0.75 / 4 - ground / 4)
    numbers = (torch.tensor([v], dtype=torch.float64) for v in (0.3, 0.1, 0.9))
    found = confidence(*numbers, labels[None], [tuple(mask.shape) for mask in frames])
    assert 0 < ground < 1
    assert found.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("eigenvalue", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("gap", [0.01, 0.3])
def test_is_monotone(eigenvalue: float, gap: float) -> None:
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:6, 2:9] = True
    here = of(eigenvalue, gap, 0.8, mask)
    assert of(eigenvalue + 0.05, gap, 0.8, mask) < here
    assert of(eigenvalue, gap, 0.7, mask) < here
    if eigenvalue > 0:
        assert of(eigenvalue, gap / 2, 0.8, mask) < here
    for count, (y, x) in enumerate(((0, 0), (0, 9), (9, 0), (9, 9))):
        mask[3, 2 + count] = False  # a corner for a patch that is none
        mask[y, x] = True
        cornered = of(eigenvalue, gap, 0.8, mask)
        assert cornered < here
        here = cornered


def test_nan_stays_and_is_no_reason_to_reject() -> None:
    assert math.isnan(of(math.nan, math.nan, math.nan, torch.zeros(3, 4, dtype=torch.bool)))


@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("name", CASES | DEGENERATE)
def test_fields_of_a_label(name: str, graph: str) -> None:
    features, grid = (CASES | DEGENERATE)[name]
    label = selfment.pseudo_label(features, grid, graph=graph)
    f, inside = features.double(), label.mask.flatten()
    f = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)).float().double()
    apart = 0.0
    if inside.any() and not inside.all():
        apart = (f[inside].mean(0) - f[~inside].mean(0)).norm().item()
    assert label.separation.item() == pytest.approx(apart, rel=1e-12, abs=1e-12)
    expected = literal(label.eigenvalue.item(), label.gap.item(), apart, label.mask)
    assert label.confidence.item() == pytest.approx(expected, rel=1e-9, abs=1e-7)
    assert not label.rejected.item()


def of_all_kinds() -> tuple[Tensor, tuple[int, int]]:
    """Of four images, the second and the last have no object."""
    rows = [smooth(12, 15, 48, seed=1), noise(12, 15, 48), object_on_ground(12, 15, 48)]
    return torch.stack([*rows, torch.ones(180, 48)]), (12, 15)


def test_an_image_below_the_limit_has_an_empty_mask_and_all_else() -> None:
    rows, grid = of_all_kinds()
    plain = selfment.pseudo_label(rows, grid)
    least = selfment.pseudo_label(rows, grid, min_confidence=LIMIT)
    assert not plain.rejected.any()
    assert least.rejected.tolist() == [False, True, False, True]
    assert not least.mask[least.rejected].any()
    assert torch.equal(least.mask[~least.rejected], plain.mask[~least.rejected])
    for field in fields(PseudoLabels):
        if field.name not in ("mask", "rejected"):
            assert torch.equal(getattr(least, field.name), getattr(plain, field.name)), field.name
    expected = reference.pseudo_label(rows[1:3], grid, min_confidence=LIMIT)
    assert torch.equal(expected.mask, least.mask[1:3])
    assert torch.equal(expected.rejected, least.rejected[1:3])


def test_the_limit_itself_is_enough() -> None:
    features, grid = CASES["smooth"]
    sure = selfment.pseudo_label(features, grid).confidence.item()
    assert not selfment.pseudo_label(features, grid, min_confidence=sure).rejected
    above = selfment.pseudo_label(features, grid, min_confidence=math.nextafter(sure, 1))
    assert above.rejected
    assert not above.mask.any()


@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("d", [64, 384, 768, 4096])
def test_features_of_noise_are_rejected(d: int, graph: str) -> None:
    for seed in range(2):
        rows = noise(20, 20, d, seed=seed + 100)
        label = selfment.pseudo_label(rows, (20, 20), graph=graph, min_confidence=LIMIT)
        assert label.rejected, (seed, label.confidence)


@pytest.mark.parametrize("seed", range(4))
def test_objects_are_not_rejected(seed: int) -> None:
    rows = object_on_ground(24, 18, 40, seed=seed + 100)
    assert selfment.pseudo_label(rows, (24, 18)).confidence > LIMIT


def test_images_of_noise_and_of_one_colour_are_rejected() -> None:
    stream = np.random.RandomState(7)
    uniform = stream.randint(0, 256, (2, 320, 320, 3))
    gaussian = (128 + 30 * stream.standard_normal((2, 320, 320, 3))).clip(0, 255)
    flat = np.ones((6, 320, 320, 3)) * stream.randint(0, 256, (6, 1, 1, 3))
    images = [*uniform.astype(np.uint8), *gaussian.astype(np.uint8), *flat.astype(np.uint8)]
    labels = PseudoLabeler(size=320, method=Selfment(min_confidence=LIMIT))(images)
    assert labels.rejected.all(), labels.confidence


def test_photographs_are_not_rejected(photos: list[Path]) -> None:
    labeler = PseudoLabeler(size=480, method=Selfment(min_confidence=LIMIT))
    labels = labeler([load_image(path)[0] for path in photos[1::24]])
    assert not labels.rejected.any(), labels.confidence


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, "high"])
def test_wrong_limit(value: object) -> None:
    message = r"`min_confidence` must be in \[0, 1\]: got "
    for function in (selfment.pseudo_label, reference.pseudo_label):
        with pytest.raises(ValueError, match=message):
            function(noise(3, 4, 5), (3, 4), min_confidence=value)
    with pytest.raises(ValueError, match=message):
        Selfment(min_confidence=value)


def test_files_of_a_rejected_image(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (90, 120, 30)).save(tmp_path / "flat.png")
    pixels = np.random.RandomState(0).randint(60, 90, (40, 50, 3)).astype(np.uint8)
    pixels[10:30, 15:35] = (220, 60, 30)
    Image.fromarray(pixels).save(tmp_path / "thing.png")
    images = find_images([tmp_path], out=tmp_path / "out")
    labeler = PseudoLabeler(size=160, method=Selfment(min_confidence=LIMIT))
    summary = label_images(images, tmp_path / "out", labeler, overlays=True, progress=False)
    assert summary.labelled == 2
    lines = map(json.loads, (tmp_path / "out/labels.jsonl").read_text().splitlines())
    records = {Path(line["image"]).name: line for line in lines}
    flat, thing = records["flat.png"], records["thing.png"]
    assert (flat["rejected"], flat["foreground"]) == (True, 0)
    assert flat["confidence"] < LIMIT < thing["confidence"]
    assert not thing["rejected"]
    assert thing["tau"] == 0.2
    assert thing["separation"] > 0
    assert not np.asarray(Image.open(tmp_path / "out" / flat["mask"])).any()
    assert np.asarray(Image.open(tmp_path / "out" / thing["mask"])).any()
    assert Image.open(tmp_path / "out" / flat["overlay"]).height == CAPTION + 40


def test_a_rejected_image_can_be_shown_and_trained_on() -> None:
    rows, grid = of_all_kinds()
    label = selfment.pseudo_label(rows[1], grid, min_confidence=LIMIT)
    assert overlay(Image.new("RGB", (30, 24)), label).height == CAPTION + 24
    logits = torch.randn(180, 2, generator=generator(0)).requires_grad_()
    embedding = torch.randn(180, 128, generator=generator(1)).requires_grad_()
    loss = head_loss(logits, embedding, label.mask.flatten())
    loss.total.backward()
    assert loss.total.isfinite()
    assert loss.contrastive == 0
    assert logits.grad is not None
    assert (logits.grad[:, 1] > 0).all(), "all of it is background"
