"""Iterative Patch Optimization: the labels that the class means of their own patches confirm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import _native
from . import _params as params
from ._arrays import as_features, as_tensor
from .graph import check_finite


def ipo(
    features: Any,
    labels: Any,
    *,
    iters: int = params.IPO_ITERS,
    min_count: int = params.IPO_MIN_COUNT,
) -> Any:
    """Refines binary patch labels (Selfment, "Iterative Patch Optimization").

    A step gives each patch the label of the class mean that it is more similar to. Labels that a
    step leaves as they are end the loop: nothing can change any more. A score of exactly 0 is
    background.

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w), as for :func:`selfment.affinity`.
        labels: (N,) or (B, N), also (h, w) or (B, h, w); bool or a number type, 0 or 1.
        iters: steps at most.
        min_count: no step is taken while a side has fewer patches than this.

    Returns:
        The new labels, in the shape, dtype and kind of array of ``labels``.

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, device or parameter, labels other than 0 and 1, or features that
            are not finite.
    """
    params.check_ipo(iters, min_count)
    given = as_features(features)
    start, restore = as_tensor(labels, "labels")
    batch, n, _ = given.tensor.shape
    lead = (batch,) if given.batched else ()
    own = tuple(start.shape)[len(lead) :]
    if start.shape[: len(lead)] != lead or len(own) not in (1, 2) or math.prod(own) != n:
        axes = f"{batch}, " if given.batched else ""
        raise ValueError(
            f"`labels` must be ({axes}{n}{'' if axes else ','}), or ({axes}h, w) with h*w == {n}, "
            f"for these features: got {tuple(start.shape)}"
        )
    if not ((start == 0) | (start == 1)).all():
        value = start[(start != 0) & (start != 1)].flatten()[0].item()
        raise ValueError(f"`labels` must be 0 or 1: got {value}")
    refined, _ = refine(given.tensor.contiguous(), start.reshape(batch, n).bool(), iters, min_count)
    return restore(refined.reshape(start.shape).to(start.dtype))


def refine(
    rows: Tensor, labels: Tensor, iters: int, min_count: int, *, first: int = 0
) -> tuple[Tensor, Tensor]:
    """New labels (B, N) bool and steps taken (B,) of (B, N, d) checked, contiguous rows.

    ``first`` is the number of the first image, for errors.
    """
    refined = labels.to("cpu", copy=True).contiguous()
    steps = torch.empty(len(rows), dtype=torch.int64)
    batch, n, d = rows.shape
    bad = _native.cpu().ipo(
        features=rows.data_ptr(),
        dtype=_native.dtype_code(rows),
        batch=batch,
        n=n,
        d=d,
        iters=iters,
        min_count=min_count,
        labels=refined.data_ptr(),
        steps=steps.data_ptr(),
        threads=_native.threads(),
    )
    check_finite(bad, n, first)
    return refined, steps
