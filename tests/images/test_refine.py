"""Refinement: each filter equals a literal, dense one; masks snap to the edges of images."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from selfment import refine_mask
from selfment.images.lattice import permutohedral_lattice
from selfment.images.refine import METHODS, as_mask, bilateral_solver, dense_crf, guided_filter

PATCH = 16


def photo(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Returns noise on a ramp: all windows differ."""
    rng = np.random.RandomState(seed)
    ramp = np.linspace(0, 120, shape[0] * shape[1]).reshape(*shape, 1)
    return (ramp + rng.randint(0, 100, (*shape, 3))).astype(np.uint8)


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image (160, 192, 3) of a noisy object on noisy ground, and its mask."""
    rng = np.random.RandomState(seed)
    truth = np.zeros((160, 192), dtype=bool)
    truth[32:128, 48:144] = True
    colours = np.where(truth[..., None], (190, 70, 60), (60, 110, 90))
    return (colours + rng.randint(-12, 13, (*truth.shape, 3))).astype(np.uint8), truth


def on_grid(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(mask.shape[0] // PATCH, PATCH, mask.shape[1] // PATCH, PATCH).all((1, 3))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (-1, -1)])
def test_a_mask_one_patch_off_snaps_to_the_edge(method, seed, shift):
    image, truth = planted(seed)
    off = np.roll(on_grid(truth), shift, (0, 1))
    before = iou(refine_mask(off, image), truth)
    after = iou(refine_mask(off, image, method), truth)
    assert before < 0.72
    if method == "guided":  # the window of which sees little beyond one patch
        assert after > before
        assert iou(refine_mask(off, image, method, radius=32), truth) > before + 0.03
    else:
        assert after > 0.88


@pytest.mark.parametrize("method", METHODS)
def test_a_right_mask_stays_right(method):
    image, truth = planted()
    assert iou(refine_mask(on_grid(truth), image, method), truth) > 0.97


def dense_bilateral(target, image, spaces, smoothness) -> np.ndarray:
    """Runs the solver cell by cell, with dense matrices and LAPACK."""
    space, luma, chroma = spaces
    cells, vertex = {}, {}
    for (y, x), _ in np.ndenumerate(target):
        r, g, b = map(float, image[y, x])
        light = 0.299 * r + 0.587 * g + 0.114 * b
        u, v = (b - light) / 1.772, (r - light) / 1.402
        cell = (y / space, x / space, light / luma, u / chroma, v / chroma)
        vertex[y, x] = cells.setdefault(tuple(round(value) for value in cell), len(cells))
    count = len(cells)
    blur = np.zeros((count, count))
    for cell, i in cells.items():
        blur[i, i] = 10
        for axis in range(5):
            for step in (-1, 1):
                j = cells.get(tuple(value + step * (k == axis) for k, value in enumerate(cell)))
                if j is not None:
                    blur[i, j] += 1
    mass, right = np.zeros(count), np.zeros(count)
    for pixel, i in vertex.items():
        mass[i] += 1
        right[i] += target[pixel]
    scale = np.ones(count)
    for _ in range(10):
        scale = np.sqrt(scale * mass / (blur @ scale))
    affinity = scale[:, None] * blur * scale
    laplacian = np.diag(affinity.sum(1)) - affinity
    found = np.linalg.solve(smoothness * laplacian + np.diag(mass), right)
    return np.array([found[vertex[pixel]] for pixel, _ in np.ndenumerate(target)])


@pytest.mark.parametrize("smoothness", [0, 1, 64])
@pytest.mark.parametrize("spaces", [(4, 16, 8), (7, 30, 40)])
def test_the_bilateral_solver_solves_its_system(smoothness, spaces):
    image = photo((17, 22))
    target = np.random.RandomState(1).rand(17, 22)
    expected = dense_bilateral(target, image, spaces, smoothness)
    options = dict(zip(("sigma_space", "sigma_luma", "sigma_chroma"), spaces, strict=True))
    found = bilateral_solver(target, image, smoothness=smoothness, **options)
    assert found.shape == (17, 22)
    assert np.abs(found.ravel() - expected).max() < 1e-4


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_the_guided_filter_fits_each_window(radius):
    image = photo((26, 31))
    guide = image / 255
    target = np.random.RandomState(2).rand(26, 31)
    eps, slopes, offsets = 1e-3, np.zeros((26, 31, 3)), np.zeros((26, 31))

    def window(y, x):
        return np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]

    inside = [(y, x) for y in range(radius, 26 - radius) for x in range(radius, 31 - radius)]
    for y, x in inside:
        colours, values = guide[window(y, x)].reshape(-1, 3), target[window(y, x)].ravel()
        spread = np.cov(colours.T, bias=True) + eps * np.eye(3)
        both = ((colours - colours.mean(0)) * (values - values.mean())[:, None]).mean(0)
        slopes[y, x] = np.linalg.solve(spread, both)
        offsets[y, x] = values.mean() - slopes[y, x] @ colours.mean(0)
    found = guided_filter(target, image, radius=radius, eps=eps)
    for y in range(2 * radius, 26 - 2 * radius):
        for x in range(2 * radius, 31 - 2 * radius):
            value = slopes[window(y, x)].mean((0, 1)) @ guide[y, x] + offsets[window(y, x)].mean()
            assert found[y, x] == pytest.approx(np.clip(value, 0, 1), abs=1e-9)


@pytest.mark.parametrize(("d", "error"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_the_lattice_filters_by_a_gaussian(d, error):
    points = 2 * np.random.RandomState(d).randn(300, d)
    lattice = permutohedral_lattice(points)
    splat = lattice.splat.toarray()
    assert splat.min() > -1e-12
    assert np.abs(splat.sum(0) - 1).max() < 1e-12
    assert ((splat > 1e-12).sum(0) <= d + 1).all()
    assert len(lattice.links) == d + 1
    assert all((link != link.T).nnz == 0 for link in lattice.links)
    kernel = lattice.blurred(np.eye(300))
    gauss = np.exp(-((points[:, None] - points) ** 2).sum(-1) / 2)
    scale = (kernel * gauss).sum() / (kernel * kernel).sum()
    assert np.linalg.norm(scale * kernel - gauss) < error * np.linalg.norm(gauss)


def dense_mean_field(target, image, smooth, space, colour, weights, certainty, steps):
    """Computes mean field for two labels with all pairs of pixels in float64."""
    spots = np.indices(target.shape).reshape(2, -1).T.astype(float)
    colours = image.reshape(-1, 3).astype(float)

    def kernel(points):
        full = np.exp(-((points[:, None] - points) ** 2).sum(-1) / 2)
        norm = 1 / np.sqrt(full.sum(1))
        return norm[:, None] * full * norm

    near, alike = kernel(spots / smooth), kernel(np.hstack([spots / space, colours / colour]))
    logits = np.stack([-certainty * (target.ravel() - 0.5), certainty * (target.ravel() - 0.5)])

    def softmax(values):
        powers = np.exp(values - values.max(0))
        return powers / powers.sum(0)

    q = softmax(logits)
    for _ in range(steps):
        messages = np.stack([weights[0] * near @ row + weights[1] * alike @ row for row in q])
        q = softmax(logits + messages)
    return q[1].reshape(target.shape)


@pytest.mark.parametrize("weights", [(7, 10), (0, 4), (3, 0)])
def test_the_crf_is_its_mean_field(weights):
    image, truth = planted()
    image, truth = image[20:60:2, 36:76:2], truth[20:60:2, 36:76:2]
    target = np.clip(np.roll(truth, 3, 1) + 0.4 * np.random.RandomState(3).randn(20, 20), 0, 1)
    expected = dense_mean_field(target, image, 2, 10, 40, weights, 1.5, 4)
    found = dense_crf(
        target,
        image,
        sigma_smooth=2,
        sigma_space=10,
        sigma_colour=40,
        weight_smooth=weights[0],
        weight=weights[1],
        certainty=1.5,
        steps=4,
    )
    assert 0.1 < expected.mean() < 0.9
    assert np.abs(found - expected).mean() < 0.01
    assert ((found > 0.5) == (expected > 0.5)).mean() > 0.98


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("value", [False, True])
def test_constants_stay(method, value):
    mask = np.full((4, 5), value)
    assert (refine_mask(mask, photo((33, 47)), method) == value).all()


def test_constant_maps_stay_to_rounding():
    target = np.full((30, 40), 0.3)
    image = photo((30, 40))
    for found in (bilateral_solver(target, image), guided_filter(target, image)):
        assert np.abs(found - 0.3).max() < 1e-5


@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3), (50, 31), (67, 82)])
def test_shapes_and_dtype(method, size):
    image = photo(size)
    mask = np.random.RandomState(4).rand(6, 5)
    for given in (mask, mask > 0.5, (mask > 0.5).astype(np.uint8), mask.astype(np.float32)):
        found = refine_mask(given, image, method)
        assert (found.shape, found.dtype) == (size, np.bool_)


def test_without_a_method_masks_are_resized_as_their_files_are():
    mask = np.random.RandomState(5).rand(6, 6) > 0.5
    rows, columns = ((2 * np.arange(side) + 1) * 6 // (2 * side) for side in (30, 50))
    assert np.array_equal(refine_mask(mask, photo((30, 50))), mask[np.ix_(rows, columns)])


def test_the_image_may_be_a_file_and_is_upright(tmp_path):
    image, truth = planted()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(image, -1)
    mask = np.rot90(on_grid(truth), -1)
    expected = refine_mask(mask, np.ascontiguousarray(upright), "guided")
    assert np.array_equal(refine_mask(mask, tmp_path / "turned.png", "guided"), expected)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_large_images_are_worked_on_smaller(method):
    image, truth = planted()
    large = np.asarray(Image.fromarray(image).resize((768, 640), Image.Resampling.NEAREST))
    off = np.roll(on_grid(truth), 1, 1)
    found = refine_mask(off, large, method, max_side=192)
    small = refine_mask(off, image, method)
    assert found.shape == (640, 768)
    assert iou(found[2::4, 2::4], small) > 0.97


def ring_and_block() -> np.ndarray:
    mask = np.zeros((12, 24), dtype=bool)
    mask[1:9, 1:9] = True
    mask[2:8, 2:8] = False
    mask[4, 4] = True
    mask[2:8, 14:20] = True  # 36, between the ring's 28 and its 64 when filled
    return mask


def test_holes_are_filled_before_the_largest_component_is_taken():
    mask = ring_and_block()
    blank = np.zeros((12, 24, 3), dtype=np.uint8)
    ring, block = np.zeros_like(mask), np.zeros_like(mask)
    ring[1:9, 1:9] = True
    block[2:8, 14:20] = True
    assert np.array_equal(refine_mask(mask, blank, fill_holes=True), ring | block)
    assert np.array_equal(refine_mask(mask, blank, largest_component=True), block)
    both = refine_mask(mask, blank, fill_holes=True, largest_component=True)
    assert np.array_equal(both, ring)


def test_components_and_holes_are_4_connected():
    mask = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=bool)
    blank = np.zeros((4, 4, 3), dtype=np.uint8)
    filled = mask.copy()
    filled[2, 2] = True
    assert np.array_equal(refine_mask(mask, blank, fill_holes=True), filled)
    first = np.zeros_like(mask)  # of two components of three patches each
    first[1, 1:3] = first[2, 1] = True
    assert np.array_equal(refine_mask(mask, blank, largest_component=True), first)


def test_the_same_twice():
    image, truth = planted()
    for method in METHODS:
        first = refine_mask(on_grid(truth), image, method)
        assert np.array_equal(first, refine_mask(on_grid(truth), image, method))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((np.zeros((2, 2, 2)),), {}, r"`mask` must be \(h, w\) and not empty: got shape \(2, 2, 2"),
        ((np.zeros((0, 2)),), {}, r"`mask` must be \(h, w\) and not empty"),
        ((np.full((2, 2), 1.5),), {}, r"`mask` must be in \[0, 1\]: got values from 1.5 to 1.5"),
        ((np.full((2, 2), np.nan),), {}, r"`mask` must be in \[0, 1\]: got values from nan"),
        ((np.full((2, 2), "a"),), {}, r"`mask` must be bool or numbers in \[0, 1\]: got <U1"),
        ((np.ones((2, 2)), "sharpen"), {}, "`method` must be 'bilateral' or 'guided' or 'crf'"),
        ((np.ones((2, 2)),), {"radius": 2}, "`options` of method None must be none: got 'radius'"),
        ((np.ones((2, 2)), "guided"), {"steps": 2}, "must be radius, eps: got 'steps'"),
        ((np.ones((2, 2)), "guided"), {"radius": 0}, "`radius` must be an integer >= 1: got 0"),
        ((np.ones((2, 2)), "guided"), {"eps": 0.0}, "`eps` must be > 0: got 0.0"),
        ((np.ones((2, 2)), "crf"), {"steps": 0.5}, "`steps` must be an integer >= 1: got 0.5"),
        ((np.ones((2, 2)), "crf"), {"weight": -1}, "`weight` must be >= 0: got -1"),
        ((np.ones((2, 2)), "crf"), {"sigma_space": 0}, "`sigma_space` must be > 0: got 0"),
        ((np.ones((2, 2)), "crf"), {"sigma_colour": 1e-5}, "standard deviations must be large"),
        ((np.ones((2, 2)), "bilateral"), {"sigma_luma": 0}, "`sigma_luma` must be > 0: got 0"),
        ((np.ones((2, 2)), "bilateral"), {"smoothness": -1}, "`smoothness` must be >= 0: got -1"),
        ((np.ones((2, 2)), "crf"), {"max_side": 0}, "`max_side` must be an integer >= 1: got 0"),
    ],
)
def test_errors_name_argument_rule_and_value(arguments, options, sentence):
    mask, *method = arguments
    with pytest.raises(ValueError, match=sentence):
        refine_mask(mask, photo((20, 20)), *method, **options)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(
        ImportError, match=r'"guided" needs kornia.*pip install "selfment\[refine\]'
    ):
        refine_mask(np.ones((2, 2)), photo((20, 20)), "guided")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_masks_of_photos_one_patch_off_get_better(photos, method):
    before, after = [], []
    for path in photos[:: len(photos) // 6]:
        file = path.parent.parent / "masks" / f"{path.stem}.png"
        if not file.is_file():
            continue
        truth = np.asarray(Image.open(file).convert("L")) > 127
        share = Image.fromarray(truth.astype(np.float32)).resize((30, 30), Image.Resampling.BOX)
        off = np.roll(np.asarray(share) > 0.5, 1, 1)
        before.append(iou(refine_mask(off, path), truth))
        after.append(iou(refine_mask(off, path, method), truth))
    if not before:
        pytest.skip("no masks beside the photographs")
    assert np.mean(after) > np.mean(before)


def test_masks_may_leave_their_range_by_rounding():
    mask = np.array([[-2e-7, 0.5, 1.0000002]], np.float32)
    assert as_mask(mask).tolist() == [[0, 0.5, 1]]
    with pytest.raises(ValueError, match=r"in \[0, 1\]: got values from 0 to 1\.00000203"):
        as_mask(np.array([[0, 1.000002]], np.float32))
