"""Compares parts of the embedded features with scikit-image and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import lil_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist, mahalanobis
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from torch import Tensor
from torch.nn import functional

from selfment.backbones import pixels, saliency

GRIDS = [(24, 24), (7, 11), (1, 9), (2, 2), (1, 1)]


def rows_of(h: int, w: int, seed: int = 0) -> Tensor:
    """Returns (h w, 12) statistics of cells that vary over the grid."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 12, 3, 3, generator=rng)
    smooth = functional.interpolate(coarse, (h, w), mode="bilinear")[0].flatten(1).T
    return smooth + 0.05 * torch.rand(h * w, 12, generator=rng)


def stretched(values: np.ndarray) -> np.ndarray:
    return (values - values.min(0)) / np.maximum(values.max(0) - values.min(0), 1e-9)


def test_lab_is_that_of_scikit_image() -> None:
    rgb = torch.rand(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    rgb[:, :, 0] = torch.linspace(0, 0.05, 50)  # the linear parts of both curves
    expected = rgb2lab(rgb[0].permute(1, 2, 0).double().numpy()) / 100
    assert np.abs(pixels.lab(rgb)[0].permute(1, 2, 0).numpy() - expected).max() < 2e-4


def test_products_are_exact() -> None:
    rows, others = (
        20 * torch.randn(n, 14, generator=torch.Generator().manual_seed(n)) for n in (9, 7)
    )
    exact = [pixels.rounded(part) for part in (rows, others)]
    assert all(torch.equal(part * 2**12, (part * 2**12).round()) for part in exact)
    expected = [
        [sum(map(int, (a * b * 2**24).tolist())) / 2**24 for b in exact[1]] for a in exact[0]
    ]
    assert torch.equal(pixels.product(rows, others), torch.tensor(expected).float())


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_ranking_solves_its_system(h: int, w: int) -> None:
    rows = rows_of(h, w)
    sides = saliency._sides(h, w, rows.device)
    queries = sides.float()
    found = saliency._Ranking(saliency._distances(rows), sides.any(1), h, w)(queries).numpy()
    exact = pixels.rounded(rows).numpy()
    place = np.indices((h, w)).reshape(2, -1).T
    border = sides.any(1).numpy()
    joined = (cdist(place, place) <= 2.3) | np.outer(border, border)
    np.fill_diagonal(joined, False)
    affinity = np.exp(-cdist(exact, exact) / 0.1) * joined
    system = np.diag(affinity.sum(1) + 1e-6) - 0.99 * affinity
    expected = stretched(np.linalg.solve(system, queries.double().numpy()))
    assert np.abs(found - expected).max() < 2e-3


@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_geodesic_distance_is_dijkstras(h: int, w: int) -> None:
    rows = rows_of(h, w, seed=1)
    start = saliency._sides(h, w, rows.device)[:, 0]
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    values, steps = rows.double().numpy().reshape(h, w, -1), {}
    for y, x in np.ndindex(h, w):
        for dy, dx in around:
            if 0 <= y + dy < h and 0 <= x + dx < w:
                step = np.linalg.norm(values[y, x] - values[y + dy, x + dx])
                steps[y * w + x, (y + dy) * w + x + dx] = step
    smallest = [
        min([step for (a, _), step in steps.items() if a == cell], default=1e3)
        for cell in range(h * w)
    ]
    graph = lil_array((h * w, h * w))
    for pair, step in steps.items():
        graph[pair] = max(step - np.mean(smallest), 0) + 1e-12  # an edge, although it costs nothing
    distance = dijkstra(graph.tocsr(), indices=np.flatnonzero(start), min_only=True)
    found = saliency._geodesic(rows, start, h, w).numpy()
    assert np.abs(found - stretched(distance)).max() < 1e-3


@pytest.mark.parametrize(("h", "w"), [(24, 24), (7, 11)])
def test_the_distance_to_the_sides_is_mahalanobis(h: int, w: int) -> None:
    rows = rows_of(h, w, seed=2)
    cells = rows.double().numpy()
    every = []
    for side in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
        part = cells.reshape(h, w, -1)[side].reshape(-1, 12)
        inverse = np.linalg.inv(np.cov(part.T, bias=True) + 1e-3 * np.eye(12))
        away = np.array([mahalanobis(cell, part.mean(0), inverse) for cell in cells])
        every.append(away / away.max())
    expected = stretched(np.sum(every, 0) - np.max(every, 0))
    assert np.abs(saliency._unlike_sides(rows, h, w).numpy() - expected).max() < 1e-3


def test_the_threshold_is_otsus() -> None:
    stream = np.random.RandomState(0)
    values = np.concatenate([stream.normal(0.2, 0.05, 300), stream.normal(0.7, 0.1, 200)])
    found = saliency.otsu(torch.from_numpy(values).float()).item()
    # All thresholds between two values are equivalent.
    parted = values > threshold_otsu(values, nbins=4000)
    assert np.array_equal(values > found, parted)


def test_halved_means_two_by_two() -> None:
    maps = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixels.halved(maps), functional.avg_pool2d(maps, 2))
