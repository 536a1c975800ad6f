"""Functions shared by the drop-ins: argument checks, Fiedler vector, seed, upsampling."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core import options as params
from ..core.arrays import FEATURE_DTYPES, Grid, as_tensor
from ..core.graph import Graph, make_graph
from ..core.ncut import ncut
from ..core.options import CutOptions

Array = NDArray[np.float64]


def sizes(name: str, value: Any, axes: str) -> tuple[int, ...]:
    """Converts ``value`` to positive ints, one for each of the ``axes``; raises ``ValueError``."""
    count = len(axes.split(","))
    try:
        result = tuple(int(size) for size in value)
        good = len(result) == count and min(result) >= 1 and result == tuple(value)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f"`{name}` must be {count} positive integers ({axes}): got {value!r}")
    return result


def as_dims(value: Any, *, least: int = 2) -> Grid:
    """Converts ``dims`` to (h, w) with at least ``least`` patches; raises ``ValueError``."""
    h, w = sizes("dims", value, "h, w")
    params.require("dims", (h, w), f"a grid of {least} patches or more", h * w >= least)
    return h, w


def from_tokens(feats: Any, grid: Grid) -> Tensor:
    """Returns the (hw, C) rows of (1, 1 + hw, C) tokens without the CLS token, which is first."""
    return _checked(feats, (1, 1 + math.prod(grid), None), "(1, 1 + h*w, C), CLS first")[0, 1:]


def from_columns(feats: Any, grid: Grid) -> Tensor:
    """Returns the (hw, C) rows of (C, hw) features."""
    return _checked(feats, (None, math.prod(grid)), "(C, h*w)").T


def from_rows(feats: Any, grid: Grid) -> Tensor:
    """Checks (hw, C) rows and returns them as a tensor."""
    return _checked(feats, (math.prod(grid), None), "(h*w, C)")


def _checked(feats: Any, shape: tuple[int | None, ...], axes: str) -> Tensor:
    """Returns ``feats`` as a tensor of ``shape``, with None for channels; errors print ``axes``."""
    tensor, _ = as_tensor(feats, "feats")
    if tensor.dtype not in FEATURE_DTYPES:
        raise TypeError(
            "`feats` must be float16, bfloat16, float32 or float64: "
            f"got {str(tensor.dtype).removeprefix('torch.')}"
        )
    channels = tensor.shape[shape.index(None)] if tensor.ndim == len(shape) else 0
    if channels < 1 or tensor.shape != tuple(channels if size is None else size for size in shape):
        wanted = ", ".join("C" if size is None else str(size) for size in shape)
        raise ValueError(
            f"`feats` must be {axes}, here ({wanted}) with C >= 1: got shape {tuple(tensor.shape)}"
        )
    norms = torch.linalg.vector_norm(tensor, dim=shape.index(None), dtype=torch.float64)
    if not norms.isfinite().all():
        raise ValueError(
            "`feats` must be finite, and so must their norms: got NaN, infinity or an overflow"
        )
    return tensor


def cut_options(tau: float, eps: float, weighted: bool) -> CutOptions:
    """Returns the options of the cut; raises ``ValueError``.

    The weighted graph needs tau > 0: the least such tau stands for 0, and keeps every positive
    similarity.
    """
    params.require("tau", tau, "a finite number", not isinstance(tau, str))
    if weighted and tau == 0:
        tau = sys.float_info.min
    return CutOptions(tau=tau, eps=eps, graph="weighted" if weighted else "binary", orient="seed")


def fiedler(rows: Tensor, tau: float, eps: float, weighted: bool = False) -> Array:
    """Returns the Fiedler vector (N,) of checked rows (N, C): x^T D x = 1, with LAPACK's sign."""
    return fiedler_of(make_graph(rows, cut_options(tau, eps, weighted)))


def fiedler_of(graph: Graph) -> Array:
    """Returns the Fiedler vector (N,) of a graph of (N, C) rows."""
    vector: Array = ncut(graph, sign="lapack")[1][:, 0].cpu().numpy()
    return vector


def first_peak(values: Array) -> int:
    """Returns the index of the maximum; the first of those that differ by rounding only."""
    peak = values.max()
    return int(np.argmax(values >= peak - params.SEED_TIE * abs(peak)))


def above_mean(x: Array) -> NDArray[np.bool_]:
    """Returns the side x > mean(x) of the cut."""
    return np.asarray(x > np.sum(x) / len(x))


def bipartition(x: Array) -> tuple[NDArray[np.bool_], int, Array]:
    """Returns TokenCut's foreground side (N,), its seed, and the vector or its negative.

    The seed is the peak of |x|. If x is not above the mean there, the side is the complement and
    the vector is negated.
    """
    side, seed = above_mean(x), first_peak(np.abs(x))
    return (side, seed, x) if side[seed] else (~side, seed, -x)


def upsample(grid: Array, size: tuple[int, ...]) -> Array:
    """Upsamples (h, w) to (H, W) float64; each pixel has the value of torch's nearest patch."""
    image = torch.nn.functional.interpolate(
        torch.from_numpy(grid)[None, None], size=size, mode="nearest"
    )
    result: Array = image[0, 0].numpy()
    return result
