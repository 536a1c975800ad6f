"""SelfMask's clusters and vote."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch

from helpers.cases import CASES, noise, smooth
from helpers.method_cases import MORE, clusters, label, photo_features, rows_of, scaled, vote
from selfment.methods import selfmask as _selfmask

SELFMASK = ["noise", "smooth", "rectangle, N = 64 k + 1", "object", "tiny", "isolated patches"]
SELFMASK += ["smooth, N = 64 k", "outlier channels", "duplicated rows", "deep", *MORE]


@pytest.mark.slow
@pytest.mark.parametrize("name", SELFMASK)
def test_selfmask_on_cases(name):
    f, grid = {**CASES, **MORE}[name]
    candidates = clusters(f, grid)
    assert candidates is not None
    found = label(f, grid, "selfmask")
    assert np.array_equal(found.mask[0].numpy(), vote(candidates))


@pytest.mark.slow
def test_selfmask_on_photos(photos):
    for f in photo_features(photos[::40]):
        candidates = clusters(f, (20, 20))
        assert candidates is not None
        assert np.array_equal(_selfmask.selfmask(f, (20, 20)).reshape(20, 20), vote(candidates))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "large", *MORE])
def test_the_vectors_of_selfmask_solve_the_dense_problem(name):
    f, _ = {**CASES, **MORE}[name]
    A = scaled(f)
    degree = A.sum(1)
    degree[degree < 1e-12] = 1
    D = np.diag(degree)
    values = scipy.linalg.eigh(D - A, D)[0][:4]
    x = _selfmask._cosine_vectors(torch.from_numpy(rows_of(f)), 4)
    assert np.allclose(x.T @ D @ x, np.eye(4), atol=1e-6)
    assert np.allclose(x.T @ (D - A) @ x, np.diag(values), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [2, 3])
def test_selfmask_of_few_kinds_of_patches_is_the_same_each_time(kinds):
    """M has fewer positive eigenvalues than vectors are asked for: the others are arbitrary."""
    threads = torch.get_num_threads()
    for seed in range(8):
        f = noise(1, kinds, 16, seed=seed)[torch.arange(108) * kinds // 108]
        vectors = _selfmask._cosine_vectors(torch.from_numpy(rows_of(f)), 4)
        assert (np.abs(vectors).max(axis=0) > 0).sum() <= kinds
        masks = []
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            masks.append(_selfmask.selfmask(f.clone(), (9, 12)).tolist())
        torch.set_num_threads(threads)
        assert all(mask == masks[0] for mask in masks)


def test_the_range_of_products_over_blocks():
    f = smooth(40, 37, 24, seed=8).abs().double()
    f[900] = -f[1402]
    rows = rows_of(f)
    found = _selfmask._range_of_products(torch.from_numpy(rows))
    assert found == pytest.approx(((rows @ rows.T).min(), (rows @ rows.T).max()), abs=1e-12)


@pytest.mark.slow
def test_backbones_vote_together():
    f, g = smooth(12, 9, 32, seed=1), smooth(7, 5, 16, seed=2)
    ours, others = clusters(f, (12, 9)), clusters(g, (7, 5))
    assert ours is not None
    assert others is not None
    # The patch of the other grid that holds the centre of each patch.
    ys = [int((y + 0.5) * 7 / 12) for y in range(12)]
    xs = [int((x + 0.5) * 5 / 9) for x in range(9)]
    candidates = ours + [mask[np.ix_(ys, xs)] for mask in others]
    found = _selfmask.selfmask(f, (12, 9), [(g, (7, 5))]).reshape(12, 9)
    assert np.array_equal(found, vote(candidates))


@pytest.mark.parametrize(
    ("masks", "winner"),
    [
        (["010 010 010", "010 110 000", "010 010 000"], 1),  # from top to bottom: no candidate
        (["000 111 000", "110 110 000", "010 110 000", "000 010 000"], 2),
        (["111 000 000", "010 010 010", "111 010 010"], 2),  # all reach across: all take part
        (["000 000 000", "100 000 000", "000 000 001"], 1),  # empty; the first of equals
    ],
)
def test_the_vote(masks, winner, monkeypatch):
    given = [np.array([[c == "1" for c in row] for row in mask.split()]) for mask in masks]
    monkeypatch.setattr(_selfmask, "_clusters", lambda _: [mask.ravel() for mask in given])
    found = _selfmask.selfmask(noise(3, 3, 4), (3, 3)).reshape(3, 3)
    assert np.array_equal(found, given[winner])
    assert np.array_equal(found, vote(given))
