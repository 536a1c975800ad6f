"""Iterative Patch Optimization: labels that agree with the class means of their own patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import as_features, as_tensor, check_device
from .blocks import Blocks
from .graph import check_finite
from .options import IpoOptions


def ipo(
    features: Any,
    labels: Any,
    *,
    iters: int = params.IPO_ITERS,
    min_count: int = params.IPO_MIN_COUNT,
) -> Any:
    """Refines binary patch labels (Selfment, "Iterative Patch Optimization").

    A step assigns to each patch the label of the class mean that it is more similar to. The loop
    ends with a step that changes no label, for no later one would. A score of exactly 0 is
    background.

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w), as for :func:`selfment.affinity`.
        labels: (N,) or (B, N), also (h, w) or (B, h, w); bool or a number type, 0 or 1; on the
            device of the features. On a CUDA device, where a check would have to wait, any other
            number counts as 1.
        iters: steps at most.
        min_count: no step is taken while a side has fewer patches than this.

    Returns:
        The new labels, in the shape, dtype and type of array of ``labels``. On a CUDA device, all
        0 for an image whose features are not finite.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, device or parameter; on the CPU also labels other than 0 and 1,
            or features that are not finite.
        ImportError: the module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    options = IpoOptions(iters=iters, min_count=min_count)
    checked = as_features(features)
    start, array_type = as_tensor(labels, "labels")
    batch, n, _ = checked.tensor.shape
    lead = (batch,) if checked.batched else ()
    own = tuple(start.shape)[len(lead) :]
    if start.shape[: len(lead)] != lead or len(own) not in (1, 2) or math.prod(own) != n:
        axes = f"{batch}, " if checked.batched else ""
        raise ValueError(
            f"`labels` must be ({axes}{n}{'' if axes else ','}), or ({axes}h, w) with h*w == {n}, "
            f"for these features: got {tuple(start.shape)}"
        )
    check_device(start, "labels", checked.tensor.device, "`features`")
    with checked.array_type.stream():
        refined = _ipo(checked.tensor, start.reshape(batch, n), options.iters, options.min_count)
        return array_type.from_tensor(refined.reshape(start.shape).to(start.dtype))


def _ipo_impl(features: Tensor, labels: Tensor, iters: int, min_count: int) -> Tensor:
    if not labels.is_cuda and not ((labels == 0) | (labels == 1)).all():
        value = labels[(labels != 0) & (labels != 1)].flatten()[0].item()
        raise ValueError(f"`labels` must be 0 or 1: got {value}")
    options = IpoOptions(iters=iters, min_count=min_count)
    return run_ipo(features.contiguous(), labels.bool(), options)[0]


def _ipo_fake(features: Tensor, labels: Tensor, iters: int, min_count: int) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.bool)


_ipo = _ops.register(
    "ipo(Tensor features, Tensor labels, SymInt iters, SymInt min_count) -> Tensor",
    _ipo_impl,
    _ipo_fake,
)


def run_ipo(
    rows: Tensor | Blocks, labels: Tensor, options: IpoOptions, *, first: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs IPO on checked, contiguous (B, N, d) rows, or blocks of rows, with (B, N) labels.

    Returns the new labels (B, N) bool, the steps taken (B,) int64 and the separation (B,) float64:
    the distance of the two class means under the new labels; 0 where a class is empty, NaN where a
    CUDA image is not finite. ``first`` is the number of the first image, for errors.
    """
    refined, steps, separation, bad = _ops.ipo(rows, labels, options)
    check_finite(bad, rows.shape[1], first)
    return refined, steps, separation
