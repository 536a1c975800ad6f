"""tau="auto": Otsu's threshold of a sample of similarities, the same wherever it is computed."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, object_on_ground, smooth
from selfment import CutOptions, PseudoLabeler, reference
from selfment.core.threshold import auto_tau
from selfment.images.load import load_image
from selfment.methods import Selfment

ALL = CASES | DEGENERATE


def literal(features: Tensor) -> float:
    """Otsu's threshold in exact arithmetic, by trying every edge between two bins."""
    rows = features.double().numpy()
    n = len(rows)
    m = min(n, 128)
    sample = rows[[i * n // m for i in range(m)]]
    unit = sample / np.maximum(np.linalg.norm(sample, axis=1, keepdims=True), 1e-12)
    whole = np.rint(unit * 2**26)
    counts = [0] * 256
    for i in range(m):
        for j in range(i + 1, m):
            similarity = float(whole[i] @ whole[j]) / 2**52
            counts[min(255, max(0, int(np.floor((similarity + 1) * 128))))] += 1
    variances = []
    for edge in range(1, 256):
        low, high = sum(counts[:edge]), sum(counts[edge:])
        variance = Fraction(0)
        if low and high:
            below = Fraction(sum(k * counts[k] for k in range(edge)), low)
            above = Fraction(sum(k * counts[k] for k in range(edge, 256)), high)
            variance = low * high * (above - below) ** 2
        variances.append(variance)
    best = [k + 1 for k, v in enumerate(variances) if v == max(variances)]
    return max(1 / 128, float(Fraction(sum(best), len(best))) / 128 - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_equals_the_exact_rule(name: str) -> None:
    features, _ = ALL[name]
    found = auto_tau(features[None])
    assert (found.shape, found.dtype) == ((1,), torch.float64)
    assert found.item() == pytest.approx(literal(features), rel=1e-15)


def with_common_part(seed: int, share: float) -> Tensor:
    """An object, where all similarities are shifted by what all patches have in common."""
    rows = object_on_ground(24, 18, 40, seed=seed)
    return rows + share * rows.norm(dim=1).mean() / 40**0.5


def batch() -> Tensor:
    return torch.stack([with_common_part(seed, seed * 0.6) for seed in range(4)])


def test_each_image_has_its_own_alone_or_in_a_batch_on_any_number_of_threads() -> None:
    rows = batch()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = [selfment.pseudo_label(image, (24, 18), tau="auto") for image in rows]
        assert len({label.tau.item() for label in single}) == 4
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            label = selfment.pseudo_label(rows, (24, 18), tau="auto")
            for image, alone in enumerate(single):
                for name, ours in vars(label).items():
                    assert torch.equal(ours[image], getattr(alone, name)), name
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["binary", "weighted"])
def test_is_the_same_as_giving_the_threshold(graph: str) -> None:
    rows = batch()
    label = selfment.pseudo_label(rows, (24, 18), tau="auto", graph=graph)
    made = selfment.affinity(rows, tau="auto", graph=graph)
    values, vectors = selfment.ncut(rows, tau="auto", graph=graph)
    for image, features in enumerate(rows):
        tau = literal(features)
        assert label.tau[image].item() == tau
        given = selfment.affinity(features, tau=tau, graph=graph)
        assert torch.equal(made.to_dense()[image], given.to_dense())
        assert torch.equal(made.degrees[image], given.degrees)
        expected = selfment.ncut(features, tau=tau, graph=graph)
        assert torch.equal(values[image], expected[0])
        assert torch.equal(vectors[image], expected[1])
        plain = selfment.pseudo_label(features, (24, 18), tau=tau, graph=graph)
        assert torch.equal(label.mask[image], plain.mask)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["binary", "weighted"])
def test_the_reference_does_the_same(graph: str) -> None:
    rows = batch()
    ours = selfment.pseudo_label(rows, (24, 18), tau="auto", graph=graph)
    theirs = reference.pseudo_label(rows, (24, 18), tau="auto", graph=graph)
    for name in ("mask", "ncut_mask", "seed", "tau"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    dense = reference.affinity(rows[3], tau="auto", graph=graph)
    assert torch.equal(dense, reference.affinity(rows[3], tau=literal(rows[3]), graph=graph))
    values, _ = reference.ncut(rows, tau="auto", graph=graph)
    assert torch.equal(values[:, 0], theirs.eigenvalue)


def test_finds_objects_whose_patches_have_much_in_common() -> None:
    truth = torch.zeros(24, 18, dtype=torch.bool)
    truth[6:18, 6:12] = True
    rows = torch.stack([with_common_part(seed, 2.0) for seed in range(3)])

    label = selfment.pseudo_label(rows, (24, 18), tau="auto")
    assert (label.ncut_mask == truth).float().mean() > 0.97
    # The case needs it: at 0.2 every pair is connected, and no cut is better than another.
    assert torch.equal(
        selfment.affinity(rows, tau=0.2).degrees, torch.full((3, 432), 432.0).double()
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_and_strides(dtype: torch.dtype) -> None:
    rows = smooth(14, 11, 48).to(dtype)
    assert auto_tau(rows[None]).item() == literal(rows)
    wide = torch.zeros(154, 96, dtype=dtype)
    wide[:, ::2] = rows
    assert auto_tau(wide[None, :, ::2]).item() == literal(rows)


def test_what_is_not_finite_leaves_a_finite_threshold() -> None:
    rows = smooth(6, 8, 12)[None].clone()
    rows[0, ::3] = float("nan")
    rows[0, 1] = float("inf")
    assert 1 / 128 <= auto_tau(rows).item() < 1


def test_a_labeler_takes_it() -> None:
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau="auto")))
    assert json.loads(json.dumps(labeler.settings))["method"]["cut"]["tau"] == "auto"
    pixels = np.random.RandomState(0).randint(0, 255, (40, 60, 3)).astype(np.uint8)
    features = labeler.backbone(labeler.backbone.preprocess(load_image(pixels)[0], 96)[None])
    assert labeler(pixels).tau.item() == literal(features[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [selfment.affinity, selfment.ncut, reference.affinity, reference.ncut],
    ids=["affinity", "ncut", "reference.affinity", "reference.ncut"],
)
def test_another_word(function: object) -> None:
    with pytest.raises(ValueError, match="`tau` must be a finite number or 'auto': got 'otsu'"):
        function(smooth(3, 4, 5), tau="otsu")  # type: ignore[operator]
