"""The CUDA twin gives what the CPU twin gives: on a device, and emulated on a host without one."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import (
    CASES,
    DEGENERATE,
    blocks,
    generator,
    noise,
    smooth,
)
from helpers.cuda import (
    ALL,
    BOTH,
    GRAPHS,
    ORIENTS,
    SIMPLE,
    Target,
    assert_close,
    assert_same,
    batch_of,
    edges,
    on_both,
)
from selfment import Graph, PseudoLabels, reference
from selfment.core import twins
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow


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
@pytest.mark.parametrize("value", [float("nan"), 2.0])
def test_one_patch(target: Target, value: float) -> None:
    rows = torch.tensor([[[3.0, 4.0]], [[1.0, value]]])
    label = target(selfment.pseudo_label, rows, grid=(1, 1))
    finite = value == 2
    assert label.mask.flatten().tolist() == [True, finite]
    assert label.eigenvalue[0].item() == 0
    assert label.eigenvalue[1].isnan().item() == (not finite)
    assert label.residual[1].isnan().item() == (not finite)


# What follows needs streams, graphs and other libraries: a device.
