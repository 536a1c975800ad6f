"""Regions: the embedding by dense float64, written out here, and the two discretisations of it."""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

import selfment
from helpers import processes
from helpers.cases import CASES, DEGENERATE, blocks, noise, smooth

METHODS = ("kmeans", "rotation")


def embedding(features: Tensor, k: int, tau: float = 0.2, graph: str = "binary") -> np.ndarray:
    """(N, k): rows of the k leading eigenvectors of D^-1/2 A D^-1/2, scaled to norm 1."""
    f = features.double()
    f = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)).float().double().numpy()
    s = f @ f.T
    edge, weight = (s > tau, 1.0) if graph == "binary" else (s >= tau, s)
    A = np.where(edge, weight, 1e-5)
    root = np.sqrt(A.sum(1))
    theta, y = np.linalg.eigh(A / root[:, None] / root)
    y = y[:, ::-1][:, :k] * (theta[::-1][:k] > 1e-6)
    return y / np.linalg.norm(y, axis=1, keepdims=True)


def objective(points: np.ndarray, labels: np.ndarray, k: int) -> float:
    """What the rotation maximises: the nuclear norm of X^T points."""
    indicator = np.zeros((len(points), k))
    indicator[np.arange(len(points)), labels] = 1
    return float(np.linalg.svd(indicator.T @ points)[1].sum())


def rotated(points: np.ndarray) -> np.ndarray:
    """Yu and Shi's loop, from the first row."""
    k = points.shape[1]
    rotation = np.zeros((k, k))
    rotation[:, 0] = points[0]
    c = np.zeros(len(points))
    for column in range(1, k):
        c += abs(points @ rotation[:, column - 1])
        rotation[:, column] = points[c.argmin()]
    previous = None
    while True:
        labels = (points @ rotation).argmax(1)
        if previous is not None and np.array_equal(labels, previous):
            return labels
        previous = labels
        u, _, vt = np.linalg.svd(np.eye(k)[labels].T @ points)
        rotation = vt.T @ u.T


def same_parts(a: Any, b: Any) -> bool:
    """Equal up to the names of the parts."""
    pairs = set(zip(np.ravel(a).tolist(), np.ravel(b).tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def agreement(a: Any, b: Any) -> float:
    """The share of patches in the parts of b that those of a mostly are."""
    a, b = np.ravel(a), np.ravel(b)
    return sum(np.bincount(b[a == part]).max() for part in np.unique(a)) / len(a)


def planted(h: int, w: int, k: int) -> Tensor:
    """Which of the vertical bands of `cases.blocks` a patch is in, (h, w)."""
    return (torch.arange(w) * k // w).repeat(h, 1)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [2, 3, 8])
def test_blocks_are_found(k: int, method: str, graph: str) -> None:
    for seed, spread in ((0, 0.01), (2, 0.1)):
        features = blocks(9, 41, 32, count=k, spread=spread, seed=seed)
        found = selfment.regions(features, (9, 41), k=k, method=method, graph=graph)
        assert found.shape == (9, 41)
        assert found.dtype == torch.int64
        # Bands from left to right: the order of first appearance.
        assert torch.equal(found, planted(9, 41, k)), (seed, spread)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", ["binary", "weighted"])
def test_mixed_blocks_by_the_dense_embedding(method: str, graph: str) -> None:
    """Blocks with edges between them: the same discretisation of the dense embedding."""
    for seed in range(2):
        k = 3 + seed
        features = blocks(8, 30, 32, count=k, spread=0.18, seed=seed)
        points = embedding(features, k, graph=graph)
        if method == "kmeans":
            expected = KMeans(k, n_init=10, random_state=0).fit_predict(points)
        else:
            expected = rotated(points)
        found = selfment.regions(features, (8, 30), k=k, method=method, graph=graph)
        assert same_parts(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "object", "outlier channels", "isolated patches"])
def test_rotation_of_the_dense_embedding(name: str) -> None:
    features, grid = CASES[name]
    for k in (2, 3, 4):
        found = selfment.regions(features, grid, k=k, method="rotation")
        assert agreement(found, rotated(embedding(features, k))) > 0.99


def test_rotation_reaches_the_optimum() -> None:
    """Of all labellings of a small planted graph none is nearer to the embedding."""
    for k, sizes in ((2, (4, 3)), (3, (3, 2, 3))):
        centres = torch.eye(k).repeat_interleave(torch.tensor(sizes), 0)
        rows = centres + 0.25 * noise(1, sum(sizes), k, seed=k)
        points = embedding(rows, k)
        found = selfment.regions(rows, (1, len(rows)), k=k, method="rotation").flatten().numpy()
        best = max(
            objective(points, np.array(labels), k) for labels in product(range(k), repeat=len(rows))
        )
        assert objective(points, found, k) == pytest.approx(best, rel=1e-9)


def test_rotation_is_where_no_single_patch_gains() -> None:
    features, grid = CASES["smooth"]
    points = embedding(features, 3)
    found = selfment.regions(features, grid, k=3, method="rotation").flatten().numpy()
    indicator = np.eye(3)[found]
    u, _, vt = np.linalg.svd(indicator.T @ points)
    scores = points @ (vt.T @ u.T)
    best = scores.max(1)
    assert (best - scores[np.arange(len(found)), found]).max() < 1e-6


def test_photographs(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("statistics")
    for path in photos[::200]:
        image, _ = load_image(path)
        rows = backbone(backbone.preprocess(image, 320)[None])[0]
        h, w = backbone.grid(320)
        crop = rows.reshape(h, w, -1)[3:].reshape((h - 3) * w, -1)
        for k in (2, 4):
            points = embedding(crop, k)
            found = selfment.regions(crop, (h - 3, w), k=k, method="rotation")
            assert agreement(found, rotated(points)) > 0.99
            found = selfment.regions(crop, (h - 3, w), k=k)
            labels = found.flatten().numpy()
            inertia = sum(
                ((points[labels == i] - points[labels == i].mean(0)) ** 2).sum()
                for i in np.unique(labels)
            )
            least = KMeans(k, n_init=10, random_state=0).fit(points).inertia_
            assert inertia <= 1.001 * least


@pytest.mark.parametrize("method", METHODS)
def test_ids_are_in_order_of_appearance_and_results_repeat(method: str) -> None:
    for name in ("noise", "d = 1", "rectangle, N = 64 k + 1"):
        features, grid = CASES[name]
        found = selfment.regions(features, grid, k=4, method=method)
        _, first = np.unique(found.numpy(), return_index=True)
        assert (np.diff(first) > 0).all()
        assert found.flatten()[0] == 0
        assert torch.equal(found, selfment.regions(features, grid, k=4, method=method))


def test_seed() -> None:
    """Patches without any structure: the starts end in different optima."""
    found = [selfment.regions(noise(10, 10, 24), (10, 10), k=9, seed=s) for s in (0, 1, 2, 0)]
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) or not torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", METHODS)
def test_fewer_distinct_rows_than_regions(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, parts in (("all equal", 1), ("all zero", 1), ("four equal components", 4)):
            features, grid = DEGENERATE[name]
            found = selfment.regions(features, grid, k=6, method=method)
            assert found.max() == parts - 1
            expected = features.argmax(1) if parts > 1 else torch.zeros(len(features))
            assert same_parts(found, expected)
        three = torch.eye(3)[torch.arange(90) % 3]
        found = selfment.regions(three, (9, 10), k=5, method=method)
        assert same_parts(found, torch.arange(90) % 3)
        selfment.regions(torch.eye(100), (10, 10), k=3, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_as_many_regions_as_patches(method: str) -> None:
    features = torch.eye(4) + 0.1
    found = selfment.regions(features, (2, 2), k=4, method=method, tau=0.5)
    assert found.tolist() == [[0, 1], [2, 3]]


@pytest.mark.slow
def test_more_vectors() -> None:
    features, grid = CASES["smooth"]
    for vectors in (2, 6):
        points = embedding(features, vectors)
        found = selfment.regions(features, grid, k=3, vectors=vectors, seed=7)
        expected = KMeans(3, n_init=10, random_state=7).fit_predict(points)
        assert agreement(found, expected) > 0.99
    same = selfment.regions(features, grid, k=3, vectors=3)
    assert torch.equal(same, selfment.regions(features, grid, k=3))


def test_parameters_of_the_graph() -> None:
    features, grid = CASES["object"]
    found = selfment.regions(features, grid, k=3, tau=0.4, graph="weighted", method="rotation")
    expected = rotated(embedding(features, 3, 0.4, "weighted"))
    assert agreement(found, expected) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_batches_and_kinds_of_arrays(method: str) -> None:
    images = torch.stack([smooth(8, 9, 20, seed=s) for s in range(21)])
    batch = selfment.regions(images, (8, 9), k=3, method=method)
    assert batch.shape == (21, 8, 9)
    for image in (0, 20):
        single = selfment.regions(images[image], (8, 9), k=3, method=method)
        assert torch.equal(batch[image], single)
    maps = images.transpose(1, 2).reshape(21, 20, 8, 9)
    assert torch.equal(selfment.regions(maps, k=3, method=method), batch)
    array = selfment.regions(images.numpy(), (8, 9), k=3, method=method)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.int64
    assert np.array_equal(array, batch.numpy())


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    features = blocks(9, 41, 32, count=4, spread=0.1)
    for method in METHODS:
        found = selfment.regions(features.cuda(), (9, 41), k=4, method=method)
        assert found.is_cuda
        assert torch.equal(found.cpu(), planted(9, 41, 4))
    with pytest.raises(ValueError, match="`features` must be finite"):
        selfment.regions(torch.full((6, 2), torch.nan).cuda(), (2, 3), k=2)


F = noise(4, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "`k` must be an integer >= 2: got 1"),
        ({"k": 2.5}, "`k` must be an integer >= 2: got 2.5"),
        ({"k": 21}, "`k` must be <= N: got k = 21 for N = 20"),
        ({"k": 3, "method": "mean"}, "`method` must be 'kmeans' or 'rotation': got 'mean'"),
        ({"k": 3, "vectors": 1}, "`vectors` must be None or an integer from 2 to N = 20: got 1"),
        ({"k": 3, "vectors": 21}, "`vectors` must be None or an integer .* got 21"),
        ({"k": 3, "vectors": 4, "method": "rotation"}, "`vectors` must be k .*: got 4 for k = 3"),
        ({"k": 3, "seed": -1}, r"`seed` must be an integer from 0 to 2\^32 - 1: got -1"),
        ({"k": 3, "eps": 0}, "`eps` must be in"),
        ({"k": 3, "graph": "dense"}, "`graph` must be"),
    ],
)
def test_wrong_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selfment.regions(F, (4, 5), **options)


def test_wrong_features() -> None:
    with pytest.raises(ValueError, match="`grid` is needed"):
        selfment.regions(F, k=2)
    with pytest.raises(ValueError, match=r"`grid` must satisfy h\*w == N"):
        selfment.regions(F, (4, 6), k=2)
    with pytest.raises(ValueError, match=r"`features` must be finite.* in patch 0 of image 0"):
        selfment.regions(F / 0, (4, 5), k=2)
    with pytest.raises(ValueError, match="`k` must be <= N: got k = 2 for N = 1"):
        selfment.regions(torch.ones(1, 3), (1, 1), k=2)
    with pytest.raises(TypeError, match="`features` must be"):
        selfment.regions(F.long(), (4, 5), k=2)


@pytest.mark.slow
def test_neither_import_nor_rotation_needs_scikit_learn() -> None:
    code = (
        "import sys, torch, selfment; "
        "selfment.regions(torch.eye(9), (3, 3), k=2, method='rotation'); "
        "assert callable(selfment.regions); "
        "assert 'sklearn' not in sys.modules"
    )
    done = processes.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
