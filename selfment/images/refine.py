"""Refines masks along the edges of their image: bilateral solver, guided filter, dense CRF."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..core import options as params
from ..core.arrays import as_array
from ..util.extras import load_extra
from .lattice import bilateral_grid, permutohedral_lattice
from .load import ImageLike, load_image
from .maps import ROUNDING

METHODS = ("bilateral", "guided", "crf")

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def refine_mask(
    mask: Any,
    image: ImageLike,
    method: str | None = None,
    *,
    fill_holes: bool = False,
    largest_component: bool = False,
    max_side: int = 768,
    **options: Any,
) -> Bools:
    """Refines a mask on a grid of patches to an (H, W) bool mask at the size of the ``image``.

    The steps, in this order: the mask is resized to the image's size; ``method`` aligns it with the
    image's edges; values above 1/2 become foreground; holes are filled; all components except the
    largest are removed. Without any of these options a bool mask is resized by nearest neighbour,
    as :func:`selfment.jobs.label.label_images` writes it, and a soft one bilinearly.

    Args:
        mask: (h, w) of any size, bool or numbers in [0, 1].
        image: an input of :func:`selfment.images.load_image`; it is rotated as its EXIF data says.
        method: None, "bilateral" (:func:`bilateral_solver`), "guided" (:func:`guided_filter`) or
            "crf" (:func:`dense_crf`).
        fill_holes: fill background from which no 4-connected path leads to the border.
        largest_component: keep only the largest 4-connected component, the first of equal ones.
        max_side: the method works on the image reduced to at most this many pixels on its longer
            side; lengths among its options are in these pixels.
        options: keyword arguments of the method.

    Raises:
        ValueError, TypeError: a wrong argument.
        selfment.images.ImageError: the image cannot be read.
        ImportError: the library of the method is missing.
    """
    values = as_mask(mask)
    picture = load_image(image)[0]
    check_method(method, options)
    if method is None:
        refined = resize(values, picture.size) > 0.5
    else:
        params.require("max_side", max_side, "an integer >= 1", _whole(max_side) and max_side >= 1)
        shrink = min(1.0, max_side / max(picture.size))
        width, height = (max(1, round(side * shrink)) for side in picture.size)
        small = picture.resize((width, height), Image.Resampling.BOX)
        target = resize(values.astype(np.float64), small.size)
        soft = _FILTERS[method](target, np.asarray(small), **options)
        refined = resize(soft, picture.size) > 0.5
    if fill_holes:
        refined = without_holes(refined)
    return largest(refined) if largest_component else refined


def mask_at_size(
    mask: Any,
    size: tuple[int, int],
    image: ImageLike | None = None,
    steps: Mapping[str, Any] | None = None,
) -> Bools:
    """Returns an (h, w) bool mask as (H, W), for an image of the ``size`` (W, H).

    ``steps`` are arguments of :func:`refine_mask`, which then needs the ``image``; without them the
    mask is resized by nearest neighbour.
    """
    if steps is None or image is None:
        return resize(as_mask(mask), size)
    return refine_mask(mask, image, **steps)


def bilateral_solver(
    target: Floats,
    image: npt.NDArray[np.uint8],
    *,
    sigma_space: float = 16,
    sigma_luma: float = 16,
    sigma_chroma: float = 8,
    smoothness: float = 64,
) -> Floats:
    """Returns the map (H, W) in [0, 1] that is close to ``target``, and smooth where the image is.

    Minimises smoothness / 2 * sum_ij W_ij (x_i - x_j)^2 + sum_i (x_i - t_i)^2 with bistochastic
    bilateral affinities W on a grid of cells. Source: J. T. Barron, B. Poole, *The Fast Bilateral
    Solver*, 2016.

    Args:
        target: (H, W) in [0, 1].
        image: (H, W, 3) RGB.
        sigma_space: side of a cell in pixels, > 0.
        sigma_luma: size of a cell in Y (BT.601, 0 to 255), > 0.
        sigma_chroma: size of a cell in U and V, > 0.
        smoothness: the weight of the smoothness term, >= 0.

    Raises:
        ValueError: a wrong parameter.
    """
    from scipy import sparse

    _check_positive(sigma_space=sigma_space, sigma_luma=sigma_luma, sigma_chroma=sigma_chroma)
    _check_not_negative(smoothness=smoothness)
    colours = image.reshape(-1, 3) @ _YUV.T / (sigma_luma, sigma_chroma, sigma_chroma)
    grid = bilateral_grid(np.hstack([_positions(target.shape) / sigma_space, colours]))
    blur = sum(grid.links) + 2 * len(grid.links) * sparse.eye_array(grid.splat.shape[0])
    mass = grid.splat.sum(1)
    scale = np.ones_like(mass)
    for _ in range(10):
        scale = np.sqrt(scale * mass / (blur @ scale))
    # The diagonal has the exact degrees of the scaled matrix, not the masses that they approach, so
    # that a constant target is a solution.
    affinity = blur.multiply(scale[:, None]).multiply(scale).tocsr()
    diagonal = smoothness * affinity.sum(1) + mass
    system = sparse.diags_array(diagonal) - smoothness * affinity
    right = grid.splat @ target.ravel()
    solution, _ = sparse.linalg.cg(
        system,
        right,
        x0=right / mass,
        atol=0.0,
        maxiter=200,
        M=sparse.diags_array(1 / system.diagonal()),
    )
    values: Floats = (grid.splat.T @ solution).reshape(target.shape).clip(0, 1)
    return values


def guided_filter(
    target: Floats, image: npt.NDArray[np.uint8], *, radius: int = 16, eps: float = 1e-4
) -> Floats:
    """Approximates ``target`` by a linear function of the colours in each window; needs kornia.

    Source: K. He, J. Sun, X. Tang, *Guided Image Filtering*, 2010, and K. He, J. Sun, *Fast Guided
    Filter*, 2015.

    Args:
        target: (H, W) in [0, 1].
        image: (H, W, 3) RGB.
        radius: radius of the square window in pixels, at most half a side of the image; windows are
            sampled about every quarter of it.
        eps: the variance of colours in [0, 1] below which a window counts as flat.

    Returns:
        (H, W) in [0, 1].

    Raises:
        ValueError: a wrong parameter.
        ImportError: kornia is missing.
    """
    params.require("radius", radius, "an integer >= 1", _whole(radius) and radius >= 1)
    params.require("eps", eps, "> 0", eps > 0)
    guided_blur = load_guided_blur()
    step = max(1, min(radius, *target.shape) // 4)
    # Multiples of the step: a window with an even number of samples would not be centred.
    kernel = tuple(2 * (min(radius, side // 2) // step * step) + 1 for side in target.shape)
    # Releases of kornia before 0.9 need sides that are multiples of the step.
    height, width = target.shape
    both = np.dstack([image / 255.0, target])
    both = np.pad(both, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    guide, values = torch.from_numpy(both).permute(2, 0, 1)[None].split([3, 1], dim=1)
    blurred = guided_blur(guide, values, kernel, eps, subsample=step)
    filtered: Floats = blurred[0, 0, :height, :width].clamp(0, 1).numpy()
    return filtered


def dense_crf(
    target: Floats,
    image: npt.NDArray[np.uint8],
    *,
    sigma_smooth: float = 3,
    weight_smooth: float = 7,
    sigma_space: float = 50,
    sigma_colour: float = 5,
    weight: float = 10,
    certainty: float = 1,
    steps: int = 10,
) -> Floats:
    """Returns foreground probabilities (H, W) of a fully connected CRF with two labels.

    They are computed by mean field; raises ``ValueError`` for a wrong parameter.

    A Potts potential favours equal labels of each pair of pixels, by a kernel of position and a
    kernel of position and colour, both normalised symmetrically. Source: P. Kraehenbuehl, V.
    Koltun, *Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials*, 2011. The
    colour kernel is computed on the permutohedral lattice.

    Args:
        target: (H, W) in [0, 1].
        image: (H, W, 3) RGB.
        sigma_smooth: standard deviation of the position kernel, in pixels, > 0.
        weight_smooth: weight of the position kernel, >= 0.
        sigma_space: standard deviation of the colour kernel in position, in pixels, > 0.
        sigma_colour: standard deviation of the colour kernel in colour, in 8-bit levels, > 0.
        weight: weight of the colour kernel, >= 0.
        certainty: the unary log-odds of a pixel are ``certainty`` * (2 * target - 1), > 0.
        steps: steps of mean field, >= 1.
    """
    from scipy.ndimage import gaussian_filter

    _check_positive(sigma_smooth=sigma_smooth, sigma_space=sigma_space, sigma_colour=sigma_colour)
    _check_positive(certainty=certainty)
    _check_not_negative(weight_smooth=weight_smooth, weight=weight)
    params.require("steps", steps, "an integer >= 1", _whole(steps) and steps >= 1)
    shape = target.shape
    colours = image.reshape(-1, 3) / sigma_colour
    lattice = permutohedral_lattice(np.hstack([_positions(shape) / sigma_space, colours]))

    def near(values: Floats) -> Floats:
        smooth: Floats = gaussian_filter(values, sigma_smooth, mode="constant")
        return smooth

    def alike(values: Floats) -> Floats:
        return lattice.blurred(values.ravel()).reshape(shape)

    kernels = []
    for kernel, strength in ((near, weight_smooth), (alike, weight)):
        kernels.append((kernel, strength, 1 / np.sqrt(kernel(np.ones(shape)))))
    unary = certainty * (2 * target - 1)
    odds = unary
    for _ in range(steps):
        surplus = np.tanh(odds / 2)  # probability of the foreground less that of the background
        odds = unary + sum(
            strength * scale * kernel(scale * surplus) for kernel, strength, scale in kernels
        )
    return (1 + np.tanh(odds / 2)) / 2


def without_holes(mask: Bools) -> Bools:
    """Fills the background of an (H, W) mask from which no 4-connected path leads to the border."""
    from scipy.ndimage import binary_fill_holes

    filled: Bools = binary_fill_holes(mask)
    return filled


def largest(mask: Bools) -> Bools:
    """Returns the largest 4-connected component of an (H, W) mask, the first of equal ones."""
    from scipy.ndimage import label

    labels, count = label(mask)
    if count == 0:
        return mask
    kept: Bools = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return kept


def as_mask(mask: Any) -> npt.NDArray[Any]:
    """Converts ``mask`` to an (h, w) array, bool or float64 in [0, 1].

    Values outside [0, 1] by rounding only are clipped. Raises ``TypeError`` for a tensor or array
    that is not dense, and ``ValueError``.
    """
    values = as_array(mask, "mask")
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"`mask` must be (h, w) and not empty: got shape {values.shape}")
    if values.dtype == np.bool_:
        return values
    if values.dtype.kind not in "fiu":
        raise ValueError(f"`mask` must be bool or numbers in [0, 1]: got {values.dtype}")
    low, high = values.min(), values.max()
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(f"`mask` must be in [0, 1]: got values from {low:.9g} to {high:.9g}")
    return values.astype(np.float64).clip(0, 1)


def check_method(method: str | None, options: Iterable[str] = ()) -> None:
    """Checks a method and the names of its options.

    Raises ``ValueError``, and ``ImportError`` if the library of the method is missing.
    """
    known = []
    if method is not None:
        params.choice("method", method, METHODS)
        known = list(inspect.signature(_FILTERS[method]).parameters)[2:]
    if method == "guided":
        load_guided_blur()
    for name in options:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"`options` of method {method!r} must be {allowed}: got {name!r}")


def resize(values: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resizes (h, w) values to ``size`` (W, H): bool by nearest neighbour, others bilinearly."""
    if values.dtype == np.bool_:
        image = Image.fromarray(values.astype(np.uint8))
        return np.asarray(image.resize(size, Image.Resampling.NEAREST), dtype=np.bool_)
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float64)


def load_guided_blur() -> Any:
    """Returns the guided filter of kornia; raises ``ImportError`` if kornia is missing."""
    return load_extra("kornia.filters", "kornia", "refine", 'method "guided"').guided_blur


def _positions(shape: tuple[int, ...]) -> Floats:
    """Returns (H W, 2) row and column indices."""
    return np.indices(shape).reshape(2, -1).T.astype(np.float64)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        params.require(name, value, "> 0", value > 0)


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        params.require(name, value, ">= 0", value >= 0)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# RGB to Y, U and V as in JPEG, without the offset: ITU-R BT.601.
_YUV = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)

_FILTERS: dict[str, Callable[..., Floats]] = {
    "bilateral": bilateral_solver,
    "guided": guided_filter,
    "crf": dense_crf,
}
