"""Cuts by landmarks, and IPO of features that are read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, Case, generator, noise, smooth, turned_over
from helpers.cuda import BOTH, Target, on_cpu
from helpers.joint_rules import frames_of
from helpers.landmark_cases import FRAMES, QUIET, Frames, assert_close, fields_of
from selfment import LandmarkLabels
from selfment.core import block_ops, blocks
from selfment.core.arrays import as_features
from selfment.core.blocks import array_blocks
from selfment.core.ipo import run_ipo
from selfment.core.options import CutOptions, IpoOptions

pytestmark = pytest.mark.slow

DTYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (64, 64))


# --- The kernel ---


def ties() -> Tensor:
    """Rows of small integers: thousands of similarities are exactly 1 / 2."""
    rows = torch.randint(-1, 2, (230, 8), generator=generator(1)).float()
    rows[::50] = 0
    return rows


def equal() -> Tensor:
    """All similarities are 1: with tau = 1 more pairs are undecided than the list can store."""
    return smooth(1, 1, 24) * (0.5 + torch.rand(230, 1, generator=generator(0)))


KERNEL_CASES: dict[str, tuple[Tensor, tuple[float, ...]]] = {
    "ties": (ties(), (0.5, 0.2, -0.3)),
    "equal": (equal(), (1.0,)),
    "smooth": (smooth(11, 21, 33), (0.2, 0.0)),
    "d = 1": (noise(13, 17, 1), (0.2,)),
    "long": (smooth(10, 13, 600), (0.2, 0.4)),
}


def joined(
    rows: Tensor, x: Tensor, *, chosen: Tensor, tau: float, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Edges, means, sums and totals, from blocks of ``size`` rows."""
    cut = CutOptions(tau=tau, eps=1e-3)
    gathered = block_ops.LandmarkSums.zeros(len(x), len(chosen), rows.device)
    means = x.new_empty((len(x), len(rows)))
    for first in range(0, len(rows), size):
        part, block = means[:, first : first + size], rows[first : first + size].clone()
        assert block_ops.landmarks(block, rows[chosen], cut, x, part, gathered) == -1
    return gathered.edges, means, gathered.sums, gathered.totals


@BOTH
@DTYPES
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_blocks_join_the_landmarks_as_on_the_cpu(target: Target, name: str, dtype: str) -> None:
    features, taus = KERNEL_CASES[name]
    rows = features.to(getattr(torch, dtype))
    x = torch.randn(3, len(rows) - 101, dtype=torch.float64, generator=generator(2))
    for tau in taus:
        for chosen in (torch.arange(len(rows))[101:], torch.arange(0, len(rows), 70)):
            own = x[:, : len(chosen)].contiguous()
            for size in (130, 70):
                options = {"chosen": chosen, "tau": tau, "size": size}
                ours = target(joined, rows, own, **options)
                expected = joined(rows, own, **options)
                assert torch.equal(ours[0], expected[0])
                for found, wanted in zip(ours[1:], expected[1:], strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@BOTH
def test_blocks_of_more_rows_and_landmarks_than_a_table_has(target: Target) -> None:
    """More than 1024 of both, and nine tiles of rows, which are not a power of two."""
    rows = smooth(25, 44, 16, seed=9)
    x = torch.randn(2, 1050, dtype=torch.float64, generator=generator(2))
    options = {"chosen": torch.arange(1100)[50:], "tau": 0.3, "size": 1100}
    ours, expected = target(joined, rows, x, **options), joined(rows, x, **options)
    assert torch.equal(ours[0], expected[0])
    for found, wanted in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@BOTH
def test_sums_need_no_vector(target: Target) -> None:
    """Without x the means are the caller's, and stay as they are."""
    rows, cut = smooth(9, 15, 20), CutOptions(tau=0.3)
    given = torch.randn(2, 135, dtype=torch.float64, generator=generator(3))

    def gather(rows: Tensor, means: Tensor) -> tuple[Tensor, ...]:
        gathered = block_ops.LandmarkSums.zeros(2, 68, rows.device)
        block_ops.landmarks(rows, rows[::2].contiguous(), cut, None, means, gathered)
        return gathered.sums, gathered.edges, gathered.totals, means

    sums, edges, totals, means = target(gather, rows, given.clone())
    dense = selfment.affinity(rows, tau=0.3, eps=1e-5).to_dense()[:, ::2] > 0.5
    assert torch.equal(means, given)
    assert torch.equal(edges, dense.sum(0))
    torch.testing.assert_close(sums, given @ dense.double())
    torch.testing.assert_close(totals, given.sum(1))


@BOTH
def test_rows_that_are_not_finite_have_no_mean(target: Target) -> None:
    rows = smooth(9, 15, 20)
    bad = torch.zeros(135, dtype=torch.bool)
    bad[[0, 63, 70, 134]] = True
    broken = torch.where(bad[:, None], float("nan"), rows)
    broken[70] = float("inf")
    x = torch.randn(2, 40, dtype=torch.float64, generator=generator(3))
    options: dict[str, Any] = {"tau": 0.3, "size": 135}

    def means(rows: Tensor, clean: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        found, gathered = x.new_empty((2, 135)), block_ops.LandmarkSums.zeros(2, 40, x.device)
        cut = CutOptions(tau=0.3, eps=1e-3)
        block_ops.landmarks(rows, clean[1:41].contiguous(), cut, x, found, gathered)
        return found, gathered.edges

    found, edges = target(means, broken, rows, x)
    expected = joined(rows, x, chosen=torch.arange(1, 41), **options)
    assert torch.equal(found.isnan(), bad.expand(2, -1))
    torch.testing.assert_close(found[:, ~bad], expected[1][:, ~bad], rtol=1e-13, atol=1e-13)
    whole = joined(rows[~bad], x, chosen=torch.arange(40), **options)
    assert torch.equal(edges[:39], whole[0][:39])


# --- IPO of blocks ---


@BOTH
@DTYPES
@pytest.mark.parametrize(("d", "size"), [(40, 64), (33, 100), (40, 500)])
def test_ipo_of_blocks_is_ipo(
    target: Target, dtype: str, d: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (size, size))
    rows = smooth(12, 19, d, seed=d).to(getattr(torch, dtype))
    start = torch.rand(1, len(rows), generator=generator(d)) < 0.4
    for iters in (0, 1, 50):
        options = IpoOptions(iters=iters, min_count=1)

        def of_blocks(rows: Tensor, start: Tensor, options: IpoOptions = options) -> Any:
            return run_ipo(array_blocks(as_features(rows)), start, options)

        label, steps, apart = target(of_blocks, rows, start)
        expected, taken, distance = run_ipo(rows[None], start, options)
        assert torch.equal(label, expected)
        assert torch.equal(steps, taken)
        torch.testing.assert_close(apart, distance, rtol=1e-12, atol=1e-12)


@BOTH
def test_ipo_of_blocks_whose_means_turn_over_or_vanish(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (5, 5))
    rows, start = turned_over()
    rng = generator(4)
    problems = [(rows, start), (rows, start | True), (rows, start & False)]
    problems += [
        (torch.randn(12, 2, generator=rng), torch.rand(12, generator=rng) < 0.5) for _ in range(60)
    ]

    def of_blocks(*parts: Tensor) -> list[Any]:
        options = IpoOptions(iters=20, min_count=1)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [run_ipo(array_blocks(as_features(r)), s[None], options) for r, s in pairs]

    ours = target(of_blocks, *(part for problem in problems for part in problem))
    expected = of_blocks(*(part for problem in problems for part in problem))
    for found, wanted in zip(ours, expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-12, atol=1e-12)


@BOTH
def test_ipo_of_blocks_that_are_not_finite_is_marked(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (64, 64))
    rows = smooth(12, 19, 20)
    rows[200, 3] = float("nan")

    def of_blocks(rows: Tensor, start: Tensor) -> Any:
        return run_ipo(array_blocks(as_features(rows)), start, IpoOptions())

    label, steps, apart = target(of_blocks, rows, rows[None, :, 0] > 0)
    assert not label.any()
    assert steps.item() == 0
    assert apart.isnan()


# --- The cut ---


@QUIET
@BOTH
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("share", "orient"), [(0.4, "seed"), (0.75, "corners")])
@pytest.mark.parametrize("name", FRAMES)
def test_landmark_labels(target: Target, name: str, share: float, orient: str) -> None:
    features, grids = FRAMES[name]
    options: dict[str, Any] = {"orient": orient, "landmarks": int(share * len(features))}
    ours = target(selfment.joint_label, features, grid=grids, **options)
    expected = selfment.joint_label(features, grids, **options)
    assert isinstance(ours, LandmarkLabels)
    assert_close(ours, expected)


OTHERS: dict[str, Case] = {
    name: case
    for name, case in (CASES | DEGENERATE).items()
    if name in ("outlier channels", "d = 1", "duplicated rows", "all equal", "all zero")
}


@QUIET
@BOTH
@pytest.mark.parametrize("tau", [0.35, "auto"])
@pytest.mark.parametrize("name", OTHERS)
def test_landmark_labels_of_one_frame(target: Target, name: str, tau: Any) -> None:
    features, grid = OTHERS[name]
    options: dict[str, Any] = {"landmarks": 50, "tau": tau, "ipo_iters": 3, "landmark_seed": 3}
    ours = target(selfment.joint_label, features, grid=[grid], **options)
    assert_close(ours, selfment.joint_label(features, [grid], **options))


@QUIET
@BOTH
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.usefixtures("small_blocks")
def test_landmark_labels_of_lists_and_iterables(target: Target, dtype: str) -> None:
    """Frames of 27 rows of 33 numbers do not begin at multiples of 16 bytes."""
    grids = [(3, 9)] * 7
    features = torch.cat([smooth(3, 9, 33, seed=seed) for seed in range(7)])
    features = features.to(getattr(torch, dtype))

    def labels(rows: Tensor) -> list[Any]:
        parts = rows.split(27)
        strided = torch.cat([rows, rows], dim=1)[:, :33]
        shifted = torch.cat([rows.flatten()[:1], rows.flatten()])[1:].view(-1, 33)
        batch = rows.unflatten(0, (7, 27))
        return [
            selfment.joint_label(form, grids, landmarks=60)
            for form in (rows, list(parts), Frames(rows, grids), strided, shifted)
        ] + [selfment.joint_label(batch, (3, 9), landmarks=60)]

    wanted, *others = target(labels, features)
    for label in others:
        for name, value in fields_of(label).items():
            assert torch.equal(value, fields_of(wanted)[name]), name


@QUIET
@pytest.mark.parametrize(("size", "order"), [(2, "forward"), (3, "reverse"), (3, "shuffle")])
@pytest.mark.usefixtures("small_blocks")
def test_landmark_labels_do_not_depend_on_the_launch(
    emulated: ModuleType, size: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, (features, grids) = Target(emulated, monkeypatch), FRAMES["smooth"]
    expected = target(selfment.joint_label, features, grid=grids, landmarks=150)
    monkeypatch.setenv("SELFMENT_EMULATED_TEAM", str(size))
    monkeypatch.setenv("SELFMENT_EMULATED_ORDER", order)
    found = target(selfment.joint_label, features, grid=grids, landmarks=150)
    for name, value in fields_of(expected).items():
        assert torch.equal(fields_of(found)[name], value), name


@QUIET
def test_what_scratch_held_makes_no_difference_to_landmarks(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, (features, grids) = Target(emulated, monkeypatch), FRAMES["different grids"]
    options: dict[str, Any] = {"grid": grids, "landmarks": 77}
    expected = fields_of(target(selfment.joint_label, features, **options))

    def filled(*size: Any, **kind: Any) -> Tensor:
        return torch.zeros(*size, **kind).view(torch.uint8).fill_(255).view(kind["dtype"])

    monkeypatch.setattr(torch, "empty", filled)
    found = fields_of(target(selfment.joint_label, features, **options))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@BOTH
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("bad", "value"), [(0, float("nan")), (99, float("inf")), (299, -float("inf"))]
)
def test_landmark_cuts_name_what_is_not_finite(target: Target, bad: int, value: float) -> None:
    features = smooth(15, 20, 12)
    features[bad, 3] = value
    for count in (20, 299):
        with pytest.raises(ValueError, match=f"patch {bad % 100} of image {bad // 100}$"):
            target(selfment.joint_label, features, grid=[(5, 20)] * 3, landmarks=count)


@QUIET
@BOTH
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("last", range(2, 8))
def test_an_error_of_the_frames_ends_a_landmark_label(target: Target, last: int) -> None:
    """In whatever pass it comes, those of native IPO included."""

    class Broken(Frames):
        def __iter__(self) -> Iterator[Tensor]:
            for index, frame in enumerate(super().__iter__()):
                if self.passes == last and index == 1:
                    raise OSError("the disk is gone")
                yield frame

    features, grids = frames_of(smooth, *[(12, 12)] * 3)

    def label(rows: Tensor) -> Any:
        return selfment.joint_label(Broken(rows, grids), grids, landmarks=100)

    with pytest.raises(OSError, match=r"^the disk is gone$"):
        target(label, features)


# --- On a device alone ---


@pytest.mark.cuda
def test_landmark_labels_are_on_the_device(device: torch.device) -> None:
    features, grids = FRAMES["smooth"]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        label = selfment.joint_label(features.to(device), grids, landmarks=200)
    stream.synchronize()
    for value in vars(label).values():
        assert all(
            part.device == device for part in (value if isinstance(value, list) else [value])
        )
    assert_close(on_cpu(label), selfment.joint_label(features, grids, landmarks=200))


@pytest.mark.cuda
def test_frames_of_a_device_are_made_one_at_a_time(device: torch.device) -> None:
    """100 frames of 4,096 patches, 384 numbers each: 630 MB, of which a few frames exist."""
    basis = torch.randn(8, 384, generator=generator(0)).to(device)

    class Made:
        def __iter__(self) -> Iterator[Tensor]:
            for index in range(100):
                rows = smooth(64, 64, 8, seed=index % 4).to(device) + index * 1e-4
                yield rows @ basis

    grids, options = [(64, 64)] * 100, {"landmarks": 4000}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    label = selfment.joint_label(Made(), grids, **options)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 300 << 20
    whole = selfment.joint_label(torch.cat(list(Made())), grids, **options)
    for name, value in fields_of(on_cpu(label)).items():
        assert torch.equal(value, fields_of(on_cpu(whole))[name]), name
