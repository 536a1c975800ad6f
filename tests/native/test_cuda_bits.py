"""Sums and products at their thresholds: decided as by exact arithmetic, at little cost."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import (
    generator,
    noise,
    smooth,
)
from helpers.cuda import (
    BOTH,
    GRAPHS,
    Target,
    batch_of,
    edges,
)
from selfment.core import ops as _ops
from selfment.core.ipo import run_ipo
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_ipo_of_long_rows(target: Target, dtype: str) -> None:
    """Longer than what a warp reads at a time, in whole pieces of 16 bytes and not so."""
    for d in (1216, 1203):
        rows = batch_of(3, 5, 12, d).to(getattr(torch, dtype))
        labels = torch.rand(3, 60, generator=generator(d)) < 0.4
        ours, steps, apart = target(
            run_ipo, rows, labels, options=IpoOptions(iters=50, min_count=1)
        )
        expected, taken, distance = run_ipo(rows, labels, IpoOptions(iters=50, min_count=1))
        assert torch.equal(ours, expected)
        assert torch.equal(steps, taken)
        torch.testing.assert_close(apart, distance, rtol=1e-12, atol=1e-12)


@BOTH
def test_ipo_whose_means_turn_over(target: Target) -> None:
    """Small problems, of which about one in 50 needs its labels complemented."""
    rng = generator(0)
    rows = torch.randn(1000, 12, 2, generator=rng)
    labels = torch.rand(1000, 12, generator=rng) < 0.5
    ours, steps, apart = target(run_ipo, rows, labels, options=IpoOptions(iters=200, min_count=1))
    expected, taken, distance = run_ipo(rows, labels, IpoOptions(iters=200, min_count=1))
    assert torch.equal(ours, expected)
    assert torch.equal(steps, taken)
    torch.testing.assert_close(apart, distance, rtol=1e-12, atol=1e-12)


def test_ipo_leaves_rows_unread(emulated: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In scratch, after the norms, is what is known of a row: the same after a step without it."""
    rows = smooth(20, 20, 30, seed=2)
    labels = torch.rand(400, generator=generator(2)) < 0.3
    target = Target(emulated, monkeypatch)
    known = []

    def keep(*size: Any, **options: Any) -> Tensor:
        scratch = torch.zeros(*size, **options)
        numbers = -(-400 * 8 // 256) * 256  # bytes
        known.append(scratch[256 + numbers :][: 400 * 8].view(torch.float64))
        return scratch

    monkeypatch.setattr(torch, "empty", keep)
    for iters in range(1, 7):
        _, steps, _ = target(
            run_ipo, rows[None], labels[None], options=IpoOptions(iters=iters, min_count=1)
        )
        assert steps.item() == iters
    unread = [(one == two).float().mean() for one, two in pairwise(known)]
    assert unread[0] < unread[-1]
    assert unread[-1] > 0.5


@BOTH
def test_products_at_the_threshold(target: Target) -> None:
    """Pairs within 1e-7 of tau, on both sides: the float32 product cannot tell."""
    rng = generator(0)
    products = 0.2 + 1e-8 * torch.randn(200, generator=rng, dtype=torch.float64)
    rest = torch.nn.functional.normalize(
        torch.randn(200, 31, generator=rng, dtype=torch.float64), dim=1
    )
    near = torch.cat([products[:, None], rest * (1 - products[:, None] ** 2).sqrt()], dim=1)
    rows = torch.cat([torch.eye(32, dtype=torch.float64)[:1], near])
    for graph in GRAPHS:
        expected = selfment.affinity(rows, graph=graph).bits
        assert torch.equal(target(edges, rows, graph=graph)[0], expected)


@BOTH
def test_more_undecided_pairs_than_the_list_holds(target: Target) -> None:
    """A tile fits, another one does not, and small ones come before and after."""
    equal = smooth(1, 1, 24) * torch.rand(130, 1, generator=generator(0))  # all products are 1
    rows = torch.stack([smooth(10, 13, 24), equal, equal, smooth(13, 10, 24, seed=1)])
    for graph in GRAPHS:
        expected = selfment.affinity(rows, tau=1.0, graph=graph).bits
        assert torch.equal(target(edges, rows, tau=1.0, graph=graph)[0], expected)


def undecided(module: ModuleType, rows: Tensor, tau: float) -> tuple[int, int]:
    """Pairs and whole tiles that the tensor cores leave undecided: the first words of scratch."""
    batch, n, d = rows.shape
    dtype = _ops.dtype_code(module, rows.dtype)
    scratch = torch.empty(module.affinity_scratch(dtype, batch, n, d), dtype=torch.uint8)
    bits = torch.empty(batch, module.bits_size(n), dtype=torch.int64)
    degrees = torch.empty(batch, n, dtype=torch.float64)
    taus = torch.full((batch,), tau, dtype=torch.float64)
    module.affinity(
        features=rows.data_ptr(),
        dtype=dtype,
        batch=batch,
        n=n,
        d=d,
        taus=taus.data_ptr(),
        eps=1e-5,
        weights=0,
        bits=bits.data_ptr(),
        degrees=degrees.data_ptr(),
        scratch=scratch.data_ptr(),
        device=0,
        stream=0,
    )
    pairs, tiles = scratch[:16].view(torch.int64).tolist()
    return pairs, tiles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tau", [0.0, -0.0, -1e-30, 1e-30])
def test_rows_whose_products_are_known_cost_nothing(
    emulated: ModuleType, dtype: torch.dtype, tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zero rows, at a tau of about 0, and rows that are not finite."""
    clean = smooth(11, 13, 32).to(dtype)
    rows = clean.clone()
    rows[::3] = 0
    expected = selfment.affinity(rows, tau=tau).bits
    assert torch.equal(Target(emulated, monkeypatch)(edges, rows, tau=tau)[0], expected)
    usual = max(20, undecided(emulated, clean[None], tau)[0])
    assert undecided(emulated, rows[None], tau)[0] <= usual
    rows[1::3] = float("nan")
    rows[4] = float("inf")
    assert undecided(emulated, rows[None], tau)[0] <= usual
    joined = Target(emulated, monkeypatch)(edges, rows, tau=tau)[2] > 0.5
    assert not joined[1::3].any()
    assert (joined[::3, ::3] == (tau < 0)).all()


def test_few_pairs_are_undecided(emulated: ModuleType) -> None:
    """Those within the error of sums of 32 products, and of the additions of such sums."""
    rows = noise(16, 20, 256).bfloat16()
    units = torch.nn.functional.normalize(rows.double(), dim=1)
    i, j = torch.triu_indices(320, 320)
    bound = 2**-24 * (2 * (2 * 32 + 2) + 256 / 32 + 1 + 10)
    near = ((units[i] * units[j]).sum(1).abs() < 1.1 * bound).sum()
    pairs, tiles = undecided(emulated, rows[None], 0.0)
    assert 0 < pairs <= near
    assert tiles == 0


@BOTH
def test_a_row_that_is_nearly_zero(target: Target) -> None:
    """Its squares vanish, or its elements as float32 do, or neither."""
    rows = smooth(6, 7, 20).double()
    for i, scale in enumerate([1e-200, 1e-160, 1e-70, 1e-50, 1e-30, 1e-13]):
        rows[3 * i] *= scale
    for tau in (0.0, -1e-30, 1e-9):
        assert torch.equal(target(edges, rows, tau=tau)[0], selfment.affinity(rows, tau=tau).bits)


@pytest.mark.cuda
def test_more_images_than_16_bits_can_count(device: torch.device) -> None:
    rows = torch.randn(70_000, 4, 8, generator=generator(0))
    rows[:, 1:3] = rows[:, :1]  # their products are 1
    ours = selfment.affinity(rows.to(device), tau=1.0)
    expected = selfment.affinity(rows, tau=1.0)
    assert torch.equal(ours.bits.cpu(), expected.bits)
    assert torch.equal(ours.degrees.cpu(), expected.degrees)
