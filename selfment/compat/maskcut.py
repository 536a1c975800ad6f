"""MaskCut's functions (Wang et al., *Cut and Learn*, CVPR 2023), on any grid, square or not.

A program that imports them from ``maskcut`` changes one line::

    from selfment.compat.maskcut import maskcut_forward

Features may be on the CPU or a CUDA device, which then computes the cuts. :mod:`selfment.compat`
describes ties of the seed.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core import options as params
from ..core import reference
from ..core.arrays import as_tensor
from ..core.graph import affinity
from . import _shared as _cut
from ._shared import Array
from .tokencut import component


def maskcut_forward(
    feats: Any,
    dims: Any,
    scales: Any,
    init_image_size: Any,
    tau: float = 0,
    N: int = 3,  # noqa: N803, theirs
    cpu: bool = False,
) -> tuple[int, list[Array], list[Array]]:
    """Computes N rounds of the cut, each on features with zeros in the patches of earlier masks.

    The foreground is the side x > mean(x), for LAPACK's sign of x, or the other side if that one
    has three or more corners of the grid, or lacks the peak of |x|. The seed is the patch deepest
    in the foreground, and the mask its 4-connected component. From the second round on, a mask is
    emptied if its intersection over union with the previous one is > 0.5, or if it covers at most
    1 % of the grid. Earlier masks are subtracted from a mask at the image's size.

    Args:
        feats: (C, h*w) features without the CLS token, any float type.
        dims: (h, w), in patches.
        scales: not used.
        init_image_size: (H, W) of the image.
        tau: an edge needs a similarity > tau.
        N: number of rounds.
        cpu: compute the cut on the CPU, not on the device of the features.

    Returns:
        The last round's seed, a flat index; N masks (H, W) float64 of 0 and 1, empty ones included;
        N Fiedler vectors (H, W) float64, with LAPACK's signs. Pixels have the value of the nearest
        patch.

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, size, tau or N, or features that are not finite.
        ImportError: the native module for the device is missing.
    """
    grid = _cut.as_dims(dims)
    size = _cut.sizes("init_image_size", init_image_size, "H, W")
    params.require("N", N, "an integer >= 1", isinstance(N, Integral) and N >= 1)
    rows = _cut.from_columns(feats, grid)
    rows = rows.cpu() if cpu else rows
    graph = affinity(rows, tau=tau)
    x = _cut.fiedler_of(graph)
    mask = np.zeros(grid)
    covered = np.zeros(size)
    masks: list[Array] = []
    vectors: list[Array] = []
    for turn in range(N):
        # An empty mask paints nothing: the graph and its vector are those of the last round.
        if mask.any():
            graph = graph.paint(torch.from_numpy(mask).to(rows.device))
            x = _cut.fiedler_of(graph)
        side, seed = _foreground(x, grid)
        previous, mask = mask, component(side.reshape(grid), seed)
        if turn > 0 and (_iou(previous, mask) > 0.5 or 100 * mask.sum() <= mask.size):
            mask[:] = 0
        masks.append(np.maximum(_cut.upsample(mask, size) - covered, 0))
        covered += masks[-1]
        vectors.append(_cut.upsample(x.reshape(grid), size))
    return seed, masks, vectors


def get_affinity_matrix(feats: Any, tau: float, eps: float = 1e-5) -> tuple[Array, Array]:
    """Returns the dense A and D (N, N) float64 of (C, N) features; A = 1 where similarity > tau.

    Raises ``TypeError`` and ``ValueError`` as :func:`selfment.affinity` does.
    """
    tensor, _ = as_tensor(feats, "feats")
    if tensor.ndim != 2:
        raise ValueError(f"`feats` must be (C, N): got shape {tuple(tensor.shape)}")
    rows = _cut.from_columns(tensor, (1, tensor.shape[1]))
    A: Array = reference.affinity(rows, tau=tau, eps=eps).cpu().numpy()
    return A, np.diag(A.sum(axis=1))


def second_smallest_eigenvector(A: Array, D: Array) -> tuple[Array, Array]:
    """Returns the Fiedler vector (N,) float64 of dense A and D (N, N), N >= 2, after a copy of it.

    LAPACK computes it, for any symmetric A and its diagonal D > 0; :func:`maskcut_forward` does not
    need it. x^T D x = 1; the sign is that of
    ``scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])``. Raises ``ValueError`` for other shapes.
    """
    if np.ndim(A) != 2 or len(A) < 2 or np.shape(A) != (len(A),) * 2 or np.shape(D) != np.shape(A):
        raise ValueError(
            f"`A` and `D` must be (N, N) with N >= 2: got shapes {np.shape(A)} and {np.shape(D)}"
        )
    # The same reduction of the generalised problem and the same driver as in xSYGVX, without the
    # Cholesky factorisation, which is trivial for a diagonal matrix.
    scale = 1 / np.sqrt(np.diag(D))
    standard = scale[:, None] * (D - A) * scale
    y = scipy.linalg.eigh(standard, subset_by_index=[1, 1], driver="evx")[1][:, 0]
    x: Array = scale * y
    return x.copy(), x


def get_salient_areas(second_smallest_vec: Array) -> NDArray[np.bool_]:
    """Returns the side (N,) bool of the vector (N,) above its mean."""
    return _cut.above_mean(second_smallest_vec)


def check_num_fg_corners(bipartition: NDArray[Any], dims: Any) -> int:
    """Returns the number of foreground corners of the (h, w) grid, 0 to 4; in one row, each twice.

    Raises ``ValueError`` if ``dims`` does not fit the bipartition (h*w,).
    """
    h, w = _cut.as_dims(dims, least=1)
    if np.size(bipartition) != h * w:
        raise ValueError(f"`dims` must satisfy h*w == {np.size(bipartition)}: got {(h, w)}")
    side = np.reshape(bipartition, (h, w))
    return sum(int(side[corner]) for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)))


def get_masked_affinity_matrix(
    painting: Tensor, feats: Tensor, mask: Tensor, ps: int
) -> tuple[Tensor, Tensor]:
    """Sets features to zero where ``painting`` or ``mask`` is > 0; also returns the new painting.

    Args:
        painting: (h, w) or (1, h, w), > 0 in the patches of earlier masks.
        feats: (C, N) with N = h*w, on the same device.
        mask: (h, w), 0 or 1.
        ps: not used: the grid is the mask's.

    Returns:
        The features (C, N), and the painting (1, h, w) of 0 and 1, in the dtypes that torch
        promotes the arguments to.

    Raises:
        ValueError: the shapes do not fit.
    """
    fits = mask.ndim == 2 and feats.ndim == 2 and feats.shape[1] == mask.numel()
    if not fits or painting.shape not in (mask.shape, (1, *mask.shape)):
        raise ValueError(
            "`painting`, `feats` and `mask` must be (1, h, w), (C, h*w) and (h, w): got shapes "
            f"{tuple(painting.shape)}, {tuple(feats.shape)} and {tuple(mask.shape)}"
        )
    total = painting + mask[None]
    painting = (total > 0).to(total.dtype)
    return feats * (1 - painting.flatten()), painting


def _foreground(x: Array, grid: tuple[int, int]) -> tuple[NDArray[np.bool_], int]:
    """Returns the foreground (N,) of a vector with LAPACK's sign, and its deepest patch."""
    side = _cut.above_mean(x)
    if check_num_fg_corners(side, grid) >= 3 or not side[_cut.first_peak(np.abs(x))]:
        return ~side, _cut.first_peak(-x)
    return side, _cut.first_peak(x)


def _iou(a: Array, b: Array) -> float:
    """Returns the intersection over union of two masks of 0 and 1, one of them not empty."""
    return float((a * b).sum() / np.maximum(a, b).sum())
