"""Deep Spectral Segmentation equals its definition in dense float64, written out here."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import torch
from torch import Tensor

from helpers.cases import CASES, DEGENERATE, blocks, noise, smooth
from selfment.compat import dsm

SMALL = [name for name in CASES if name != "large"]


class Dense:
    """All pairs of (D - W, D), ascending, x^T D x = 1."""

    def __init__(self, rows: Tensor, weight: float = 0, image: np.ndarray | None = None) -> None:
        f = rows.double()
        f = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)).float().double().numpy()
        s = np.maximum(f @ f.T, 0)
        self.W = s / s.max() if s.max() > 0 else s
        if weight > 0:
            assert image is not None
            self.W = self.W + weight * neighbours(image)
        degree = self.W.sum(1)
        degree[degree < 1e-12] = 1
        self.D = np.diag(degree)
        self.values, self.vectors = scipy.linalg.eigh(self.D - self.W, self.D)

    def check(self, values: Tensor, vectors: Tensor) -> None:
        """Checks residuals, orthonormality, eigenvalues, and vectors up to sign or eigenspace.

        The bounds are those of float32 results.
        """
        count = len(vectors)
        assert values.shape == (count,)
        assert values.dtype == vectors.dtype == torch.float32
        theta, x = values.double().numpy(), vectors.double().numpy().T
        degree = np.diag(self.D)
        error = (self.D - self.W) @ x - degree[:, None] * x * theta
        assert np.linalg.norm(error, axis=0).max() < 1e-5
        np.testing.assert_allclose(x.T @ self.D @ x, np.eye(count), atol=1e-5)
        np.testing.assert_allclose(theta, self.values[:count], atol=1e-6)
        for i in range(count):
            space = self.vectors[:, abs(self.values - theta[i]) < 1e-4]
            outside = x[:, i] - space @ (space.T @ self.D @ x[:, i])
            assert np.sqrt(outside @ self.D @ outside) < 1e-3
            share = (vectors[i] > 0).double().mean()
            assert not 0.5 < share < 1
        if (degree != 1).any() or self.W.any():
            linked = self.W.sum(1) >= 1e-12
            assert np.ptp(x[linked, 0]) < 1e-6 * abs(x[:, 0]).max(), "row 0 is the trivial pair"
            assert linked.sum() < len(x) or (x[:, 0] > 0).all(), "which is not negated"

    def oriented(self) -> np.ndarray | None:
        """Returns row 1 by the rule for the sign; None if it, or an entry, is not determined."""
        gaps = np.diff(self.values[:3])
        x = self.vectors[:, 1]
        share = (x > 0).mean()
        if gaps.min() < 1e-3 or share == 0.5 or abs(x).min() < 1e-6 * abs(x).max():
            return None
        return -x if 0.5 < share < 1 else x


def neighbours(image: np.ndarray) -> np.ndarray:
    """Computes the colour affinity by brute force: 20 and 10 neighbours, weights 2 and 0.1."""
    h, w, _ = image.shape
    n = h * w
    W = np.zeros((n, n))
    for k, weight in ((20, 2.0), (10, 0.1)):
        points = np.zeros((n, 5), dtype=np.float32)
        for i in range(n):
            row, column = divmod(i, w)
            points[i, :3] = image[row, column]
            points[i, 3] = weight * column / max(1, w - 1)
            points[i, 4] = weight * row / max(1, h - 1)
        for i in range(n):
            distance = ((points.astype(float) - points[i]) ** 2).sum(1)
            for j in np.argsort(distance)[:k]:
                W[i, j] += 1
                W[j, i] += 1
    return W


def largest_box(foreground: np.ndarray) -> list[int]:
    """Finds the largest box by flood fill over eight neighbours, in reading order."""
    left = {(int(r), int(c)) for r, c in np.argwhere(foreground)}
    best: list[tuple[int, int]] = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        component, queue = [start], deque([start])
        while queue:
            row, column = queue.popleft()
            for r in range(row - 1, row + 2):
                for c in range(column - 1, column + 2):
                    if (r, c) in left:
                        left.discard((r, c))
                        component.append((r, c))
                        queue.append((r, c))
        if len(component) > len(best):
            best = component
    rows, columns = zip(*best, strict=True)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def colours(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Returns colours with distinct distances."""
    return np.random.default_rng(seed).random((h, w, 3))


def check(rows: Tensor, grid: tuple[int, int], count: int = 20, weight: float = 0) -> bool:
    """Compares all results; returns whether the mask was determined, and compared."""
    h, w = grid
    image = colours(h, w) if weight > 0 else None
    dense = Dense(rows, weight, image)
    count = min(count, h * w)
    values, vectors = dsm.eigs(rows, count, weight, image)
    dense.check(values, vectors)
    if count < 2:
        return False
    x = dense.oriented()
    foreground = dsm.mask(vectors, grid)
    assert foreground.dtype == bool
    assert foreground.shape == grid
    if x is not None:
        assert np.array_equal(foreground, x.reshape(grid) > 0)
    assert dsm.box(foreground) == largest_box(foreground)
    assert dsm.box(foreground, 16) == [16 * corner for corner in largest_box(foreground)]
    return x is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_features_alone(name: str) -> None:
    determined = check(*CASES[name])
    assert determined or name in (
        *("isolated patches", "two components", "three components", "two patches", "d = 1"),
        *("three patches", "noise"),
    )


@pytest.mark.parametrize("weight", [0.3, 10])
@pytest.mark.parametrize("name", ["smooth", "rectangle, N = 64 k + 1", "isolated patches", "d = 1"])
def test_features_and_colours(name: str, weight: float) -> None:
    check(*CASES[name], weight=weight)


@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("name", [name for name in DEGENERATE if name != "one patch"])
def test_undetermined_pairs_are_true_ones_and_the_same_each_time(name: str, weight: float) -> None:
    rows, (h, w) = DEGENERATE[name]
    if weight > 0 and h * w < 20:
        pytest.skip("fewer patches than neighbours")
    image = colours(h, w) if weight > 0 else None
    first, second = (dsm.eigs(rows, min(20, h * w), weight, image) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    Dense(rows, weight, image).check(*first)


@pytest.mark.parametrize("n", [1, 2, 5, 24, 49, 70])
def test_all_pairs(n: int) -> None:
    rows = noise(1, n, 12, seed=n)
    for count in {1, n // 2 + 1, n}:
        check(rows, (1, n), count)
    if n >= 20:
        for count in (1, 2, n):
            check(rows, (1, n), count, weight=2.0)


def test_patches_without_edges_are_pairs_of_their_own() -> None:
    """Some patches have no features, and there are eigenvalues on both sides of theirs."""
    rows = noise(5, 12, 6, seed=3)
    rows[::9] = 0
    values, vectors = dsm.eigs(rows, 60)
    Dense(rows).check(values, vectors)
    assert (values == 1).sum() >= 7
    assert values.max() > 1.01
    assert (vectors[0, ::9] == 0).all()
    # The share of positive entries of the constant is above 0.5, and below 1.
    assert (vectors[0] <= 0).all()


@pytest.mark.parametrize("scale", [1e-13, 1e-20, 1e-30])
def test_norms_at_which_the_normalisation_is_clamped(scale: float) -> None:
    rows = smooth(8, 9, 24).double()
    check(rows * scale, (8, 9))
    mixed = rows.clone()
    mixed[::5] *= scale
    check(mixed, (8, 9))


def test_components_and_copies_with_colours() -> None:
    """Two distant colours and two blocks: equal components with repeated eigenvalues."""
    part = smooth(6, 12, 9, seed=2)
    rows = torch.block_diag(part, part)
    image = np.concatenate([colours(6, 12), colours(6, 12) + 1000])
    spaced = neighbours(image)
    assert spaced[:72, 72:].max() == 0
    values, vectors = dsm.eigs(rows, 12, 1.0, image)
    Dense(rows, 1.0, image).check(values, vectors)
    assert (values[:2].abs() < 1e-6).all()


@pytest.mark.parametrize(("copies", "size"), [(6, 40), (8, 20)])
def test_repeated_eigenvalues_with_colours(copies: int, size: int) -> None:
    """Components equal to the bit: the first Krylov space lacks copies of each eigenvalue."""
    graph = dsm._graph(torch.block_diag(*[smooth(1, size, 9, seed=2)] * copies))
    near = np.random.default_rng(0).random((size, size)) < 0.2
    colour = scipy.sparse.csr_array(scipy.sparse.block_diag([(near | near.T) * 1.0] * copies))
    degree = dsm._degree(graph, colour)
    D = np.diag(degree)
    values, vectors = dsm._with_colours(graph, colour, degree, 12)
    W = graph.to_dense().numpy() + colour.toarray()
    np.testing.assert_allclose(values, scipy.linalg.eigh(D - W, D)[0][1:13], atol=1e-9)
    np.testing.assert_allclose(vectors @ D @ vectors.T, np.eye(12), atol=1e-9)
    assert abs((D - W) @ vectors.T - D @ vectors.T * values).max() < 1e-9


@pytest.mark.parametrize("shape", [(9, 11), (1, 30), (30, 1), (5, 4)])
def test_colour_affinity(shape: tuple[int, int]) -> None:
    image = colours(*shape, seed=5)
    W = dsm.knn_affinity(image)
    assert np.array_equal(W.toarray(), neighbours(image))
    assert W.sum() == 2 * 30 * shape[0] * shape[1]
    same = dsm.knn_affinity(torch.from_numpy(image), [20, 10], [2.0, 0.1])
    assert (same != W).nnz == 0


def test_neighbours_of_neighbours_count_by_hand() -> None:
    """Each of three pixels in a row selects itself and the nearer neighbour, twice."""
    image = np.zeros((1, 3, 3))
    image[0, 2] = 5
    W = dsm.knn_affinity(image, (2, 2), (1.0, 1.0)).toarray()
    assert W.tolist() == [[4, 4, 0], [4, 4, 2], [0, 2, 4]]


def test_equally_distant_neighbours() -> None:
    W = dsm.knn_affinity(np.full((7, 8, 3), 128, dtype=np.uint8))
    assert abs(W - W.T).max() == 0
    assert W.sum() == 2 * 30 * 56
    assert (W.diagonal() >= 2).all()


def test_box() -> None:
    side = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    for given in (side, side.astype(bool), torch.from_numpy(side), side * 0.5):
        assert dsm.box(given) == [0, 0, 2, 2]
        assert dsm.box(given, 8) == [0, 0, 16, 16]
    assert all(type(corner) is int for corner in dsm.box(side))
    # The first of equally large components, and all of an empty mask.
    assert dsm.box(np.array([[0, 0, 1], [1, 0, 0]])) == [2, 0, 3, 1]
    assert dsm.box(np.zeros((3, 5))) == [0, 0, 5, 3]
    for seed in range(30):
        random = np.random.default_rng(seed).random((7, 9)) < 0.4
        assert dsm.box(random) == largest_box(random)


def test_photographs(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("classic")
    compared = 0
    for path in photos[::120]:
        image, _ = load_image(path)
        rows = backbone(backbone.preprocess(image, 320)[None])[0]
        h, w = backbone.grid(320)
        crop = rows.reshape(h, w, -1)[3:].reshape((h - 3) * w, -1)
        compared += check(crop, (h - 3, w))
        check(crop, (h - 3, w), weight=0.5)
    assert compared > 0


def test_kinds_of_arrays_agree() -> None:
    rows, _ = CASES["object"]
    expected = dsm.eigs(rows, 5)
    for same in (rows.numpy(), rows.double(), rows.clone().requires_grad_(), rows.T.clone().T):
        assert all(torch.equal(a, b) for a, b in zip(dsm.eigs(same, 5), expected, strict=True))
    default = dsm.eigs(rows)
    assert all(torch.equal(a, b) for a, b in zip(default, dsm.eigs(rows, 20, 0.0, None)))  # noqa: B905
    for dtype in (torch.float16, torch.bfloat16):
        Dense(rows.to(dtype)).check(*dsm.eigs(rows.to(dtype)))
    array = expected[1].numpy()
    assert np.array_equal(dsm.mask(array, (24, 18)), dsm.mask(expected[1], [24, 18]))


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in ("smooth", "object", "rectangle, N = 64 k + 1", "isolated patches"):
        rows, (h, w) = CASES[name]
        for weight in (0, 1.0):
            image = colours(h, w)
            values, vectors = dsm.eigs(rows.cuda(), 20, weight, image)
            assert not vectors.is_cuda
            Dense(rows, weight, image).check(values, vectors)
        assert np.array_equal(dsm.mask(vectors.cuda(), (h, w)), dsm.mask(vectors, (h, w)))


F = noise(4, 5, 3)
E = torch.ones(3, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dsm.eigs(F[0]), r"`feats` must be \(N, C\), N >= 1: got shape \(3,\)"),
        (lambda: dsm.eigs(F[:0]), r"`feats` must be \(N, C\)"),
        (lambda: dsm.eigs(F[:, :0]), "with C >= 1"),
        (lambda: dsm.eigs(F / 0), "`feats` must be finite"),
        (lambda: dsm.eigs(F, 21), "`K` must be an integer from 1 to N = 20: got 21"),
        (lambda: dsm.eigs(F, 0), "`K` must be an integer from 1 .*: got 0"),
        (lambda: dsm.eigs(F, 2.5), "`K` must be an integer"),
        (lambda: dsm.eigs(F, 5, -1), "`image_color_lambda` must be .* >= 0: got -1"),
        (lambda: dsm.eigs(F, 5, np.inf), "`image_color_lambda` must be .* >= 0: got inf"),
        (lambda: dsm.eigs(F, 5, 1), "`image` is needed .*: got None"),
        (lambda: dsm.eigs(F, 5, 1, colours(4, 6)), "`image` must have .* 20 patches: got 24"),
        (lambda: dsm.knn_affinity(np.ones((4, 5))), r"`image` must be \(h, w, 3\): got .*\(4, 5\)"),
        (lambda: dsm.knn_affinity(np.full((4, 5, 3), np.nan)), "`image` must be finite"),
        (lambda: dsm.knn_affinity(colours(3, 5)), "`n_neighbors` .* from 1 to h .* = 15: got 20"),
        (lambda: dsm.knn_affinity(colours(3, 5), [2], [1, 2]), "`distance_weights` .*: got 2 for"),
        (lambda: dsm.mask(E[:1], (4, 5)), r"here \(K, 20\) with K >= 2: got shape \(1, 20\)"),
        (lambda: dsm.mask(E, (4, 6)), r"here \(K, 24\)"),
        (lambda: dsm.mask(E, 20), "`dims` must be 2 positive"),
        (lambda: dsm.box(np.ones(5)), r"`mask` must be \(h, w\): got shape \(5,\)"),
        (lambda: dsm.box(np.ones((2, 2)), 0), "`patch_size` must be an integer >= 1: got 0"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"`feats` must be float16.*: got int64"):
        dsm.eigs(F.long())
    with pytest.raises(TypeError, match=r"`image` must be a torch tensor, .*: got list"):
        dsm.knn_affinity([[1]])


def test_sign_rule() -> None:
    """A small object on a large ground is the foreground, whatever the sign of its entries."""
    rows = blocks(6, 20, 8, count=2, spread=0.02, seed=1)
    order = torch.cat([torch.arange(120)[rows[:, 0] > 0], torch.arange(120)[rows[:, 0] <= 0]])
    for keep in (order[:85], order[-85:]):
        share = (dsm.eigs(rows[keep], 2)[1][1] > 0).double().mean()
        assert 0 < share < 0.5
