"""TokenCut's functions (Wang et al., CVPR 2022), without their N x N matrices.

A program that imports them from an ``object_discovery`` module changes one line::

    from selfment.compat.tokencut import ncut, detect_box            # object discovery
    from selfment.compat.tokencut import saliency_ncut as ncut       # unsupervised saliency
    from selfment.compat.tokencut import wsol_ncut as ncut           # weakly supervised detection

Features may be on the CPU or a CUDA device, which then computes the cut; results are numpy arrays.
:mod:`selfment.compat` describes ties of the seed, and the weighted graph at tau = 0.

All three raise ``TypeError`` for a wrong kind of array or dtype; ``ValueError`` for a wrong shape,
size, tau or eps, or features that are not finite; ``ImportError`` if the native module for the
device is missing.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from ..core.arrays import as_array
from . import _shared as _cut
from ._shared import Array

Box = list[Any]
Indices = tuple[NDArray[np.intp], ...]


def ncut(
    feats: Any,
    dims: Any,
    scales: Any,
    init_image_size: Any,
    tau: float = 0,
    eps: float = 1e-5,
    im_name: str = "",
    no_binary_graph: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int32], Array, int, None, Array]:
    """Object discovery: returns the box around the seed's component of the cut.

    Args:
        feats: (1, 1 + h*w, C) tokens, any float type; the first is the CLS token and not used.
        dims: (h, w), in patches.
        scales: (height, width) of a patch in pixels.
        init_image_size: (C, H, W) of the image, to which the box is clipped.
        tau: an edge needs a similarity > tau, or >= tau with ``no_binary_graph``, where
            tau must be >= 0.
        eps: the affinity of pairs without an edge.
        im_name: not used.
        no_binary_graph: weight edges by their similarity, not by 1.

    Returns:
        The box (4,) int64, x1 y1 x2 y2 in pixels, x2 and y2 exclusive; component labels (h, w)
        int32 of the foreground; the seed's component (h, w) float64 of 0 and 1; the seed, a flat
        index; None; the Fiedler vector (h, w) float64, x^T D x = 1, with the sign that puts the
        seed above the mean.
    """
    grid = _cut.as_dims(dims)
    image = _cut.sizes("init_image_size", init_image_size, "C, H, W")
    x = _cut.fiedler(_cut.from_tokens(feats, grid), tau, eps, no_binary_graph)
    side, seed, x = _cut.bipartition(x)
    box, _, objects, inside = detect_box(side.reshape(grid), seed, grid, image[1:], scales)
    mask = np.zeros(grid)
    mask[inside] = 1
    return np.asarray(box), objects, mask, seed, None, x.reshape(grid)


def detect_box(
    bipartition: Any,
    seed: int,
    dims: Any,
    initial_im_size: Any = None,
    scales: Any = None,
    principle_object: bool = True,
) -> tuple[Box, list[int], NDArray[np.int32], Indices]:
    """Returns the box of the seed's 4-connected component.

    Args:
        bipartition: (h, w), nonzero in the foreground.
        seed: flat index of a patch.
        dims: (h, w), in patches.
        initial_im_size: (H, W) of the image, to which x2 and y2 are clipped; None does not clip.
        scales: (height, width) of a patch in pixels; needed.
        principle_object: must be True.

    Returns:
        The box [x1, y1, x2, y2] in pixels and [y1, x1, y2, x2] in patches, ends exclusive;
        component labels (h, w) int32, 0 in the background; the indices (rows, columns) of the
        component. A seed in the background selects all of the background.

    Raises:
        NotImplementedError: ``principle_object=False``, as in TokenCut.
        ValueError: a wrong shape, seed or size.
    """
    if not principle_object:
        raise NotImplementedError("`principle_object` must be True, there is no other mode")
    grid = _cut.as_dims(dims, least=1)
    side = as_array(bipartition, "bipartition")
    if side.shape != grid:
        raise ValueError(f"`bipartition` must be (h, w), here {grid}: got shape {side.shape}")
    if not 0 <= seed < side.size:
        raise ValueError(f"`seed` must be a patch, from 0 to {side.size - 1}: got {seed}")
    if np.shape(scales) != (2,) or not all(isinstance(s, Real) and float(s) > 0 for s in scales):
        raise ValueError(f"`scales` must be 2 positive numbers (height, width): got {scales!r}")
    objects, _ = scipy.ndimage.label(side)
    inside = np.where(objects == objects[np.unravel_index(seed, grid)])
    (y1, x1), (y2, x2) = ([int(at(i)) for i in inside] for at in (np.min, np.max))
    y2, x2 = y2 + 1, x2 + 1
    box = [scales[1] * x1, scales[0] * y1, scales[1] * x2, scales[0] * y2]
    if initial_im_size is not None:
        height, width = _cut.sizes("initial_im_size", initial_im_size, "H, W")
        box[2:] = min(box[2], width), min(box[3], height)
    return box, [y1, x1, y2, x2], objects, inside


def saliency_ncut(
    feats: Any,
    dims: Any,
    scales: Any,
    init_image_size: Any,
    tau: float = 0,
    eps: float = 1e-5,
    im_name: str = "",
    no_binary_graph: bool = False,
) -> tuple[int, Array, Array]:
    """Unsupervised saliency: returns the seed's component and the vector at the image's size.

    Args:
        feats: (C, h*w) features without the CLS token, any float type.
        dims: (h, w), in patches.
        scales: not used.
        init_image_size: (H, W) of the image.
        tau: see :func:`ncut`.
        eps: see :func:`ncut`.
        im_name: not used.
        no_binary_graph: see :func:`ncut`.

    Returns:
        The seed, a flat index; the mask (H, W) float64 of 0 and 1; the Fiedler vector (H, W)
        float64, with the sign that LAPACK returns. Pixels have the value of the nearest patch.
    """
    grid = _cut.as_dims(dims)
    size = _cut.sizes("init_image_size", init_image_size, "H, W")
    x = _cut.fiedler(_cut.from_columns(feats, grid), tau, eps, no_binary_graph)
    side, seed, _ = _cut.bipartition(x)
    mask = component(side.reshape(grid), seed)
    return seed, _cut.upsample(mask, size), _cut.upsample(x.reshape(grid), size)


def wsol_ncut(
    feats: Any,
    dims: Any,
    scales: Any,
    init_image_size: Any,
    eps: float = 1e-5,
    tau: float = 0.05,
) -> tuple[NDArray[np.int64], Array, int, Array]:
    """Weakly supervised detection: returns the box and the whole foreground.

    Note that ``eps`` comes before ``tau``.

    Args:
        feats: (1, 1 + h*w, C) tokens, any float type; the first is the CLS token and not used.
        dims: (h, w), in patches.
        scales: (height, width) of a patch in pixels.
        init_image_size: (H, W) of the image, to which the box is clipped.
        eps: the affinity of pairs without an edge.
        tau: an edge needs a similarity > tau.

    Returns:
        The box (4,) int64, x1 y1 x2 y2 in pixels, around the seed's component; the foreground
        (h, w) float64 of 0 and 1 with all its components; the seed, a flat index; the Fiedler
        vector (h, w) float64, with the sign that puts the seed above the mean.
    """
    grid = _cut.as_dims(dims)
    image = _cut.sizes("init_image_size", init_image_size, "H, W")
    x = _cut.fiedler(_cut.from_tokens(feats, grid), tau, eps)
    side, seed, x = _cut.bipartition(x)
    box = detect_box(side.reshape(grid), seed, grid, image, scales)[0]
    return np.asarray(box), side.reshape(grid).astype(np.float64), seed, x.reshape(grid)


def component(side: NDArray[np.bool_], seed: int) -> Array:
    """Returns the seed's 4-connected component of ``side`` (h, w), float64 of 0 and 1."""
    objects, _ = scipy.ndimage.label(side)
    mask: Array = (objects == objects.flat[seed]).astype(np.float64)
    return mask
