"""A label is what its steps make, in one native call."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import (
    generator,
)
from helpers.cuda import (
    BOTH,
    GRAPHS,
    ORIENTS,
    Target,
    batch_of,
)
from selfment.core import ops as _ops
from selfment.core import twins
from selfment.core.confidence import confidence
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs, initial_mask
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow


@BOTH
@pytest.mark.parametrize("frames", [1, 3, 70])
def test_the_end_of_a_label_is_that_of_the_cpu(target: Target, frames: int) -> None:
    grids = [(1 + frame % 4, 1 + frame % 3) for frame in range(1, frames + 1)]
    n, rng = sum(h * w for h, w in grids), generator(0)
    values, gaps, apart = torch.rand(3, 12, generator=rng, dtype=torch.float64) * 1.3
    vectors = torch.randn(12, 1, n, generator=rng, dtype=torch.float64)
    labels = torch.rand(12, n, generator=rng) < 0.4
    labels[0], labels[1] = True, False
    gaps[2], values[3], apart[4] = float("inf"), -1e-17, float("nan")
    arguments = (values[:, None], gaps[:, None], vectors, apart, labels)
    ours = target(_ops.finish, *arguments, grids=grids, min_confidence=0.25)
    expected = _ops.finish(*arguments, grids=grids, min_confidence=0.25)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    rule = confidence(values, gaps, apart, labels, grids)
    torch.testing.assert_close(expected[0], rule, rtol=1e-15, atol=0, equal_nan=True)
    assert torch.equal(expected[1], expected[0] < 0.25)
    assert torch.equal(expected[2], labels & ~expected[1][:, None])
    assert torch.equal(expected[3], vectors[:, 0].float())


@BOTH
@pytest.mark.parametrize("m", [1, 2, 31, 128])
def test_thresholds_are_those_of_the_cpu(target: Target, m: int) -> None:
    values = torch.rand(5, m, m, generator=generator(0), dtype=torch.float64) * 2.1 - 1.05
    values[1], values[2], values[3] = 0.5, values[3] ** 2, float("nan")
    assert torch.equal(target(_ops.threshold, values), _ops.threshold(values))


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_label_is_what_its_steps_make(target: Target, graph: str, dtype: torch.dtype) -> None:
    """In one call, whose IPO takes the norms of the graph: bit for bit."""
    grid = (6, 9)
    rows = batch_of(3, *grid, 21).to(dtype)
    rows[1, 3] = 0

    def steps(rows: Tensor, orient: str) -> list[Tensor]:
        pairs = eigenpairs(selfment.affinity(rows, graph=graph), 1)
        mask, seed = initial_mask(pairs.vectors[:, 0], grid, orient)
        label, taken, separation = run_ipo(rows, mask, IpoOptions(iters=4, min_count=1))
        ends = _ops.finish(pairs.values, pairs.gaps, pairs.vectors, separation, label, [grid], 0.5)
        numbers = [pairs.values, pairs.gaps, pairs.residuals]
        return [mask, seed, taken, pairs.iterations, separation, *ends, *(x[:, 0] for x in numbers)]

    def whole(rows: Tensor, orient: str) -> list[Tensor]:
        options = {"graph": graph, "orient": orient, "ipo_iters": 4, "min_confidence": 0.5}
        made = selfment.pseudo_label(rows, grid, **options)
        maps = made.ncut_mask, made.mask, made.fiedler
        ncut_mask, mask, fiedler = (x.flatten(1) for x in maps)
        first = [ncut_mask, made.seed, made.ipo_iters, made.lanczos_iters, made.separation]
        return [
            *(*first, made.confidence, made.rejected, mask, fiedler),
            *(made.eigenvalue, made.gap, made.residual),
        ]

    for orient in ORIENTS:
        found, expected = (target(function, rows, orient=orient) for function in (whole, steps))
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("label", [selfment.pseudo_label, selfment.joint_label])
def test_a_label_is_one_native_call(
    emulated: ModuleType, label: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, run = [], twins.Cuda.run

    def noted(twin: twins.Cuda, operation: str, *arguments: Any, **options: Any) -> Any:
        asked.append(operation)
        return run(twin, operation, *arguments, **options)

    monkeypatch.setattr(twins.Cuda, "run", noted)
    rows = batch_of(2, 5, 6, 12)
    target = Target(emulated, monkeypatch)
    target(lambda rows: [label(rows, (5, 6)).mask], rows)
    assert asked == ["label"]
