"""The drop-ins equal the original algorithms, written out here: dense, float64, LAPACK."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor

from helpers.cases import CASES, DEGENERATE, noise, smooth
from helpers.peers import PATCH, Dense, box_of, component, nearest, painted, tokens
from selfment import reference
from selfment.compat import maskcut, tokencut
from selfment.compat.selfment import unsupervised_saliency_labels

DETERMINED = 1e-7  # the least gap between eigenvalues for which a vector is determined


def check_tokencut(rows: Tensor, grid: tuple[int, int], tau: float, weighted: bool) -> None:
    dense = Dense(rows, tau, weighted=weighted)
    assert dense.determined
    side, seed, x = dense.oriented()
    side, x = side.reshape(grid), x.reshape(grid)
    mask = component(side, seed)
    h, w = grid
    height, width = h * PATCH[0] - 3, w * PATCH[1] - 5

    found = tokencut.ncut(
        tokens(rows), [h, w], list(PATCH), (3, height, width), tau, 1e-5, "a.jpg", weighted
    )
    assert found[0].dtype == np.int64
    assert found[0].tolist() == box_of(mask, height, width)
    assert found[1].dtype == np.int32
    assert np.array_equal(found[1], scipy.ndimage.label(side)[0])
    assert found[2].dtype == np.float64
    assert np.array_equal(found[2], mask)
    assert found[3:5] == (seed, None)
    assert found[5].shape == grid
    assert abs(found[5] - x).max() < dense.tolerance * np.ptp(x)

    size = (height + 2, width + 1)
    got_seed, got_mask, got_x = tokencut.saliency_ncut(
        rows.T, [h, w], list(PATCH), size, tau, no_binary_graph=weighted
    )
    assert got_seed == seed
    assert got_mask.dtype == np.float64
    assert np.array_equal(got_mask, nearest(mask, size))
    assert got_x.shape == size
    # Two patches are opposite: rounding decides which one LAPACK makes positive.
    raw = nearest((dense.x if len(rows) > 2 else x).reshape(grid), size)
    assert abs(got_x - raw).max() < dense.tolerance * np.ptp(raw)

    if not weighted:
        box, foreground, got_seed, got_x = tokencut.wsol_ncut(
            tokens(rows), [h, w], list(PATCH), (height, width), tau=tau
        )
        assert box.tolist() == box_of(mask, height, width)
        assert foreground.dtype == np.float64
        assert np.array_equal(foreground, side)
        assert got_seed == seed
        assert abs(got_x - x).max() < dense.tolerance * np.ptp(x)


def check_maskcut(rows: Tensor, grid: tuple[int, int], tau: float, turns: int = 3) -> int:
    """Returns the number of determined rounds, which were compared."""
    h, w = grid
    size = (h * PATCH[0] + 3, w * PATCH[1] - 1)
    seed, masks, problems = painted(rows, grid, tau, size, turns)
    rounds = len(masks)
    assert rounds > 0
    found = maskcut.maskcut_forward(rows.T, [h, w], list(PATCH), size, tau, rounds, cpu=True)
    assert found[0] == seed
    assert len(found[1]) == len(found[2]) == rounds
    for ours, expected in zip(found[1], masks, strict=True):
        assert ours.dtype == np.float64
        assert np.array_equal(ours, expected)
    at = tuple(
        np.unique(np.arange(s) * n // s, return_index=True)[1]
        for s, n in zip(size, grid, strict=True)
    )
    for ours, dense in zip(found[2], problems, strict=True):
        assert ours.shape == size
        assert dense.same(ours[np.ix_(*at)])
    return rounds


SMALL = [name for name in CASES if name != "large"]


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["binary", "weighted"])
@pytest.mark.parametrize("name", SMALL)
def test_tokencut(name: str, weighted: bool) -> None:
    check_tokencut(*CASES[name], 0.2, weighted)


@pytest.mark.parametrize("weighted", [False, True], ids=["binary", "weighted"])
@pytest.mark.parametrize("name", ["smooth", "isolated patches", "rectangle, N = 64 k + 1"])
def test_tokencut_at_its_default_tau(name: str, weighted: bool) -> None:
    check_tokencut(*CASES[name], 0, weighted)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_maskcut(name: str) -> None:
    rounds = check_maskcut(*CASES[name], 0.15)
    assert rounds == 3 or name in ("three patches", "three components")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "isolated patches", "rectangle, N = 64 k + 1"])
def test_maskcut_at_its_default_tau(name: str) -> None:
    assert check_maskcut(*CASES[name], 0) == 3


def test_maskcut_of_several_objects() -> None:
    """Some masks overlap, some are empty, and some are accepted after those."""
    rows, grid = smooth(14, 22, 32, seed=9), (14, 22)
    assert check_maskcut(rows, grid, 0.3, turns=6) == 6
    areas = [m.sum() for m in maskcut.maskcut_forward(rows.T, grid, PATCH, grid, 0.3, 6)[1]]
    assert 0 in areas
    assert np.count_nonzero(areas) > 1


def test_defaults() -> None:
    rows, grid = CASES["smooth"]
    size = (160, 320)
    for ours, stated in (
        (
            tokencut.ncut(tokens(rows), grid, PATCH, (3, *size)),
            tokencut.ncut(tokens(rows), grid, PATCH, (3, *size), 0, 1e-5, "", False),
        ),
        (
            tokencut.saliency_ncut(rows.T, grid, PATCH, size),
            tokencut.saliency_ncut(rows.T, grid, PATCH, size, 0, 1e-5, "", False),
        ),
        (
            tokencut.wsol_ncut(tokens(rows), grid, PATCH, size),
            tokencut.wsol_ncut(tokens(rows), grid, PATCH, size, 1e-5, 0.05),
        ),
        (
            maskcut.maskcut_forward(rows.T, grid, PATCH, size),
            maskcut.maskcut_forward(rows.T, grid, PATCH, size, 0, 3, False),
        ),
    ):
        assert repr(ours) == repr(stated)
    plain = unsupervised_saliency_labels(rows, *grid)
    assert torch.equal(plain, unsupervised_saliency_labels(rows, *grid, 20, 10, 0.2, False))


@pytest.mark.slow
def test_photographs(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("classic")
    for path in photos[::150]:
        image, _ = load_image(path)
        rows = backbone(backbone.preprocess(image, 320)[None])[0]
        h, w = backbone.grid(320)
        crop = rows.reshape(h, w, -1)[3:].reshape((h - 3) * w, -1)
        for features, grid in ((rows, (h, w)), (crop, (h - 3, w))):
            check_tokencut(features, grid, 0.2, weighted=False)
            assert check_maskcut(features, grid, 0.15) > 1
        check_tokencut(crop, (h - 3, w), 0.2, weighted=True)
        check_labels(crop, (h - 3, w), {})


def check_labels(rows: Tensor, grid: tuple[int, int], options: dict[str, Any]) -> None:
    """Compares labels with IPO as specified, from the dense initial mask."""
    tau = options.get("tau", 0.2)
    dense = Dense(rows, tau, weighted=options.get("no_binary_graph", False))
    side, seed, _ = dense.oriented()
    label = component(side.reshape(grid), seed).ravel() > 0
    f = reference.normalize(rows).double().numpy()
    first = f[label].mean(0) - f[~label].mean(0)
    for _ in range(options.get("n_iter", 20)):
        if min(label.sum(), (~label).sum()) < options.get("sample_size", 10):
            break
        label = f @ (f[label].mean(0) - f[~label].mean(0)) > 1e-12
        if label.all() or not label.any():
            break
        if (f[label].mean(0) - f[~label].mean(0)) @ first < 0:
            label = ~label
    found = unsupervised_saliency_labels(rows, *grid, **options)
    assert found.dtype == torch.int64
    assert found.tolist() == label.astype(int).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tau": 0.3, "n_iter": 2},
        {"no_binary_graph": True},
        {"no_binary_graph": True, "tau": 0},
        {"sample_size": 0},
        {"sample_size": 100},
        {"n_iter": 0},
    ],
    ids=str,
)
def test_labels(options: dict[str, Any]) -> None:
    for name in ("rectangle, N = 64 k + 1", "duplicated rows"):
        check_labels(*CASES[name], options)


@pytest.mark.parametrize("name", [name for name in DEGENERATE if name != "one patch"])
def test_undetermined_cuts_give_valid_results_and_the_same_each_time(name: str) -> None:
    rows, (h, w) = DEGENERATE[name]
    for weighted in (False, True):
        runs = [
            tokencut.ncut(
                tokens(rows), (h, w), (8, 8), (3, 8 * h, 8 * w), 0, no_binary_graph=weighted
            )
            for _ in range(2)
        ]
        assert repr(runs[0]) == repr(runs[1])
        box, objects, mask, seed, _, x = runs[0]
        assert np.isfinite(x).all()
        assert mask.flat[seed] == 1
        assert np.array_equal(mask, component(objects > 0, seed))
        assert box.tolist() == [
            8 * side for side in tokencut.detect_box(mask, seed, (h, w), None, (1, 1))[0]
        ]
    seed, masks, vectors = maskcut.maskcut_forward(rows.T, (h, w), (8, 8), (h, w), N=4)
    again = maskcut.maskcut_forward(rows.T, (h, w), (8, 8), (h, w), N=4)
    assert repr((seed, masks, vectors)) == repr(again)
    assert len(masks) == len(vectors) == 4
    assert sum(masks).max() <= 1
    assert unsupervised_saliency_labels(rows, h, w).unique().tolist() in ([0], [1], [0, 1])


def test_one_patch_is_foreground() -> None:
    assert unsupervised_saliency_labels(torch.ones(1, 3), 1, 1).tolist() == [1]


def test_kinds_of_arrays_agree() -> None:
    rows, grid = CASES["object"]
    before = rows.clone()
    expected = maskcut.maskcut_forward(rows.T, grid, PATCH, (50, 60), 0.2)
    for same in (rows.T.numpy(), rows.T.contiguous(), rows.T.double(), rows.T.requires_grad_()):
        assert repr(maskcut.maskcut_forward(same, grid, PATCH, (50, 60), 0.2)) == repr(expected)
    assert torch.equal(rows, before)
    for dtype in (torch.float16, torch.bfloat16):
        half = rows.detach().to(dtype)
        assert check_maskcut(half, grid, 0.2) == 3
        check_tokencut(half, grid, 0.2, weighted=False)


@pytest.mark.cuda
def test_cuda_equals_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for name in ("smooth", "object", "rectangle, N = 64 k + 1"):
        rows, grid = CASES[name]
        size = (99, 77)
        device = rows.cuda()
        labels = unsupervised_saliency_labels(device, *grid)
        assert labels.is_cuda
        assert torch.equal(labels.cpu(), unsupervised_saliency_labels(rows, *grid))
        ours = tokencut.ncut(tokens(device), grid, PATCH, (3, *size), 0.2)
        expected = tokencut.ncut(tokens(rows), grid, PATCH, (3, *size), 0.2)
        for i in range(4):
            assert np.array_equal(ours[i], expected[i])
        assert abs(ours[5] - expected[5]).max() < 1e-6 * np.ptp(expected[5])
        for cpu in (False, True):
            seed, masks, _ = maskcut.maskcut_forward(device.T, grid, PATCH, size, 0.2, 3, cpu)
            expected_seed, expected_masks, _ = maskcut.maskcut_forward(
                rows.T, grid, PATCH, size, 0.2
            )
            assert seed == expected_seed
            assert np.array_equal(masks, expected_masks)
    with pytest.raises(ValueError, match="`feats` must be finite"):
        unsupervised_saliency_labels(torch.full((6, 2), torch.nan).cuda(), 2, 3)


def test_detect_box() -> None:
    side = np.array([[0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 1]])
    for given in (side, side.astype(bool), side.astype(float), side.tolist()):
        box, patches, labels, inside = tokencut.detect_box(given, 7, [3, 4], scales=[10, 20])
        assert box == [40, 10, 80, 30]
        assert patches == [1, 2, 3, 4]
        assert labels.dtype == np.int32
        assert labels.tolist() == [[0, 1, 0, 0], [1, 1, 0, 2], [0, 0, 2, 2]]
        assert [index.tolist() for index in inside] == [[1, 2, 2], [3, 2, 3]]
    assert tokencut.detect_box(side, 7, [3, 4], (27, 75), [10, 20])[0] == [40, 10, 75, 27]
    # The background counts as a component.
    assert tokencut.detect_box(side, 0, [3, 4], None, [1, 1])[1] == [0, 0, 3, 4]
    with pytest.raises(NotImplementedError):
        tokencut.detect_box(side, 7, [3, 4], scales=[1, 1], principle_object=False)


@pytest.mark.parametrize("name", ["smooth", "isolated patches", "two patches", "deep"])
def test_dense_helpers(name: str) -> None:
    rows, _ = CASES[name]
    dense = Dense(rows, 0.1, 1e-3)
    A, D = maskcut.get_affinity_matrix(rows.T, 0.1, 1e-3)
    assert A.dtype == D.dtype == np.float64
    assert np.array_equal(A, dense.A)
    assert np.array_equal(D, dense.D)
    default = maskcut.get_affinity_matrix(rows.T, 0.1)[0]
    assert np.array_equal(default, Dense(rows, 0.1).A)
    copy, x = maskcut.second_smallest_eigenvector(A, D)
    assert np.array_equal(copy, x)
    assert not np.shares_memory(copy, x)
    assert dense.same(x)
    side = maskcut.get_salient_areas(x)
    assert side.dtype == bool
    assert np.array_equal(side, x > x.mean())


def test_corners() -> None:
    side = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=bool)
    assert maskcut.check_num_fg_corners(side.ravel(), [4, 3]) == 3
    assert maskcut.check_num_fg_corners(side.ravel(), [3, 4]) == 2
    assert maskcut.check_num_fg_corners(np.ones(5), [1, 5]) == 4


def test_painting() -> None:
    feats = torch.arange(1.0, 13).reshape(2, 6)
    painting = torch.zeros(2, 3, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    feats, painting = maskcut.get_masked_affinity_matrix(painting, feats, mask, 2)
    assert feats.tolist() == [[0, 2, 3, 4, 5, 0], [0, 8, 9, 10, 11, 0]]
    assert painting.dtype == feats.dtype == torch.float64
    again = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.float64)
    feats, painting = maskcut.get_masked_affinity_matrix(painting, feats, again, 2)
    assert painting.tolist() == [[[1, 1, 0], [0, 0, 1]]]
    assert feats[0].tolist() == [0, 0, 3, 4, 5, 0]


F = noise(4, 5, 3)
T = tokens(F)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tokencut.ncut(F, (4, 5), (8, 8), (3, 9, 9)),
            r"`feats` must be \(1, 1 \+ h\*w, C\)",
        ),
        (lambda: tokencut.ncut(T, (4, 4), (8, 8), (3, 9, 9)), r"here \(1, 17, C\).*\(1, 21, 3\)"),
        (lambda: tokencut.ncut(T, 20, (8, 8), (3, 9, 9)), r"`dims` must be 2 positive.*got 20"),
        (lambda: tokencut.ncut(T[:, :2], (1, 1), (8, 8), (3, 9, 9)), "`dims` must be a grid of 2"),
        (lambda: tokencut.ncut(T, (4, 5), None, (3, 9, 9)), "`scales` must be 2 .*got None"),
        (lambda: tokencut.ncut(T, (4, 5), (8, 0), (3, 9, 9)), "`scales` must be 2 positive"),
        (lambda: tokencut.ncut(T, (4, 5), (8, 8), (9, 9)), r"`init_image_size` .*\(C, H, W\)"),
        (lambda: tokencut.ncut(T, (4, 5), (8, 8), (3, 9, 9), eps=0), "`eps` must be in"),
        (
            lambda: tokencut.ncut(T, (4, 5), (8, 8), (3, 9, 9), -0.1, no_binary_graph=True),
            "`tau` must be > 0 in the weighted graph",
        ),
        (
            lambda: tokencut.ncut(T, (4, 5), (8, 8), (3, 9, 9), "auto"),
            "`tau` must be a finite number: got 'auto'",
        ),
        (lambda: tokencut.ncut(T / 0, (4, 5), (8, 8), (3, 9, 9)), "`feats` must be finite"),
        (lambda: tokencut.saliency_ncut(F, (4, 5), (8, 8), (9, 9)), r"`feats` must be \(C, h\*w\)"),
        (lambda: tokencut.wsol_ncut(T, (4, 5), (8, 8), (3, 9, 9)), r"`init_image_size` .*\(H, W\)"),
        (lambda: tokencut.detect_box(np.ones((2, 2)), 4, (2, 2), None, (1, 1)), "`seed` must be"),
        (lambda: tokencut.detect_box(np.ones(4), 0, (2, 2), None, (1, 1)), "`bipartition` must be"),
        (lambda: maskcut.maskcut_forward(F.T, (4, 5), (8, 8), (9, 9), N=0), "`N` must be .*got 0"),
        (lambda: maskcut.maskcut_forward(F.T, (4, 5), (8, 8), (9.5, 9)), "`init_image_size` must"),
        (lambda: maskcut.get_affinity_matrix(F[0], 0.1), r"`feats` must be \(C, N\)"),
        (lambda: maskcut.second_smallest_eigenvector(np.ones((2, 3)), F), "`A` and `D` must be"),
        (
            lambda: maskcut.check_num_fg_corners(np.ones(5), (2, 3)),
            r"`dims` must satisfy h\*w == 5",
        ),
        (
            lambda: maskcut.get_masked_affinity_matrix(F, F, torch.ones(4, 5), 4),
            "`painting`, `feats` and `mask` must be",
        ),
        (lambda: unsupervised_saliency_labels(F, 4, 4), r"`feats` must be .*here \(16, C\)"),
        (lambda: unsupervised_saliency_labels(F, 4, 5, n_iter=-1), "`n_iter` must be"),
        (lambda: unsupervised_saliency_labels(F, 4, 5, sample_size=2.5), "`sample_size` must be"),
        (lambda: unsupervised_saliency_labels(F[:, :0], 4, 5), "with C >= 1"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_wrong_kinds() -> None:
    with pytest.raises(TypeError, match=r"`feats` must be float16.*: got int64"):
        unsupervised_saliency_labels(F.long(), 4, 5)
    with pytest.raises(TypeError, match=r"`feats` must be a torch tensor, .*: got list"):
        unsupervised_saliency_labels(F.tolist(), 4, 5)
