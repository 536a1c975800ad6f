"""The CPU kernels on plain memory: operations against their definitions, and many callers at once.

Nothing here needs torch, whose own threads a sanitizer would report: `.ci/sanitize` runs these
tests on the module that it has built, whose file $SELFMENT_CPU_MODULE names.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from helpers.callers import calling, interrupt_within, run_at_once
from helpers.kernels import EPS, TAU, Array, Images, native_module


@pytest.fixture(scope="module")
def native() -> ModuleType:
    return native_module()


def smooth(batch: int, grid: tuple[int, int], d: int, seed: int = 0) -> Array:
    """(B, h * w, d) float32: a few waves over the grid, mixed into d channels, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : grid[0], 0 : grid[1]].reshape(2, 1, -1, 1) / 6
    phase = random.uniform(0, 6, (4, batch, 1, 6))
    waves = np.sin(phase[0] + phase[1] / 6 * x) * np.cos(phase[2] + phase[3] / 6 * y)
    mixed = waves @ random.normal(size=(6, d)) + 0.3 * random.normal(size=(batch, x.size, d))
    return np.ascontiguousarray(mixed.astype(np.float32))


def unit(rows: Array) -> Array:
    """(N, d) normalised in float64, rounded to float32."""
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return (wide / np.maximum(lengths, 1e-12)).astype(np.float32)


def dense_affinity(f: Array, weighted: bool) -> Array:
    """A (N, N) by its definition."""
    similarity = f.astype(np.float64) @ f.astype(np.float64).T
    if weighted:
        return np.where(similarity >= TAU, similarity, EPS)
    return np.where(similarity > TAU, 1, EPS)


def edges_of(bits: Array, n: int) -> Array:
    """The bits of an image as (N, N) bool; all others must be 0."""
    words = -(-n // 64)
    columns = bits.reshape(words, words * 64)
    shifts = np.arange(64, dtype=np.uint64)[:, None]
    all_ = np.concatenate([(column >> shifts & np.uint64(1)).astype(bool) for column in columns])
    edges = all_.T  # (rows, columns)
    assert not edges[n:].any()
    assert not edges[:, n:].any()
    return edges[:n, :n]


def component_of(side: Array, grid: tuple[int, int], seed: int) -> Array:
    """The 4-connected component (N,) of the seed."""
    side, found = side.reshape(grid), np.zeros(grid, dtype=bool)
    open_ = [divmod(seed, grid[1])]
    while open_:
        i, j = open_.pop()
        if 0 <= i < grid[0] and 0 <= j < grid[1] and side[i, j] and not found[i, j]:
            found[i, j] = True
            open_ += [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
    return found.ravel()


def literal_ipo(f: Array, labels: Array) -> Array:
    """The labels (N,) after at most 20 steps, as the method says."""

    def way(labels: Array) -> Array:
        difference: Array = f[labels].mean(0) - f[~labels].mean(0)
        return difference

    f, labels = f.astype(np.float64), labels.copy()
    if labels.all() or not labels.any():
        return labels
    first = way(labels)
    for _ in range(20):
        if min(labels.sum(), (~labels).sum()) < 10:
            break
        labels = f @ way(labels) > 1e-12
        if labels.all() or not labels.any():
            break
        if way(labels) @ first < 0:
            labels = ~labels
    return labels


def check(images: Images, wide: Array) -> None:
    """Compares every operation with its definition on the features ``wide``, in float64."""
    painted = np.zeros((images.batch, images.n), dtype=bool)
    painted[:, 1::3] = True
    x = np.random.default_rng(1).normal(size=(images.batch, 2, images.n))
    for weighted in (False, True):
        bits, degrees, weights = images.affinity(weighted)
        product = images.matvec(bits, weights, x)
        rest, rest_degrees, _ = images.paint(bits, weights, painted)
        k = min(2, images.n - 1)
        values, vectors, _, residuals, _ = images.fiedler(bits, weights, degrees, k)
        vector = np.ascontiguousarray(vectors[:, 0])
        mask, seed, peaks = images.components(vector, corners=False)
        refined = images.ipo(mask)[0]
        assert (residuals < 1e-8).all()
        for i in range(images.batch):
            f = unit(wide[i])
            dense = dense_affinity(f, weighted)
            assert np.array_equal(edges_of(bits[i], images.n), dense != EPS)
            close = 1e-6 if weighted else 1e-13  # weights are float32
            assert np.allclose(degrees[i], dense.sum(1), rtol=close, atol=0)
            assert np.allclose(product[i], x[i] @ dense, rtol=0, atol=close * np.abs(dense).sum())
            without = dense_affinity(np.where(painted[i, :, None], 0, f), weighted)
            assert np.array_equal(edges_of(rest[i], images.n), without != EPS)
            assert np.allclose(rest_degrees[i], without.sum(1), rtol=close, atol=0)

            scale = 1 / np.sqrt(degrees[i])
            normalised = scale[:, None] * dense * scale
            expected = np.sort(1 - np.linalg.eigvalsh(normalised))[1 : k + 1]
            assert np.allclose(values[i], expected, rtol=0, atol=10 * close)
            for value, v in zip(values[i], vectors[i], strict=True):
                y = v / scale
                assert np.isclose(y @ y, 1)
                assert np.linalg.norm(normalised @ y - (1 - value) * y) < 10 * close + 1e-8

            side = vector[i] > vector[i].mean()
            size = np.abs(vector[i])
            first = np.flatnonzero(size >= size.max() * (1 - 1e-7))[0]
            assert seed[i] == peaks[i, 0] == first
            kept = component_of(side if side[first] else ~side, images.grid, int(first))
            assert np.array_equal(mask[i], kept)
            assert np.array_equal(refined[i], literal_ipo(f, mask[i]))


SHAPES = [
    (2, (1, 2), 3),
    (3, (1, 3), 1),
    (1, (7, 7), 8),
    (2, (8, 8), 33),
    (3, (5, 13), 64),
    (1, (10, 13), 300),
    (5, (12, 16), 17),
]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("batch", "grid", "d"), SHAPES)
def test_every_operation_by_its_definition(
    native: ModuleType, batch: int, grid: tuple[int, int], d: int, threads: int
) -> None:
    rows = smooth(batch, grid, d)
    check(Images(native, rows, grid, threads), rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_every_dtype(native: ModuleType, dtype: str) -> None:
    rows = smooth(2, (9, 11), 45)
    if dtype == "bfloat16":
        halves = np.ascontiguousarray(rows.view(np.uint32) >> 16).astype(np.uint16)
        wide = (halves.astype(np.uint32) << 16).view(np.float32)
        check(Images(native, halves, (9, 11), 2, bfloat=True), wide)
    else:
        rows = rows.astype(dtype)
        check(Images(native, rows, (9, 11), 2), rows)


def test_halves_are_the_floats_that_they_stand_for(native: ModuleType) -> None:
    """Every finite half, subnormal ones included."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(62, 128, 8)
    found = Images(native, halves, (8, 16), 2).outputs(weighted=False)
    expected = Images(native, halves.astype(np.float32), (8, 16), 2).outputs(weighted=False)
    assert_same(list(found.values()), list(expected.values()))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "dtype"), [(130, 70_000, "float32"), (200, 65_536, "float16")])
def test_rows_too_long_to_be_packed_at_once(native: ModuleType, n: int, d: int, dtype: str) -> None:
    """Several groups of columns; more elements than a sum of integers can take."""
    rows = smooth(1, (1, n), d).astype(dtype)
    images = Images(native, rows, (1, n), 2)
    for weighted in (False, True):
        bits, degrees, _ = images.affinity(weighted)
        dense = dense_affinity(unit(rows[0]), weighted)
        assert np.array_equal(edges_of(bits[0], n), dense != EPS)
        assert np.allclose(degrees[0], dense.sum(1), rtol=1e-6 if weighted else 1e-13)


def test_a_row_that_is_not_finite_is_named(native: ModuleType) -> None:
    rows = smooth(3, (8, 9), 20)
    rows[1, 71, 19] = np.nan
    rows[2, 0, 0] = np.inf
    images = Images(native, rows, (8, 9), 2)
    with pytest.raises(AssertionError, match="row 143 is not finite"):
        images.affinity(True)
    with pytest.raises(AssertionError, match="row 143 is not finite"):
        images.ipo(np.ones((3, 72), dtype=bool))


def assert_same(found: list[Array], expected: list[Array]) -> None:
    assert len(found) == len(expected) > 15
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert np.array_equal(ours, theirs), f"result {index}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "grid", "d"), [(1, (32, 34), 128), (2, (25, 27), 40), (20, (14, 15), 16)]
)
def test_many_callers_at_once(
    native: ModuleType, batch: int, grid: tuple[int, int], d: int
) -> None:
    """Eight callers with 1 to 8 threads each read the same features, and agree to the bit."""
    rows = smooth(batch, grid, d)
    expected = Images(native, rows, grid, 1).everything()

    def work(index: int) -> None:
        for threads in (index + 1, 8 - index):
            assert_same(Images(native, rows, grid, threads).everything(), expected)

    run_at_once(work, 8)


@pytest.mark.parametrize("weighted", [False, True])
def test_interruptions_leave_other_callers_alone(native: ModuleType, weighted: bool) -> None:
    rows = smooth(2, (11, 13), 40)
    expected = Images(native, rows, (11, 13), 1).everything()

    def other() -> None:
        assert_same(Images(native, rows, (11, 13), 3).everything(), expected)

    row = smooth(1, (80, 120), 64)

    def long_(attempt: int) -> None:
        features = np.tile(row, (1, 1, 32 + 16 * min(attempt, 6)))
        Images(native, features, (80, 120), 4).affinity(weighted)

    with calling(other, 3), pytest.raises(KeyboardInterrupt):
        interrupt_within(long_)
