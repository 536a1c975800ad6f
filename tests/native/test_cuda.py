"""The CUDA twin gives what the CPU twin gives: on a device, and emulated on a host without one."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import selfment
from helpers import emulated as emulation
from helpers import processes
from helpers.cases import (
    CASES,
    DEGENERATE,
    Case,
    blocks,
    copies,
    generator,
    noise,
    ring,
    smooth,
    turned_over,
)
from selfment import Graph, PseudoLabels, reference
from selfment.core import native as _native
from selfment.core import ops as _ops
from selfment.core import options as _params
from selfment.core import twins
from selfment.core.confidence import confidence
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs, initial_mask
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow

GRAPHS = ("binary", "weighted")
ORIENTS = ("seed", "corners")
EXACT = ("mask", "ncut_mask", "seed", "ipo_iters", "rejected", "tau")

# Next to multiples of the kernels' tiles, and the size of a photograph.
EDGES: dict[str, Case] = {
    "N = 64": (smooth(8, 8, 24, seed=10), (8, 8)),
    "N = 65, d = 65": (smooth(5, 13, 65, seed=11), (5, 13)),
    "N = 127, d = 31": (smooth(1, 127, 31, seed=12), (1, 127)),
    "N = 129": (smooth(3, 43, 33, seed=13), (3, 43)),
}
LARGE: dict[str, Case] = {
    "N = 2304": (smooth(48, 48, 384, seed=14), (48, 48)),
    "N = 6400": (smooth(80, 80, 64, seed=15), (80, 80)),
}
SIMPLE = CASES | EDGES | LARGE  # a simple Fiedler value: the masks are determined
ALL = SIMPLE | DEGENERATE


class Target:
    """Where the CUDA twin runs: a device, or the emulated module on the host's memory."""

    def __init__(self, emulated: ModuleType | None, patch: pytest.MonkeyPatch) -> None:
        self.emulated = emulated
        self.patch = patch
        self.device = torch.device("cpu" if emulated else f"cuda:{torch.cuda.current_device()}")

    def __call__(self, function: Callable[..., Any], *tensors: Tensor, **options: Any) -> Any:
        """What ``function`` makes of the tensors there, brought back."""
        with self.patch.context() as patch:
            if self.emulated is not None:
                emulated = self.emulated
                patch.setattr(_ops, "twin_of", lambda device: twins.Cuda(emulated, device, 0, 0))
            return on_cpu(function(*(tensor.to(self.device) for tensor in tensors), **options))


def on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PseudoLabels):
        return type(value)(**{name: on_cpu(part) for name, part in vars(value).items()})
    return tuple(map(on_cpu, value)) if isinstance(value, tuple | list) else value


def need_cuda() -> None:
    obstacles = _native.cuda_obstacles()
    if obstacles:
        pytest.skip("; ".join(obstacles))


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    if request.param == "emulated":
        return Target(request.getfixturevalue("emulated"), monkeypatch)
    need_cuda()
    return Target(None, monkeypatch)


@pytest.fixture
def device() -> Iterator[torch.device]:
    need_cuda()
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()


BOTH = pytest.mark.parametrize(
    "target", [pytest.param("device", marks=pytest.mark.cuda), "emulated"], indirect=True
)


def on_both(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Each case on a device, and the small ones emulated, which is slow."""
    small = [name for name, (rows, _) in cases.items() if len(rows) <= 450]
    pairs = [pytest.param("device", name, marks=pytest.mark.cuda) for name in cases]
    pairs += [pytest.param("emulated", name) for name in small]
    return pytest.mark.parametrize(("target", "name"), pairs, indirect=["target"])


def batch_of(count: int, h: int, w: int, d: int) -> Tensor:
    return torch.stack([smooth(h, w, d, seed=seed) for seed in range(count)])


def assert_same(ours: PseudoLabels, expected: PseudoLabels) -> None:
    for field in fields(PseudoLabels):
        found, wanted = getattr(ours, field.name), getattr(expected, field.name)
        assert torch.equal(found.cpu(), wanted.cpu()), field.name


def assert_close(ours: PseudoLabels, expected: PseudoLabels, graph: str = "binary") -> None:
    """Two twins: equal where the answer is discrete, else as close as rounding lets them be."""
    for field in EXACT:
        assert torch.equal(getattr(ours, field), getattr(expected, field)), field
    for field in fields(PseudoLabels):
        assert getattr(ours, field.name).dtype == getattr(expected, field.name).dtype
    torch.testing.assert_close(ours.eigenvalue, expected.eigenvalue, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours.gap, expected.gap, rtol=0.05, atol=1e-5)
    torch.testing.assert_close(ours.separation, expected.separation, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.confidence, expected.confidence, rtol=0.02, atol=1e-5)
    assert ours.residual.max() < 1e-7
    scale = expected.fiedler.abs().max().item()
    gap = expected.gap.min().item()
    tolerance = 1e-6 if graph == "binary" else max(1e-6, 1e-8 / gap)  # float32 weights move it
    assert (ours.fiedler - expected.fiedler).abs().max().item() < tolerance * scale


def edges(rows: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    graph = selfment.affinity(rows, **options)
    return graph.bits, graph.degrees, graph.to_dense()


@pytest.mark.parametrize("graph", GRAPHS)
@on_both(ALL)
def test_graph(target: Target, name: str, graph: str) -> None:
    rows, _ = ALL[name]
    for tau in (0.2, 0.95) if graph == "weighted" else (0.2, 0.0, -0.3):
        bits, degrees, dense = target(edges, rows, tau=tau, graph=graph)
        expected = edges(rows, tau=tau, graph=graph)
        assert torch.equal(bits, expected[0])
        # Weights are float32 products: 1e-6 covers their rounding.
        close = {"rtol": 1e-12, "atol": 0.0} if graph == "binary" else {"rtol": 0, "atol": 1e-6}
        torch.testing.assert_close(dense, expected[2], **close)
        torch.testing.assert_close(degrees, dense.sum(1), rtol=1e-12, atol=0)
        assert torch.equal(dense, dense.T)


@on_both(SIMPLE)
def test_labels(target: Target, name: str) -> None:
    rows, grid = SIMPLE[name]
    for graph in GRAPHS:
        for orient in ORIENTS:
            options = {"grid": grid, "graph": graph, "orient": orient}
            ours = target(selfment.pseudo_label, rows, **options)
            assert_close(ours, selfment.pseudo_label(rows, **options), graph)


@on_both(DEGENERATE)
def test_degenerate_cuts_follow_from_their_vector(target: Target, name: str) -> None:
    rows, grid = DEGENERATE[name]
    for graph in GRAPHS:
        for orient in ORIENTS:
            options = {"grid": grid, "graph": graph, "orient": orient}
            label = target(selfment.pseudo_label, rows, **options)
            assert_same(target(selfment.pseudo_label, rows, **options), label)
            expected = selfment.pseudo_label(rows, **options)
            torch.testing.assert_close(label.eigenvalue, expected.eigenvalue, rtol=0, atol=1e-7)
            if len(rows) == 1:
                assert_same(label, expected)
                continue
            assert label.residual.item() < 1e-9
            _, vectors = target(selfment.ncut, rows, graph=graph)
            mask, seed = reference._initial_mask(vectors[:, 0], grid, orient)
            assert torch.equal(label.ncut_mask, mask)
            assert label.seed.item() == seed.item()
            assert torch.equal(label.mask.flatten(), reference.ipo(rows, mask.flatten()))


@on_both({name: case for name, case in ALL.items() if len(case[0]) > 1})
def test_eigenpairs(target: Target, name: str) -> None:
    rows, _ = ALL[name]
    k = min(4, len(rows) - 1)
    for graph in GRAPHS:
        values, vectors = target(selfment.ncut, rows, k=k, graph=graph)
        expected, _ = selfment.ncut(rows, k=k, graph=graph)
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)
        A = selfment.affinity(rows, graph=graph).to_dense()
        degree = A.sum(1)[:, None]
        error = (degree * vectors - A @ vectors - values * degree * vectors) / degree.sqrt()
        assert error.norm(dim=0).max() < (1e-6 if graph == "weighted" else 1e-9)
        gram = vectors.T @ (degree * vectors)
        torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-6)
        assert torch.equal(reference._signed(vectors), vectors)


@on_both({name: case for name, case in CASES.items() if len(case[0]) > 1})
def test_signs_of_lapack(target: Target, name: str) -> None:
    """As on the CPU, where they are compared with LAPACK's."""
    rows, _ = CASES[name]
    k = min(2, len(rows) - 1)
    for graph in GRAPHS:
        _, expected = selfment.ncut(rows, k=k, graph=graph, sign="lapack")
        _, vectors = target(selfment.ncut, rows, k=k, graph=graph, sign="lapack")
        _, peaked = target(selfment.ncut, rows, k=k, graph=graph)
        assert torch.equal(vectors.abs(), peaked.abs())
        gaps = eigenpairs(selfment.affinity(rows, graph=graph), k).gaps[0]
        same = (vectors * expected).sum(0) > 0
        assert (same | (gaps < 1e-7)).all()


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
def test_matvec(target: Target, graph: str) -> None:
    rows = batch_of(3, 9, 14, 20)
    x = torch.randn(3, 126, 5, generator=generator(1), dtype=torch.float64)

    def products(rows: Tensor, x: Tensor) -> list[Tensor]:
        made = selfment.affinity(rows, graph=graph)
        assert made.nbytes >= made.bits.nbytes + made.degree.nbytes
        single = selfment.affinity(rows[1], graph=graph)
        return [
            made.to_dense(),
            made.matvec(x),
            made.matvec(x[..., 2]),
            single.matvec(x[1].float()),
        ]

    dense, several, one, single = target(products, rows, x)
    torch.testing.assert_close(several, dense @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, several[..., 2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(single, dense[1] @ x[1].float().double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", GRAPHS)
@on_both(ALL)
def test_a_painted_graph_is_that_of_the_painted_features(
    target: Target, name: str, graph: str
) -> None:
    rows = ALL[name][0].expand(2, -1, -1).contiguous()
    mask = torch.rand(rows.shape[:2], generator=generator(0)) < 0.4
    mask[1] = True

    def parts(made: Graph) -> list[Tensor]:
        return [made.bits, made.degree, *([made.weights] if graph == "weighted" else [])]

    def painted(rows: Tensor, mask: Tensor, **options: Any) -> list[Tensor]:
        return parts(selfment.affinity(rows, **options).paint(mask))

    def built(rows: Tensor, **options: Any) -> list[Tensor]:
        return parts(selfment.affinity(rows, **options))

    zeroed = rows.masked_fill(mask[..., None], 0)
    for tau in (0.2,) if graph == "weighted" else (0.2, -0.3):
        found = target(painted, rows, mask, tau=tau, graph=graph)
        expected = target(built, zeroed, tau=tau, graph=graph)
        assert all(map(torch.equal, found, expected))


@BOTH
@pytest.mark.parametrize("tau", [0.2, -0.3])
def test_painting_rows_that_are_not_finite(target: Target, tau: float) -> None:
    rows = smooth(6, 13, 20)
    rows[5], rows[71] = float("nan"), float("inf")
    mask = torch.arange(78) % 5 == 0  # the first of the two, and others
    zeroed = rows.masked_fill(mask[:, None], 0)

    def painted(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = selfment.affinity(rows, tau=tau).paint(mask)
        return made.bits, made.degrees

    found = target(painted, rows, mask)
    bits, degrees = target(edges, zeroed, tau=tau)[:2]
    assert degrees.isnan().tolist() == [i == 71 for i in range(78)]
    assert torch.equal(found[0], bits)
    assert torch.equal(found[1].nan_to_num(), degrees.nan_to_num())
    assert torch.equal(found[1].isnan(), degrees.isnan())


@BOTH
@pytest.mark.parametrize("split", [False, True])
def test_objects(target: Target, split: bool) -> None:
    rows, grid = batch_of(3, 9, 14, 24), (9, 14)
    options: dict[str, Any] = {"split": split, "max_cut": 1.0, "max_objects": 4}

    def objects(rows: Tensor) -> list[tuple[Tensor, ...]]:
        found = selfment.multi_label(rows, grid, **options)
        assert isinstance(found, list)
        assert all(value.device == rows.device for image in found for value in vars(image).values())
        return [tuple(vars(image).values()) for image in found]

    ours, expected = target(objects, rows), objects(rows)
    assert sum(len(image[0]) for image in ours) > 3
    for image, wanted in zip(ours, expected, strict=True):
        for value, other in zip(image, wanted, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=1e-7)
    rows[1, 5, 2] = float("nan")
    marked = target(objects, rows)
    assert [len(image[0]) for image in marked] == [len(ours[0][0]), 0, len(ours[2][0])]


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
def test_ncut_takes_a_graph(target: Target, graph: str) -> None:
    rows = batch_of(2, 6, 9, 20)
    made = target(lambda f: selfment.ncut(selfment.affinity(f, graph=graph), k=2), rows)
    plain = target(selfment.ncut, rows, k=2, graph=graph)
    assert all(map(torch.equal, made, plain))


@on_both(ALL)
def test_ipo(target: Target, name: str) -> None:
    rows, _ = ALL[name]
    labels = torch.stack([torch.rand(len(rows), generator=generator(s)) < 0.4 for s in range(4)])
    batch = rows.expand(4, -1, -1).contiguous()
    for iters, min_count in ((20, 10), (1, 1), (0, 1), (200, 1)):
        ours, steps, apart = target(
            run_ipo, batch, labels, options=IpoOptions(iters=iters, min_count=min_count)
        )
        expected, taken, distance = run_ipo(
            batch, labels, IpoOptions(iters=iters, min_count=min_count)
        )
        assert torch.equal(ours, expected)
        assert torch.equal(steps, taken)
        torch.testing.assert_close(apart, distance, rtol=1e-12, atol=1e-12)


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
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32], ids=str)
def test_shape_and_dtype_of_the_labels(target: Target, dtype: torch.dtype) -> None:
    rows = smooth(6, 8, 12)
    labels = (torch.arange(48) % 3 == 0).to(dtype)
    ours = target(selfment.ipo, rows, labels.reshape(6, 8))
    assert ours.dtype == dtype
    assert torch.equal(ours.flatten(), selfment.ipo(rows, labels))


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_threshold_for_each_image(target: Target, graph: str, dtype: torch.dtype) -> None:
    rows = batch_of(5, 9, 15, 24)
    rows += torch.arange(5)[:, None, None] * 0.3  # what the patches of an image have in common
    rows = rows.to(dtype)
    options = {"grid": (9, 15), "graph": graph, "tau": "auto", "min_confidence": 0.4}
    ours = target(selfment.pseudo_label, rows, **options)
    assert len(set(ours.tau.tolist())) == 5
    assert 0 < ours.rejected.sum() < 5
    for image, tau in enumerate(ours.tau.tolist()):
        one = target(edges, rows[image], tau=tau, graph=graph)
        assert torch.equal(one[0], edges(rows[image], tau=tau, graph=graph)[0])
        single = target(selfment.pseudo_label, rows[image], **options)
        assert_same(PseudoLabels(*(v[image] for v in vars(ours).values())), single)
    assert_close(ours, selfment.pseudo_label(rows, **options), graph)


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
def test_batch_equals_single(target: Target, graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_of(5, 9, 15, 24)
    batch = target(selfment.pseudo_label, rows, grid=(9, 15), graph=graph)
    for image in range(5):
        single = target(selfment.pseudo_label, rows[image], grid=(9, 15), graph=graph)
        assert_same(PseudoLabels(*(v[image] for v in vars(batch).values())), single)
    monkeypatch.setattr(twins, "_CUDA_BYTES", 1)
    assert_same(target(selfment.pseudo_label, rows, grid=(9, 15), graph=graph), batch)


@BOTH
def test_rejected_images(target: Target) -> None:
    """Of a batch some: their masks are empty."""
    rows = torch.stack([noise(9, 15, 24, seed=1), blocks(9, 15, 24, count=2, spread=0.01)])
    options = {"grid": (9, 15), "min_confidence": 0.25}
    ours = target(selfment.pseudo_label, rows, **options)
    theirs = selfment.pseudo_label(rows, **options)
    assert ours.rejected.tolist() == [True, False]
    assert torch.equal(ours.mask, theirs.mask)
    torch.testing.assert_close(ours.confidence, theirs.confidence, rtol=1e-9, atol=1e-9)
    assert ours.mask.flatten(1).any(dim=1).tolist() == [False, True]


@BOTH
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes(target: Target, dtype: torch.dtype) -> None:
    for d in (40, 33):
        rows = smooth(11, 13, d).to(dtype)
        for graph in GRAPHS:
            assert torch.equal(
                target(edges, rows, graph=graph)[0], selfment.affinity(rows, graph=graph).bits
            )
            options = {"grid": (11, 13), "graph": graph}
            ours = target(selfment.pseudo_label, rows, **options)
            assert_close(ours, selfment.pseudo_label(rows, **options), graph)


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
    dtype = _ops._dtype_code(module, rows)
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


def test_memory_of_a_large_image(emulated: ModuleType) -> None:
    """The graph, and the scratch of one operation at a time."""
    dtype = emulated.DTYPES.index("bfloat16")
    assert emulated.label_scratch(dtype, 1, 25_600, 4096, False, 1, 0) < 130 << 20
    assert emulated.affinity_scratch(dtype, 1, 100_000, 4096) < 72 << 20
    assert emulated.affinity_scratch(dtype, 70_000, 4, 4096) < 72 << 20


def test_the_current_device_stays(emulated: ModuleType) -> None:
    exchange = ctypes.CDLL(str(emulated.__file__)).selfment_exchange_device
    for current, wanted in ((1, 0), (0, 1), (1, 1)):
        exchange(current)
        emulated.fiedler_scratch(1, 64, 1, False, False, wanted)
        assert exchange(current) == current
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            emulated.fiedler_scratch(1, 64, 1, False, False, 7)
        with pytest.raises(RuntimeError, match="needs more shared memory"):
            emulated.fiedler_scratch(1, 10**6, 10**5, False, False, wanted)
        assert exchange(0) == current


BAD = [float("nan"), float("inf"), -float("inf"), 0.0, -1.0]


@BOTH
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("grid", [(4, 5), (6, 17)])  # few patches are solved as a whole
def test_a_graph_that_is_not_finite_is_marked(
    target: Target, grid: tuple[int, int], k: int
) -> None:
    """Degrees and weights that no features give: the solver ends, and reads what is there."""
    rows = batch_of(len(BAD) + 1, *grid, 20)
    clean = target(selfment.ncut, rows, k=k)

    def bad_degrees(rows: Tensor) -> Any:
        graph = selfment.affinity(rows)
        graph.degree[torch.arange(len(BAD)), 3] = torch.tensor(BAD).double().to(rows.device)
        pairs = eigenpairs(graph, k)
        return *vars(pairs).values(), *initial_mask(pairs.vectors[:, 0], grid, "corners")

    def bad_weights(rows: Tensor) -> Any:
        graph = selfment.affinity(rows, graph="weighted")
        graph.weights[torch.arange(len(BAD)), 3] = torch.tensor(BAD).to(rows.device)
        return tuple(vars(eigenpairs(graph, k)).values())

    *found, mask, seed = target(bad_degrees, rows)
    for result in found[:4]:
        assert result[:-1].isnan().all()
    assert not found[4][:-1].any()
    assert not mask[:-1].any()
    assert not seed[:-1].any()
    assert torch.equal(found[0][-1], clean[0][-1])
    assert torch.equal(found[1][-1], clean[1][-1].T)
    found = target(bad_weights, rows)
    for result in found[:4]:
        assert result[:3].isnan().all()
        assert result[3:].isfinite().all()
    assert not found[4][:3].any()


@BOTH
@pytest.mark.parametrize(("dtype", "d"), [("bfloat16", 24), ("float32", 24), ("bfloat16", 21)])
@pytest.mark.parametrize("scale", [1e30, 1e17, 1e-13, 1e-30])
def test_products_out_of_range(target: Target, scale: float, dtype: str, d: int) -> None:
    rows = (smooth(9, 15, d) * scale).to(getattr(torch, dtype))
    assert torch.equal(target(edges, rows)[0], selfment.affinity(rows).bits)
    start = torch.rand(135, generator=generator(0)) < 0.5
    assert torch.equal(target(selfment.ipo, rows, start), selfment.ipo(rows, start))


@BOTH
@pytest.mark.parametrize(
    ("rows", "k", "graph"),
    [
        (ring(70), 1, "binary"),
        (ring(70), 3, "weighted"),
        (noise(13, 15, 20), 6, "weighted"),
        (noise(13, 15, 20), 30, "binary"),
    ],
    ids=["one of a ring", "three of a ring", "six of noise", "many of noise"],
)
def test_restarts(target: Target, rows: Tensor, k: int, graph: str) -> None:
    """A basis that is full, or the search for a copy of an eigenvalue."""
    values, vectors = target(selfment.ncut, rows, k=k, graph=graph)
    expected, expected_vectors = selfment.ncut(rows, k=k, graph=graph)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)
    A = selfment.affinity(rows, graph=graph).to_dense()
    error = (A.sum(1)[:, None] * vectors - A @ vectors) - values * A.sum(1)[:, None] * vectors
    assert error.abs().max() < 1e-6
    assert (vectors - expected_vectors).abs().max() < 1e-4


TEAMS = pytest.mark.parametrize("size", [2, 3])
EVERY_ORDER = pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])


@EVERY_ORDER
@TEAMS
def test_teams_of_blocks(
    emulated: ModuleType, size: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation, its blocks in teams that the sizes here would not get: bit for bit."""
    target = Target(emulated, monkeypatch)
    rows, grid = batch_of(2, 6, 13, 24), (6, 13)
    inputs = rows, ring(66), copies(), noise(11, 12, 20), *turned_over()

    def everything(
        rows: Tensor, restarts: Tensor, merges: Tensor, several: Tensor, *turned: Tensor
    ) -> list[Tensor]:
        one = eigenpairs(selfment.affinity(restarts), 1)
        few = selfment.ncut(merges, k=3), selfment.ncut(several, k=6)
        lapack = selfment.ncut(rows, k=2, sign="lapack", graph="weighted")
        steps = run_ipo(*(each[None] for each in turned), IpoOptions(iters=20, min_count=1))
        return [*every_operation(rows, grid), *vars(one).values(), *sum(few, ()), *lapack, *steps]

    def memory() -> int:
        return int(emulated.fiedler_scratch(2, 78, 1, False, False, 0))

    expected, of_two_teams = target(everything, *inputs), memory()
    monkeypatch.setenv("SELFMENT_EMULATED_TEAM", str(size))
    monkeypatch.setenv("SELFMENT_EMULATED_ORDER", order)
    assert memory() < of_two_teams  # three blocks make one team of this size
    found = target(everything, *inputs)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


@TEAMS
def test_teams_of_blocks_with_two_tables(
    emulated: ModuleType, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 1024 patches: the look-up tables of a product are filled twice."""
    target = Target(emulated, monkeypatch)
    rows, grid = smooth(33, 34, 16, seed=16), (33, 34)
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("SELFMENT_EMULATED_ORDER", order)
        monkeypatch.setenv("SELFMENT_EMULATED_TEAM", str(size))
        found = target(selfment.pseudo_label, rows, grid=grid)
        assert_close(found, selfment.pseudo_label(rows, grid))
        monkeypatch.delenv("SELFMENT_EMULATED_TEAM")
        assert_same(target(selfment.pseudo_label, rows, grid=grid), found)


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensor_cores_that_truncate_their_sums(
    emulated: ModuleType, dtype: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edges are exact however the cores add: the bound of the filter covers it."""
    target = Target(emulated, monkeypatch)
    monkeypatch.setenv("SELFMENT_EMULATED_MMA_GROUP", str(group))
    products = 0.2 + 1e-7 * torch.randn(100, generator=generator(0), dtype=torch.float64)
    rest = torch.nn.functional.normalize(noise(1, 100, 31, seed=1).double(), dim=1)
    near = torch.cat([products[:, None], rest * (1 - products[:, None] ** 2).sqrt()], dim=1)
    near = torch.cat([torch.eye(32, dtype=torch.float64)[:1], near])
    for rows in (near, smooth(9, 13, 200, seed=17), 3 + noise(9, 13, 333)):
        typed = rows.to(getattr(torch, dtype))
        for tau in (0.2, 0.0, 0.9):
            expected = selfment.affinity(typed, tau=tau).bits
            assert torch.equal(target(edges, typed, tau=tau)[0], expected)


def test_what_scratch_held_makes_no_difference(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even NaN, which no factor of 0 takes away."""
    target = Target(emulated, monkeypatch)
    rows = batch_of(4, 9, 14, 33).bfloat16()
    options = [{"grid": (9, 14), "graph": graph} for graph in GRAPHS]
    expected = [target(selfment.pseudo_label, rows, **option) for option in options]

    def filled(*size: Any, **kind: Any) -> Tensor:
        return torch.zeros(*size, **kind).view(torch.uint8).fill_(255).view(kind["dtype"])

    monkeypatch.setattr(torch, "empty", filled)
    for option, wanted in zip(options, expected, strict=True):
        assert_same(target(selfment.pseudo_label, rows, **option), wanted)


@pytest.mark.parametrize("shared_bytes", [96 << 10, 227 << 10])
def test_where_the_graph_lies_makes_no_difference(
    emulated: ModuleType, shared_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shared memory where it fits, else in the device's."""
    target = Target(emulated, monkeypatch)
    rows, grid = smooth(29, 31, 48), (29, 31)  # 105 KiB of bits, for three blocks
    monkeypatch.setenv("SELFMENT_EMULATED_SHARED_BYTES", str(shared_bytes))
    found = target(selfment.pseudo_label, rows.expand(3, -1, -1).contiguous(), grid=grid)
    assert_close(
        PseudoLabels(*(v[2] for v in vars(found).values())), selfment.pseudo_label(rows, grid)
    )


@pytest.mark.skipif("SELFMENT_EMULATED_FLAGS" in os.environ, reason="this is that run")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """The emulated tests once more: addresses and arithmetic checked, threads in another order."""
    command = emulation.compiler()
    if command is None:
        pytest.skip("no C++ compiler: neither $CXX nor c++")
    names = ["libasan.so", "libubsan.so", "libstdc++.so.6"]
    found = [processes.run([*command, f"-print-file-name={name}"]) for name in names]
    libraries = [done.stdout.strip() for done in found]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip(f"the sanitizers' libraries are not there: {libraries}")
    environment = os.environ | {
        "SELFMENT_EMULATED_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all",
        "SELFMENT_EMULATED_ORDER": "shuffle",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves much to the end of its process
    }
    few = "isolated or outlier or tiny or deep"
    tests = f"(test_graph or test_labels or test_ipo) and ({few}) or test_dtypes or list_holds"
    tests += " or long_rows or turn_over or a_graph_that or nearly_zero or joint"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = processes.run(
        [*command, "-k", f"emulated and ({tests})", f"--basetemp={tmp_path / 'inner'}"],
        env=environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


@BOTH
def test_layouts_and_alignments(target: Target) -> None:
    rows = batch_of(2, 6, 9, 21)
    expected = target(selfment.pseudo_label, rows, grid=(6, 9))

    def off_by_one(rows: Tensor) -> PseudoLabels:
        memory = torch.zeros(rows.numel() + 1, device=rows.device)
        shifted = memory[1:].view(rows.shape)
        shifted.copy_(rows)
        return selfment.pseudo_label(shifted, (6, 9))

    assert_same(target(off_by_one, rows), expected)
    maps = rows.transpose(1, 2).reshape(2, 21, 6, 9)
    assert_same(target(selfment.pseudo_label, maps), expected)
    assert_same(target(selfment.pseudo_label, maps.to(memory_format=torch.channels_last)), expected)


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_an_image_that_is_not_finite_is_marked(target: Target, graph: str, value: float) -> None:
    clean = batch_of(3, 6, 9, 20).double()
    rows = clean.clone()
    rows[1, 17, 3] = value
    options = {"grid": (6, 9), "graph": graph, "tau": "auto", "min_confidence": 0.1}
    label = target(selfment.pseudo_label, rows, **options)
    expected = target(selfment.pseudo_label, clean, **options)
    for image in (0, 2):
        ours, theirs = ([v[image] for v in vars(found).values()] for found in (label, expected))
        assert_same(PseudoLabels(*ours), PseudoLabels(*theirs))
    for field in ("eigenvalue", "gap", "residual", "fiedler", "separation", "confidence"):
        assert getattr(label, field)[1].isnan().all(), field
    for field in ("mask", "ncut_mask", "lanczos_iters", "ipo_iters", "rejected"):
        assert not getattr(label, field)[1].any(), field
    values, vectors = target(selfment.ncut, rows, k=2, graph=graph)
    assert values[1].isnan().all()
    assert vectors[1].isnan().all()
    assert target(edges, rows, graph=graph)[1][1, 17].isnan()
    start = torch.rand(3, 54, generator=generator(0)) < 0.5
    refined, _, separation = target(run_ipo, rows, start, options=IpoOptions())
    assert not refined[1].any()
    assert torch.equal(refined[::2], selfment.ipo(clean, start)[::2])
    assert separation.isnan().tolist() == [False, True, False]


@BOTH
@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_one_patch(target: Target, value: float) -> None:
    rows = torch.tensor([[[3.0, 4.0]], [[1.0, value]]])
    label = target(selfment.pseudo_label, rows, grid=(1, 1))
    finite = value == 2
    assert label.mask.flatten().tolist() == [True, finite]
    assert label.eigenvalue[0].item() == 0
    assert label.eigenvalue[1].isnan().item() == (not finite)
    assert label.residual[1].isnan().item() == (not finite)


FRAMES = [(5, 7), (9, 4), (1, 6), (12, 12), *[(1, 2)] * 140]


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("orient", ORIENTS)
def test_joint_labels(target: Target, graph: str, orient: str) -> None:
    rows = smooth(1, sum(h * w for h, w in FRAMES), 32)
    options = {"grid": FRAMES, "graph": graph, "orient": orient}
    ours = target(selfment.joint_label, rows, **options)
    expected = selfment.joint_label(rows, **options)
    for name in ("mask", "ncut_mask"):
        assert all(map(torch.equal, getattr(ours, name), getattr(expected, name))), name
    for name in ("seed", "peaks", "ipo_iters"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    torch.testing.assert_close(ours.eigenvalue, expected.eigenvalue, rtol=0, atol=1e-7)


@BOTH
def test_joint_masks_of_vectors_with_equal_values(target: Target) -> None:
    for trial in range(24):
        rng = generator(trial)
        count = 130 if trial % 8 == 0 else trial % 5 + 1
        grids = [(h, w) for h, w in torch.randint(1, 7, (count, 2), generator=rng).tolist()]
        n, levels = sum(h * w for h, w in grids), trial % 8 + 1
        x = torch.randint(-levels, levels + 1, (3, n), generator=rng).double() / 8
        for corners in (False, True):
            found = target(_ops.components, x, grids=grids, corners=corners)
            wanted = _ops.components(x, grids, corners)
            assert all(map(torch.equal, found, wanted)), (trial, corners)


@BOTH
def test_joint_frames_that_are_not_finite_are_marked(target: Target) -> None:
    rows = batch_of(3, 6, 9, 20)
    rows[1, 17, 3] = float("nan")
    label = target(selfment.joint_label, rows, grid=(6, 9))
    assert not label.mask.any()
    assert not label.ncut_mask.any()
    assert label.peaks.tolist() == [-1] * 3
    assert label.eigenvalue.isnan()
    assert label.fiedler.isnan().all()


@BOTH
def test_the_rules_for_ties_are_the_same(target: Target) -> None:
    module = target.emulated or _native.cuda()
    assert module.PEAK_TIE == _params.SEED_TIE
    assert module.IPO_TIE == _params.IPO_TIE
    assert module.DTYPES == _native.cpu().DTYPES
    assert module.__version__ == selfment.__version__


# What follows needs streams, graphs and other libraries: a device.

BUSY = 200_000_000  # cycles, a tenth of a second


@pytest.fixture(scope="module")
def problem() -> Case:
    return batch_of(3, 20, 21, 48), (20, 21)


def every_operation(rows: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    labels = selfment.pseudo_label(rows, grid, tau="auto", min_confidence=0.3)
    start = (rows[..., 0] > 0).int()
    graph = selfment.affinity(rows, graph="weighted")
    return [
        *vars(labels).values(),
        *vars(selfment.joint_label(rows, grid)).values(),
        *selfment.ncut(rows, k=2),
        selfment.ipo(rows, start),
        graph.degrees,
        graph.matvec(rows[..., :2]),
        *(selfment.affinity(rows, graph=mode).paint(start).degrees for mode in GRAPHS),
    ]


@pytest.mark.cuda
def test_a_hundred_thousand_patches(device: torch.device) -> None:
    rows = smooth(250, 400, 32).to(device)
    graph = selfment.affinity(rows)
    values, vectors = selfment.ncut(graph)
    x, D = vectors[:, 0], graph.degrees
    error = (D * x - graph.matvec(x) - values * D * x) / D.sqrt()
    assert error.norm() < 1e-9
    assert abs((D * x * x).sum() - 1) < 1e-9
    some = torch.randint(len(rows), (2000,), generator=generator(0), device="cpu").to(device)
    f = torch.nn.functional.normalize(rows[some].double(), dim=1).float().double()
    near = ((f @ f.T) - 0.2).abs() < 1e-6
    one = torch.zeros(len(rows), 2000, dtype=torch.float64, device=device)
    one[some, torch.arange(2000, device=device)] = 1
    joined = graph.matvec(one)[some] > 0.5
    assert ((joined == (f @ f.T > 0.2)) | near).all()


@pytest.mark.cuda
def test_queues_on_the_current_stream_and_does_not_wait(
    device: torch.device, problem: Case
) -> None:
    rows, grid = problem[0].to(device), problem[1]
    expected = every_operation(rows, grid)
    stream = torch.cuda.Stream()
    late = torch.full_like(rows, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        every_operation(rows, grid)  # new memory may make the first call on a stream wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(BUSY)
            late.copy_(rows)
            found = every_operation(late, grid)
            done = torch.cuda.Event()
            done.record()
            assert not done.query(), "a call has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.device == device
        assert torch.equal(ours, wanted)


@pytest.mark.cuda
def test_replays_as_a_cuda_graph(device: torch.device, problem: Case) -> None:
    rows, grid = problem[0].to(device), problem[1]
    static = rows.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        every_operation(static, grid)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = every_operation(static, grid)
    for other in (rows.flip(0), rows + 0.05, rows):
        static.copy_(other)
        captured.replay()
        for ours, wanted in zip(found, every_operation(other, grid), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(device: torch.device, problem: Case, dynamic: bool) -> None:
    torch.compiler.reset()
    rows, grid = problem[0].to(device), problem[1]

    def label(rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(selfment.pseudo_label(rows * 2, grid)).values())

    compiled: Any = torch.compile(label, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert all(map(torch.equal, compiled(rows), label(rows)))


@pytest.mark.cuda
def test_operators_are_what_they_claim(device: torch.device) -> None:
    rows = batch_of(2, 6, 9, 20).to(device)
    labels = rows[..., 0] > 0
    graph = (0.2, 1e-5, "binary")
    opcheck(torch.ops.selfment.pseudo_label.default, (rows, 6, 9, *graph, "seed", 20, 10))
    opcheck(torch.ops.selfment.ncut.default, (rows, 2, *graph, "lapack"))
    opcheck(torch.ops.selfment.ipo.default, (rows, labels, 20, 10))


@pytest.mark.cuda
def test_cupy_in_cupy_out_on_its_stream(device: torch.device, problem: Case) -> None:
    cupy = pytest.importorskip("cupy")
    rows, grid = problem[0].to(device), problem[1]
    expected = every_operation(rows, grid)
    torch.cuda.synchronize()
    given = cupy.from_dlpack(rows)

    def every_cupy_operation(rows: Any) -> list[Any]:
        graph = selfment.affinity(rows, graph="weighted")
        start = (rows[..., 0] > 0).astype(cupy.int32)
        return [
            *vars(selfment.pseudo_label(rows, grid)).values(),
            *selfment.ncut(rows, k=2),
            selfment.ipo(rows, start),
            graph.degrees,
            graph.matvec(rows[..., :2]),
            graph.to_dense(),
        ]

    with cupy.cuda.Stream(non_blocking=True) as stream:
        late = cupy.full_like(given, cupy.nan)
        every_cupy_operation(given)  # new memory may make the first call on a stream wait
        stream.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, device)):
            torch.cuda._sleep(BUSY)
        late[...] = given
        *found, dense = every_cupy_operation(late)
        assert not stream.done, "a call has waited for the device"
        stream.synchronize()
    assert isinstance(dense, cupy.ndarray)
    for ours, wanted in zip(found, expected, strict=True):
        assert isinstance(ours, cupy.ndarray)
        assert ours.device.id == device.index
        assert torch.equal(torch.from_dlpack(ours), wanted)


@pytest.mark.cuda
def test_devices_must_agree(device: torch.device) -> None:
    rows = noise(4, 5, 8)
    with pytest.raises(
        ValueError, match=r"`labels` must be on the device of `features`, cuda:.*cpu"
    ):
        selfment.ipo(rows.to(device), rows[:, 0] > 0)
    with pytest.raises(ValueError, match="`x` must be on the device of the graph, cpu: got cuda"):
        selfment.affinity(rows).matvec(rows[:, 0].to(device))


@pytest.fixture
def devices() -> Iterator[tuple[torch.device, torch.device]]:
    """The current device and another one."""
    need_cuda()
    if torch.cuda.device_count() < 2:
        pytest.skip("torch sees one CUDA device; this needs two")
    current = torch.cuda.current_device()
    yield torch.device("cuda", current), torch.device("cuda", int(current == 0))
    torch.cuda.set_device(current)


@pytest.mark.cuda
def test_the_current_device_stays_for_torch(
    devices: tuple[torch.device, torch.device], problem: Case
) -> None:
    """The native module's runtime is not torch's; what one makes current, the other one sees."""
    rows, grid = problem
    expected = selfment.pseudo_label(rows.to(devices[0]), grid)
    # Either way round, as the first of them need not have been used before.
    for current, other in (devices, devices[::-1]):
        torch.cuda.set_device(current)
        label = selfment.pseudo_label(rows.to(other), grid)
        values, _ = selfment.ncut(rows.to(other), k=2)
        assert torch.cuda.current_device() == current.index
        assert torch.empty(1, device="cuda").device == current
        assert label.mask.device == values.device == other
        for field in fields(PseudoLabels):
            ours, wanted = getattr(label, field.name).cpu(), getattr(expected, field.name).cpu()
            assert torch.equal(ours, wanted), field.name
        with pytest.raises(ValueError, match="must be on the device of"):
            selfment.ipo(rows.to(other), torch.zeros(len(rows), device=current) > 0)
        assert torch.cuda.current_device() == current.index
    # A stream of the other device, which was current in a block around the call.
    current, other = devices
    torch.cuda.set_device(current)
    with torch.cuda.device(other), torch.cuda.stream(torch.cuda.Stream(other)):
        label = selfment.pseudo_label(rows.to(other), grid)
        assert torch.cuda.current_device() == other.index
        torch.cuda.synchronize(other)
    assert torch.cuda.current_device() == current.index
    assert torch.equal(label.mask.cpu(), expected.mask.cpu())


@pytest.mark.cuda
def test_a_device_that_nobody_uses_is_left_alone(
    devices: tuple[torch.device, torch.device],
) -> None:
    """A process that labels on the second device takes no memory on the first one."""
    script = """
import torch, selfment
rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).to("cuda:1")
selfment.pseudo_label(rows, (6, 10))
torch.cuda.synchronize(1)
print(torch.cuda.current_device(), *map(torch._C._cuda_hasPrimaryContext, (0, 1)))
"""
    done = processes.run([sys.executable, "-c", script], check=True)
    assert done.stdout.split() == ["0", "False", "True"]


@pytest.mark.cuda
def test_labels_other_than_0_count_as_1(device: torch.device) -> None:
    rows = smooth(6, 8, 12).to(device)
    start = torch.arange(48, device=device) % 3
    expected = selfment.ipo(rows, (start != 0).long())
    assert torch.equal(selfment.ipo(rows, start), expected)


@pytest.mark.cuda
def test_labeler_labels_where_the_backbone_runs(device: torch.device) -> None:
    labeler = selfment.PseudoLabeler(size=160, device=device)
    batch = torch.rand(2, 3, 160, 160, generator=generator(0))
    labels = labeler.label_batch(batch)
    rows = labeler.backbone(batch)
    assert rows.device == device
    assert all(value.device.type == "cpu" for value in vars(labels).values())
    assert_same(labels, selfment.pseudo_label(rows, (10, 10), orient="corners"))
    batch[1, 0, 80, 80] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite.*in image 1"):
        labeler.label_batch(batch)


@pytest.mark.cuda
def test_gives_its_memory_back(device: torch.device, problem: Case) -> None:
    rows, grid = problem[0].to(device), problem[1]
    selfment.pseudo_label(rows, grid)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for graph in GRAPHS:
        selfment.pseudo_label(rows, grid, graph=graph)
    assert torch.cuda.memory_allocated() == before
