"""Masks of the compared methods equal literal ones: dense, float64, written out here."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from helpers.cases import CASES, DEGENERATE, generator, noise, smooth
from selfment import CutOptions, IpoOptions, PseudoLabeler, PseudoLabels, reference
from selfment.backbones import Attended, load_backbone
from selfment.compat import dsm as compat_dsm
from selfment.compat.maskcut import maskcut_forward
from selfment.core.options import NO_IPO
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.methods import (
    METHODS,
    Dsm,
    Found,
    MaskCut,
    MultiObject,
    SelfMask,
    Selfment,
    SelfmentCls,
    SelfmentKmeans,
    TokenCut,
    as_method,
)
from selfment.methods import selfmask as _selfmask
from selfment.methods.found import foreground
from selfment.methods.splits import cls_split, kmeans_split

pytest.importorskip("sklearn")
from sklearn.cluster import KMeans

TINY = "vit_tiny_patch16_224"
DETERMINED = 1e-6  # the least gap between eigenvalues at which a vector is one and the same

ALL = sorted(CASES)
POSITIVE = smooth(14, 11, 24, seed=3).abs() + 0.5  # all cosines > 0
WITH_ZEROS = torch.cat([POSITIVE[:150], torch.zeros(4, 24)])  # the least cosine is 0
MORE = {
    "positive": (POSITIVE, (14, 11)),
    "positive, zero rows": (WITH_ZEROS, (14, 11)),
    "few patches": (noise(4, 2, 5), (4, 2)),
}


def rows_of(f: Tensor) -> np.ndarray:
    f = f.double().numpy()
    return f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)


def pairs_of(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scipy.linalg.eigh(np.diag(A.sum(1)) - A, np.diag(A.sum(1)))


def label(f: Tensor, grid, method="selfment") -> PseudoLabels:
    return as_method(method).label(f[None], grid)


def photo_features(paths: list[Path], size: int = 320) -> list[Tensor]:
    backbone = load_backbone("classic")
    pictures = (Image.open(path).convert("RGB") for path in paths)
    return [backbone(backbone.preprocess(picture, size)[None])[0] for picture in pictures]


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


# SelfMask


def spans(mask: np.ndarray) -> bool:
    ys, xs = np.nonzero(mask)
    h, w = mask.shape
    return (ys.min() == 0 and ys.max() + 1 == h) or (xs.min() == 0 and xs.max() + 1 == w)


def vote(candidates: list[np.ndarray]) -> np.ndarray:
    kept = [mask for mask in candidates if mask.any() and not spans(mask)]
    kept = kept or [mask for mask in candidates if mask.any()]
    scores = [sum((a & b).sum() / (a | b).sum() for b in kept) for a in kept]
    return kept[next(i for i, score in enumerate(scores) if score > max(scores) - 1e-9)]


def scaled(f: Tensor) -> np.ndarray:
    products = rows_of(f) @ rows_of(f).T
    return (products - products.min()) / (products.max() - products.min())


def clusters(f: Tensor, grid) -> list[np.ndarray] | None:
    A = scaled(f)
    degree = A.sum(1)
    degree[degree < 1e-12] = 1
    values, vectors = scipy.linalg.eigh(np.diag(degree) - A, np.diag(degree))
    if np.diff(values[1:5]).min(initial=1) < DETERMINED:
        return None
    candidates = []
    for k in (2, 3, 4):
        if k <= len(f):
            assigned = KMeans(k, n_init=10, random_state=0).fit_predict(vectors[:, :k])
            candidates += [(assigned == cluster).reshape(grid) for cluster in range(k)]
    return candidates


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


# FOUND


def heads_of(n: int, count: int = 3, seed: int = 0) -> Tensor:
    """What is left of it for the patches differs from head to head."""
    shares = torch.linspace(0.2, 0.9, count)[:, None]
    return shares * (2 * torch.randn(count, n, generator=generator(seed))).softmax(dim=1)


def found_of(f: Tensor, attention: Tensor, by_head: bool) -> np.ndarray:
    f, a = f.double().numpy(), attention.double().numpy()
    heads, n = a.shape
    weights = [1.0] * heads
    if by_head:
        threshold = sum(a[h, i] for h in range(heads) for i in range(n)) / (heads * n)
        share = [sum(a[h, i] > threshold for i in range(n)) / n for h in range(heads)]
        weights = [np.log(sum(q + 1e-10 for q in share) / (share[h] + 1e-10)) for h in range(heads)]
    least = min(range(n), key=lambda i: sum(weights[h] * a[h, i] for h in range(heads)))
    wide = f.shape[1] // heads if by_head else f.shape[1]
    parts = [weights[h] * f[:, h * wide : (h + 1) * wide] for h in range(f.shape[1] // wide)]
    rows = np.concatenate(parts, axis=1)
    cosine = [
        row @ rows[least] / max(np.linalg.norm(row) * np.linalg.norm(rows[least]), 1e-12)
        for row in rows
    ]
    return ~(np.array(cosine) > 0.3)


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


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=False, dynamic_img_size=True)
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture
def picture(tmp_path) -> Path:
    pixels = np.random.RandomState(0).randint(60, 90, (60, 80, 3)).astype(np.uint8)
    pixels[20:40, 30:60] = (220, 60, 30)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/photo.png")
    return tmp_path / "in/photo.png"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokens", "keys"])
def test_a_vit_gives_what_found_and_cls_need(weights, picture, kind):
    options = {"features": kind, "weights": weights, "batch_size": 1}
    found = PseudoLabeler(TINY, 96, method="found", **options)
    given = found.backbone.attend(found.preprocess(Image.open(picture))[None])
    expected = found_of(given.features[0], given.attention[0], kind == "keys")
    assert np.array_equal(found(picture).mask.flatten().numpy(), expected)
    cls = PseudoLabeler(TINY, 96, method="selfment-cls", **options)
    start = cls_split(given.features[0], given.cls[0])
    assert np.array_equal(cls(picture).ncut_mask.flatten().numpy(), start)
    for labeler in (found, cls):
        with pytest.raises(ValueError, match=r"needs a ViT's .*: got patch features alone"):
            labeler.label_features(given.features)


@pytest.mark.slow
def test_more_backbones_vote(weights, picture):
    import pickle

    votes = PseudoLabeler(size=224, method=SelfMask({TINY: weights}))
    with Image.open(picture) as opened:
        pixels = [
            load_backbone(name, weights=file).preprocess(opened, 224)[None]
            for name, file in (("classic", None), (TINY, weights))
        ]
    ours = load_backbone("classic")(pixels[0])[0]
    theirs = load_backbone(TINY, weights=weights)(pixels[1])[0]
    candidates = [clusters(rows, (14, 14)) for rows in (ours, theirs)]
    found = votes(picture)
    assert np.array_equal(found.mask.numpy(), vote([mask for part in candidates for mask in part]))
    assert torch.equal(pickle.loads(pickle.dumps(votes))(picture).mask, found.mask)
    assert votes.settings != PseudoLabeler(size=224, method="selfmask").settings
    with pytest.raises(ValueError, match="`voters` need the images: got patch features alone"):
        votes.label_features(ours[None])
    with pytest.raises(ValueError, match="`voters` must be a list or a mapping of names: got 'x'"):
        SelfMask("x")


@pytest.mark.parametrize("method", ["maskcut", "dsm", "selfmask", "selfment-kmeans"])
def test_the_folder_job(method, picture, tmp_path):
    labeler = PseudoLabeler(size=160, method=method)
    out = tmp_path / "out"
    summary = label_images(find_images([picture]), out, labeler, overlays=True, progress=False)
    assert (summary.labelled, summary.failed) == (1, 0)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    record = json.loads((out / "labels.jsonl").read_text(), parse_constant=refuse)
    assert (record["eigenvalue"] is None) == (method in ("selfmask", "selfment-kmeans"))
    assert record["foreground"] == labeler(picture).mask.float().mean().item()
    assert (out / record["overlay"]).is_file()
    again = label_images(find_images([picture]), out, PseudoLabeler(size=160), progress=False)
    assert again.labelled == 1  # the labels of another method are not these


CHANGED = [
    Selfment(CutOptions(tau=0.3)),
    Selfment(CutOptions(eps=1e-4)),
    Selfment(CutOptions(graph="weighted")),
    Selfment(CutOptions(orient="corners")),
    Selfment(ipo=IpoOptions(iters=3)),
    Selfment(ipo=IpoOptions(min_count=3)),
    Selfment(min_confidence=0.5),
    SelfmentKmeans(NO_IPO),
    SelfmentCls(NO_IPO),
    SelfMask(["classic"]),
    MultiObject(),
    MultiObject(4),
    MultiObject(cut=CutOptions(orient="seed")),
]


def test_settings_tell_methods_apart():
    made = [PseudoLabeler(TINY, method=method) for method in METHODS]
    made += [PseudoLabeler(TINY, method=method) for method in CHANGED]
    assert len({json.dumps(labeler.settings, sort_keys=True) for labeler in made}) == len(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lost"}, "`method` must be 'selfment' or .*'found': got 'lost'"),
        (
            {"method": "found"},
            "`method` 'found' needs a ViT's attention: got the backbone 'classic'",
        ),
        (
            {"method": SelfmentCls()},
            "`method` 'selfment-cls' needs a ViT's CLS token: got the backbone 'classic'",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(**options)


def test_training_keeps_features_alone(picture, tmp_path):
    from selfment.training.run import train

    labeler = PseudoLabeler(TINY, method="found")
    message = "`method` 'found' needs a ViT's attention: got patch features alone, which training"
    with pytest.raises(ValueError, match=message):
        train(find_images([picture]), tmp_path / "run", labeler, progress=False)


def test_training_on_another_methods_labels(picture, tmp_path):
    from selfment.training.run import train

    labeler = PseudoLabeler(size=96, method="dsm")
    done = train(find_images([picture]), tmp_path / "run", labeler, epochs=1, progress=False)
    assert (done.images, done.failed) == (1, 0)
    head = json.loads((done.head / "config.json").read_text())
    assert "dsm" in json.dumps(head)
