"""Masks of the compared methods equal literal ones: dense, float64, written out here."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor

from helpers.cases import CASES, DEGENERATE, noise, smooth
from helpers.method_cases import DETERMINED, found_of, heads_of, label, photo_features, rows_of
from selfment import IpoOptions, PseudoLabels, reference
from selfment.backbones import Attended
from selfment.compat import dsm as compat_dsm
from selfment.compat.maskcut import maskcut_forward
from selfment.core.options import NO_IPO
from selfment.methods import (
    METHODS,
    Dsm,
    Found,
    MaskCut,
    SelfMask,
    Selfment,
    SelfmentCls,
    SelfmentKmeans,
    TokenCut,
    as_method,
)
from selfment.methods.found import foreground
from selfment.methods.splits import cls_split, kmeans_split

pytest.importorskip("sklearn")

TINY = "vit_tiny_patch16_224"

ALL = sorted(CASES)


def pairs_of(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scipy.linalg.eigh(np.diag(A.sum(1)) - A, np.diag(A.sum(1)))


# TokenCut, MaskCut and Deep Spectral Methods


def tokencut(f: Tensor, grid) -> np.ndarray | None:
    A = np.where(rows_of(f) @ rows_of(f).T > 0.2, 1.0, 1e-5)
    values, vectors = pairs_of(A)
    x = vectors[:, 1]
    if len(values) > 2 and values[2] - values[1] < DETERMINED:
        return None
    side = x > x.mean()
    seed = int(np.argmax(abs(x) >= abs(x).max() * (1 - 1e-7)))
    side = side if side[seed] else ~side
    parts = scipy.ndimage.label(side.reshape(grid))[0]
    return parts == parts.flat[seed]


def dsm(f: Tensor, grid) -> np.ndarray | None:
    A = np.maximum(rows_of(f) @ rows_of(f).T, 0)
    A = A / A.max()
    degree = A.sum(1)
    degree[degree < 1e-12] = 1
    values, vectors = scipy.linalg.eigh(np.diag(degree) - A, np.diag(degree))
    x = vectors[:, 1]
    x[abs(x) < 1e-12 * abs(x).max()] = 0  # of patches without edges, up to rounding
    if (len(values) > 2 and values[2] - values[1] < DETERMINED) or values[1] < DETERMINED:
        return None
    if 0.5 < (x > 0).mean() < 1:
        x = -x
    return (x > 0).reshape(grid)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "literal"), [("tokencut", tokencut), ("dsm", dsm)])
def test_cuts_on_cases(method, literal):
    compared = 0
    for name, (f, grid) in CASES.items():
        expected = literal(f, grid)
        found = label(f, grid, method)
        if expected is not None:
            assert np.array_equal(found.mask[0].numpy(), expected), name
            compared += 1
        assert torch.equal(found.mask, found.ncut_mask)
        assert found.eigenvalue.isfinite().all()
        assert found.ipo_iters.item() == 0
    assert compared >= len(CASES) - 3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "literal"), [("tokencut", tokencut), ("dsm", dsm)])
def test_cuts_on_photos(method, literal, photos):
    for f in photo_features(photos[::40]):
        assert np.array_equal(label(f, (20, 20), method).mask[0].numpy(), literal(f, (20, 20)))


def test_the_vector_of_dsm_has_its_sign():
    f, grid = CASES["smooth"]
    found = label(f, grid, "dsm")
    assert torch.equal(found.fiedler > 0, found.mask)
    assert found.mask.double().mean() <= 0.5
    assert found.seed.item() == -1


def maskcut_union(f: Tensor, grid) -> np.ndarray:
    """Of the drop-in, which its own tests compare with LAPACK's masks."""
    return np.sum(maskcut_forward(f.T, list(grid), [1, 1], grid, 0.15, 3)[1], axis=0) > 0


def test_maskcut_is_the_union_of_three_rounds(photos):
    cases = [case for case in CASES.values() if len(case[0]) > 1]
    cases += [(f, (20, 20)) for f in photo_features(photos[::40])]
    grown = 0
    for f, grid in cases:
        found = label(f, grid, "maskcut")
        assert np.array_equal(found.mask[0].numpy(), maskcut_union(f, grid))
        first = maskcut_forward(f.T, list(grid), [1, 1], grid, 0.15, 1)[1][0]
        assert np.array_equal(found.ncut_mask[0].numpy(), first)
        grown += int(found.mask.sum() > found.ncut_mask.sum())
    assert grown > 3


@pytest.mark.parametrize(
    ("areas", "union"),
    [
        # Each mask begins at the patch of the first number and ends before the second, of 200.
        ([(0, 20), (8, 28), (40, 50)], {*range(28), *range(40, 50)}),  # IoU 3 / 7
        ([(0, 20), (5, 30), (40, 50)], {*range(30), *range(40, 50)}),  # IoU 1 / 2: it counts
        ([(0, 20), (4, 24), (40, 50)], {*range(20), *range(40, 50)}),  # more: it does not,
        ([(0, 20), (4, 22), (4, 22)], {*range(22)}),  # and nothing resembles an empty mask
        ([(0, 20), (40, 42), (60, 63)], {*range(20), *range(60, 63)}),  # 1 %, and more
        ([(0, 1), (0, 1), (0, 1)], {0}),  # the first always counts
    ],
)
def test_which_rounds_count(areas, union, monkeypatch):
    grid = (10, 20)
    masks = iter([torch.arange(200)[None].ge(a) & torch.arange(200)[None].lt(b) for a, b in areas])
    seed, x = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 200)
    monkeypatch.setattr(
        "selfment.methods.maskcut._round", lambda graph, grid: (next(masks), seed, x)
    )
    found = MaskCut().label(torch.ones(1, 200, 8), grid).mask.flatten()
    assert set(found.nonzero().flatten().tolist()) == union


def test_dsm_is_the_mask_of_the_drop_in(photos):
    for f in photo_features(photos[::20]):
        grid = (20, 20)
        assert np.array_equal(
            label(f, grid, "dsm").mask[0].numpy(), compat_dsm.mask(compat_dsm.eigs(f, K=2)[1], grid)
        )


def test_maskcut_takes_batches():
    f = torch.stack([smooth(12, 9, 32, seed=seed) for seed in range(4)])
    together = MaskCut().label(f, (12, 9))
    for image in range(4):
        assert torch.equal(label(f[image], (12, 9), "maskcut").mask[0], together.mask[image])


# FOUND


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("name", ["smooth", "smooth, N = 64 k", "object", "noise", "tiny"])
def test_found_on_cases(name, by_head):
    f, grid = CASES[name]
    f = f[:, : f.shape[1] // 3 * 3]
    attention = heads_of(len(f))
    given = Attended(f[None], f[None, 0], attention[None], by_head)
    mask = Found().label(given, grid).mask[0]
    expected = found_of(f, attention, by_head)
    assert np.array_equal(mask.flatten().numpy(), expected)
    assert 0 < expected.sum() < len(expected)


def test_the_weights_of_heads_matter():
    f, _ = CASES["smooth"]
    attention = heads_of(len(f))
    assert not np.array_equal(*(foreground(f, attention, by_head=by) for by in (True, False)))


# Initial splits


def lloyd(f: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, float]:
    while True:
        means = [f[part].mean(0) for part in (side, ~side)]
        distances = np.stack([((f - mean) ** 2).sum(1) for mean in means])
        new = distances[0] < distances[1]
        if np.array_equal(new, side) or new.all() or not new.any():
            return side, distances.min(0).sum()
        side = new


@pytest.mark.parametrize(
    "name", ["smooth", "object", "rectangle, N = 64 k + 1", "outlier channels"]
)
def test_kmeans_is_a_best_split_with_the_border_outside(name):
    f, grid = CASES[name]
    side = kmeans_split(f, grid)
    rows = rows_of(f)
    settled, spread = lloyd(rows, side)
    assert np.mean(settled != side) < 0.01  # but for the solver's tolerance
    random = np.random.RandomState(5)
    others = [lloyd(rows, random.rand(len(rows)) < 0.5)[1] for _ in range(5)]
    assert spread <= min(others) * 1.001
    h, w = grid
    border = [y in (0, h - 1) or x in (0, w - 1) for y in range(h) for x in range(w)]
    inside = sum(b and s for b, s in zip(border, side, strict=True))
    if inside * 2 == sum(border):
        assert side.sum() * 2 <= len(side)
    assert inside * 2 <= sum(border)


def test_kmeans_ties():
    near = torch.tensor([[1.0, 0.0]]).repeat(2, 1)
    far = torch.tensor([[0.0, 1.0]]).repeat(2, 1)
    # One row of patches is all border: the smaller cluster, then that without the first patch.
    assert kmeans_split(torch.cat([near, far[:1]]), (1, 3)).tolist() == [
        False,
        False,
        True,
    ]
    assert kmeans_split(torch.cat([near, far]), (1, 4)).tolist() == [False] * 2 + [True] * 2
    assert kmeans_split(torch.cat([near[:1], far]), (1, 3)).tolist() == [
        True,
        False,
        False,
    ]
    # The border decides before the size does: 25 patches inside, 24 around them.
    inside = torch.zeros(7, 7, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    rows = torch.stack([inside, ~inside], dim=2).float().flatten(0, 1)
    assert kmeans_split(rows, (7, 7)).tolist() == inside.flatten().tolist()
    # Eight border patches each: the smaller one, which holds the first patch.
    left = torch.zeros(5, 5, dtype=torch.bool)
    left[:, 0] = left[0, 1] = left[-1, 1] = left[0, 2] = True
    rows = torch.stack([left, ~left], dim=2).float().flatten(0, 1)
    assert kmeans_split(rows, (5, 5)).tolist() == left.flatten().tolist()


@pytest.mark.parametrize("name", ["smooth", "object", "isolated patches", "one row of patches"])
def test_cls_split(name):
    f, _ = CASES[name]
    cls = f[7] + f[2]
    rows, token = rows_of(f), rows_of(cls[None])[0]
    cosine = np.array([row @ token for row in rows])
    side = cls_split(f, cls)
    assert np.array_equal(side, cosine > cosine.mean())
    assert 0 < side.sum() < len(side)


@pytest.mark.parametrize("method", [SelfmentKmeans, SelfmentCls])
def test_ipo_follows_the_split(method):
    for name in ("smooth", "smooth, N = 64 k", "object"):
        f, grid = CASES[name]
        given = Attended(f[None], f[None, 5], heads_of(len(f))[None], False)
        found = method().label(given, grid)
        start = kmeans_split(f, grid) if method is SelfmentKmeans else cls_split(f, f[5])
        assert np.array_equal(found.ncut_mask[0].flatten().numpy(), start)
        assert torch.equal(found.mask, reference.ipo(f, found.ncut_mask[0])[None])
        assert found.ipo_iters.item() > 0
        one = method(IpoOptions(iters=1, min_count=3)).label(given, grid)
        expected = reference.ipo(f, found.ncut_mask[0], iters=1, min_count=3)
        assert torch.equal(one.mask[0], expected)
        assert method(NO_IPO).label(given, grid).ipo_iters.item() == 0
        none = method(IpoOptions(min_count=len(f))).label(given, grid)
        assert torch.equal(none.mask, none.ncut_mask)


# All of them


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("method", METHODS)
def test_degenerate_features(method, case):
    f, grid = DEGENERATE[case]
    given = Attended(f[None], f[None, 0], heads_of(len(f))[None], False)
    once, again = (as_method(method).label(given, grid) for _ in range(2))
    assert once.mask.shape == (1, *grid)
    assert torch.equal(once.mask, again.mask)
    if len(f) == 1:
        assert once.mask.all()


@pytest.mark.parametrize("method", [SelfmentKmeans(), SelfmentCls()])
def test_one_patch_and_equal_patches_split(method):
    for f, grid in (DEGENERATE["one patch"], DEGENERATE["all equal"]):
        given = Attended(f[None], f[None, 0], heads_of(len(f))[None], False)
        found = method.label(given, grid)
        assert found.mask.unique().numel() == 1
    assert SelfmentKmeans().label(given, grid).mask.all()


def test_what_labels_without_a_vector_hold():
    f, grid = CASES["smooth"]
    given = Attended(f[None], f[None, 0], heads_of(len(f))[None], False)
    plain = label(f, grid)
    for method in (SelfMask(), Found(), SelfmentKmeans(), SelfmentCls()):
        found = method.label(given, grid)
        for field in fields(PseudoLabels):
            ours, usual = getattr(found, field.name), getattr(plain, field.name)
            assert (ours.shape, ours.dtype) == (usual.shape, usual.dtype), field.name
        for name in ("fiedler", "eigenvalue", "gap", "residual"):
            assert getattr(found, name).isnan().all(), name
        assert (found.seed.item(), found.lanczos_iters.item()) == (-1, 0)
        assert not method.has_vector
    for method in (Selfment(), TokenCut(), MaskCut(), Dsm()):
        assert method.label(given, grid).fiedler.isfinite().all()
        assert method.has_vector


@pytest.mark.parametrize("method", METHODS)
def test_features_that_are_not_finite(method):
    f = noise(4, 5, 6)
    f[3, 2] = torch.nan
    given = Attended(f[None], f[None, 0], heads_of(20)[None], False)
    with pytest.raises(ValueError, match="`features` must be finite, and so must their norms"):
        as_method(method).label(given, (4, 5))


# The labeler
