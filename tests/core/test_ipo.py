"""IPO gives the labels of the specification's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, generator, noise, object_on_ground, smooth, turned_over
from selfment import reference
from selfment.core.ipo import run_ipo
from selfment.core.options import IpoOptions


def literal(features: Tensor, labels: Tensor, iters: int, min_count: int) -> Tensor:
    """The loop as it is written down, in float64: no early exit, no ties."""
    f = reference.normalize(features).double()
    label = labels.clone()
    if label.all() or not label.any():
        return label
    r = f[label].mean(0) - f[~label].mean(0)
    for _ in range(iters):
        if label.sum() < min_count or (~label).sum() < min_count:
            break
        label = f @ f[label].mean(0) > f @ f[~label].mean(0)
        if label.all() or not label.any():
            break
        if (f[label].mean(0) - f[~label].mean(0)) @ r < 0:
            label = ~label
    return label


def random_labels(n: int, share: float, seed: int) -> Tensor:
    return torch.rand(n, generator=generator(seed)) < share


# In these some patches tie exactly, which rounding decides in the literal loop.
TIES = ("isolated patches", "two components", "three components")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in TIES])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("iters", [0, 1, 2, 20, 200])
def test_equals_the_literal_loop(name: str, share: float, iters: int) -> None:
    features, _ = CASES[name]
    for seed in range(4):
        labels = random_labels(len(features), share, seed)
        for min_count in (1, 10):
            expected = literal(features, labels, iters, min_count)
            ours = selfment.ipo(features, labels, iters=iters, min_count=min_count)
            assert torch.equal(ours, expected)
            plain = reference.ipo(features, labels, iters=iters, min_count=min_count)
            assert torch.equal(plain, expected)


@pytest.mark.parametrize("name", CASES | DEGENERATE)
def test_equals_the_reference_with_its_steps(name: str) -> None:
    features, _ = (CASES | DEGENERATE)[name]
    for seed in range(6):
        labels = random_labels(len(features), 0.4, seed)
        expected, steps = reference._ipo(features, labels, IpoOptions())
        ours, taken, _ = run_ipo(features[None].contiguous(), labels[None], IpoOptions())
        assert torch.equal(ours[0], expected)
        assert taken.item() == steps


def distance(features: Tensor, labels: Tensor) -> float:
    """Of the means of the two classes' unit rows; 0 where a class is empty."""
    f = reference.normalize(features).double()
    if labels.all() or not labels.any():
        return 0.0
    return (f[labels].mean(0) - f[~labels].mean(0)).norm().item()


@pytest.mark.parametrize("name", CASES | DEGENERATE)
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
def test_separation_is_that_of_the_final_labels(name: str, share: float) -> None:
    """Wherever the loop ends: before its first step, at the limit, at a fixed point, or emptied."""
    features, _ = (CASES | DEGENERATE)[name]
    for seed, (iters, min_count) in enumerate([(0, 1), (1, 1), (20, 10), (200, 1), (5, 10**6)]):
        labels = random_labels(len(features), share, seed)
        ours, _, separation = run_ipo(
            features[None].contiguous(), labels[None], IpoOptions(iters=iters, min_count=min_count)
        )
        assert (separation.shape, separation.dtype) == ((1,), torch.float64)
        assert separation.item() == pytest.approx(distance(features, ours[0]), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_a_long_way_to_the_fixed_point(seed: int) -> None:
    """Many steps, of which the later ones change few labels: most rows are not read again."""
    features = smooth(40, 40, 30, seed=seed)
    start = torch.rand(1600, generator=generator(seed)) < 0.3
    refined, steps, _ = run_ipo(features[None], start[None], IpoOptions(iters=200, min_count=1))
    expected, taken = reference._ipo(features, start, IpoOptions(iters=200, min_count=1))
    assert torch.equal(refined[0], expected)
    assert steps.item() == int(taken) > 6


def test_improves_a_poor_start() -> None:
    features = object_on_ground(24, 18, 40)
    truth = torch.zeros(24, 18, dtype=torch.bool)
    truth[6:18, 6:12] = True
    start = truth.clone()
    start[:, 8:] = False
    start[:12] = False
    refined = selfment.ipo(features, start.flatten()).reshape(24, 18)
    assert (refined == truth).float().mean() > 0.97
    assert (start == truth).float().mean() < 0.9


@pytest.mark.parametrize("seed", [85, 575, 577, 643, 684])
def test_complements_labels_whose_means_turned_over(seed: int) -> None:
    features, labels = turned_over(seed)
    f = reference.normalize(features).double()

    def direction(label: Tensor) -> Tensor:
        return f[label].mean(0) - f[~label].mean(0)

    label, turned = labels, 0
    for _ in range(20):
        label = f @ direction(label) > 0
        if direction(label) @ direction(labels) < 0:
            label, turned = ~label, turned + 1
    assert turned > 0, "the case must need it"
    refined, _, separation = run_ipo(
        features[None], labels[None], IpoOptions(iters=20, min_count=1)
    )
    assert torch.equal(refined[0], label)
    assert separation.item() == pytest.approx(distance(features, label), rel=1e-12)


def test_exact_ties_are_background() -> None:
    # Zero rows score 0 against any means.
    features = torch.zeros(60, 8)
    features[:20, 0] = 1
    features[20:40, 1] = 1
    labels = torch.zeros(60, dtype=torch.bool)
    labels[:20] = True
    labels[40:50] = True
    refined = selfment.ipo(features, labels)
    assert refined[:20].all()
    assert not refined[20:].any()


@pytest.mark.parametrize("label", [0, 1])
def test_uniform_labels_stay(label: int) -> None:
    labels = torch.full((30,), label)
    assert torch.equal(selfment.ipo(noise(5, 6, 4), labels), labels)


def test_small_sides_stay() -> None:
    labels = torch.arange(30) < 9
    assert torch.equal(selfment.ipo(noise(5, 6, 4), labels), labels)
    assert not torch.equal(selfment.ipo(noise(5, 6, 4), labels, min_count=9), labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_shape_dtype_and_kind_of_the_labels(dtype: torch.dtype) -> None:
    features = smooth(6, 8, 12)
    labels = random_labels(48, 0.5, 0)
    expected = selfment.ipo(features, labels)
    given = labels.to(dtype)
    kept = given.clone()
    refined = selfment.ipo(features, given)
    assert refined.dtype == dtype
    assert torch.equal(refined.bool(), expected)
    assert torch.equal(given, kept), "the labels that came in must stay"
    array = selfment.ipo(features.numpy(), given.numpy())
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array, refined.numpy())
    assert torch.equal(selfment.ipo(features, given.reshape(6, 8)).flatten(), refined)
    image = features.T.reshape(1, 12, 6, 8)
    assert torch.equal(selfment.ipo(image, given.reshape(1, 6, 8))[0].flatten(), refined)


def test_threads_and_batch_do_not_matter() -> None:
    features = torch.stack([smooth(25, 20, 320, seed=s) for s in range(5)])
    labels = torch.stack([random_labels(500, 0.4, s) for s in range(5)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            batch = selfment.ipo(features, labels)
            separation = run_ipo(features, labels, IpoOptions())[2]
            for image in range(5):
                assert torch.equal(batch[image], selfment.ipo(features[image], labels[image]))
                assert torch.equal(batch[image], reference.ipo(features[image], labels[image]))
                alone = run_ipo(
                    features[image : image + 1], labels[image : image + 1], IpoOptions()
                )[2]
                assert separation[image] == alone[0]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(29), r"`labels` must be \(30,\), or \(h, w\) with h\*w == 30.*got \(29,\)"),
        (torch.ones(1, 30, 1), r"`labels` must be \(30,\), or .*got \(1, 30, 1\)"),
        (torch.full((30,), 2), "`labels` must be 0 or 1: got 2"),
        (torch.full((30,), float("nan")), "`labels` must be 0 or 1: got nan"),
    ],
)
def test_wrong_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selfment.ipo(noise(5, 6, 4), labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iters": -1}, "`iters` must be an integer from 0 to .*: got -1"),
        ({"iters": 10**30}, "`iters` must be an integer from 0 to .*: got 1000"),
        ({"iters": 2.5}, "`iters` must be an integer from 0 to .*: got 2.5"),
        ({"min_count": 0}, "`min_count` must be an integer from 1 to .*: got 0"),
    ],
)
def test_wrong_parameters(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selfment.ipo(noise(5, 6, 4), torch.arange(30) < 12, **arguments)


def test_not_finite() -> None:
    features = noise(5, 6, 4)
    features[17, 2] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite.*in patch 17 of image 0"):
        selfment.ipo(features, torch.arange(30) < 12)
