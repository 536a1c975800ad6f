"""Scores of one saliency map against one mask.

The score of a data set is the mean over its images.

A saliency map or mask is a torch tensor or a numpy array (H, W): floats in [0, 1], bool, or uint8
where 255 means 1. Floats of half precision count as float32. All functions raise ``TypeError`` for
another dtype and ``ValueError`` for a map that is empty, not (H, W), not of the mask's shape, or
has values outside [0, 1] by more than 1e-6. :mod:`selfment.evaluation` scores folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core.arrays import check_data, check_dense, check_unmasked
from ..images.maps import ROUNDING

Floats = npt.NDArray[np.float64]

F_BETA2 = 0.09  #: beta^2 of the paper's F measure, whose 0.3 is squared
TOKENCUT_BETA2 = 0.3  #: beta^2 of TokenCut's F measure

THRESHOLDS: Floats = np.arange(255, dtype=np.float64) / 255  #: of the paper's F measure
#: TokenCut's: multiples of 1 / 255 as floating point has them, which may miss k / 255 by a bit.
TOKENCUT_THRESHOLDS: Floats = np.arange(255, dtype=np.float64) * (1 / 255)


_LEVELS: Floats = np.arange(256, dtype=np.float64) / 255  # the values that bytes stand for


@dataclass(frozen=True, eq=False)
class Curves:
    """Precision, recall and F measure by threshold, float64 of equal shape (T,)."""

    precision: Floats
    recall: Floats
    f: Floats


def iou(saliency: Tensor | npt.NDArray[Any], truth: Tensor | npt.NDArray[Any]) -> float:
    """Intersection over union of ``saliency`` > 0.5 and ``truth`` > 0.5; 1 if both are empty."""
    values, mask = _pair(saliency, truth)
    ours, theirs = _over(values, 0.5), _over(mask, 0.5)
    union = np.count_nonzero(ours | theirs)
    return float(np.count_nonzero(ours & theirs) / union) if union else 1.0


def accuracy(saliency: Tensor | npt.NDArray[Any], truth: Tensor | npt.NDArray[Any]) -> float:
    """The share of the pixels where ``saliency`` > 0.5 and ``truth`` > 0.5 agree."""
    values, mask = _pair(saliency, truth)
    return float(np.mean(_over(values, 0.5) == _over(mask, 0.5)))


def f_max(saliency: Tensor | npt.NDArray[Any], truth: Tensor | npt.NDArray[Any]) -> float:
    """The largest F measure over the thresholds k / 255, k = 0 to 254: the paper's ``F_max``.

    See :func:`f_curves`. A histogram of 256 levels takes the place of 255 comparisons.
    """
    return float(f_curves(saliency, truth).f.max())


def f_curves(saliency: Tensor | npt.NDArray[Any], truth: Tensor | npt.NDArray[Any]) -> Curves:
    """Precision, recall and the paper's F measure at the 255 :data:`THRESHOLDS`.

    F = (1 + b) P R / (b P + R) with b = 0.09, from precision P and recall R of ``saliency`` >
    threshold against ``truth`` > 0.5, each of the three with 1e-7 in its denominator. A threshold
    is compared in the saliency's own precision: a float32 map on the levels of an 8-bit file scores
    as the file does.
    """
    values, mask = _pair(saliency, truth)
    positive, true, total = _counts(values, _over(mask, 0.5), THRESHOLDS)
    precision = true / (positive + 1e-7)
    recall = true / (total + 1e-7)
    f = (1 + F_BETA2) * precision * recall / (F_BETA2 * precision + recall + 1e-7)
    return Curves(precision, recall, f)


def tokencut_curves(
    saliency: Tensor | npt.NDArray[Any], truth: Tensor | npt.NDArray[Any]
) -> Curves:
    """Precision, recall and F measure at the 255 :data:`TOKENCUT_THRESHOLDS`, as TokenCut has them.

    F = (1 + b) P R / (b P + R) with b = 0.3, 0 where that is 0 / 0, of ``saliency`` > threshold
    against ``truth`` > 0; P is 1 where no pixel exceeds the threshold, R is 1 where no pixel is
    true. A data set's score is the maximum of the mean of its images' F curves.
    """
    values, mask = _pair(saliency, truth)
    positive, true, total = _counts(values, _over(mask, 0), TOKENCUT_THRESHOLDS)
    precision = np.where(positive == 0, 1.0, true / np.maximum(positive, 1))
    recall = true / total if total else np.ones_like(true)
    below = TOKENCUT_BETA2 * precision + recall
    f = (1 + TOKENCUT_BETA2) * precision * recall / np.where(below == 0, 1.0, below)
    return Curves(precision, recall, f)


def as_map(value: Any, name: str) -> npt.NDArray[Any]:
    """``value`` as an array (H, W) of bool, uint8, float32 or float64 on the CPU.

    A leading axis of length 1 is dropped. Raises as the module says, naming ``name``.
    """
    if isinstance(value, Tensor):
        check_dense(value, name)
        check_data(value, name)
        tensor = value.detach().cpu()
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        array: npt.NDArray[Any] = (tensor.float() if half else tensor).numpy()
    elif isinstance(value, np.ndarray):
        check_unmasked(value, name)
        array = value.astype(np.float32) if value.dtype == np.float16 else value
    else:
        raise TypeError(
            f"`{name}` must be a torch tensor or a numpy array: got {type(value).__name__}"
        )
    if array.dtype not in (np.bool_, np.uint8, np.float32, np.float64):
        raise TypeError(f"`{name}` must hold floats, bools or uint8: got {array.dtype}")
    shape = array.shape
    if array.ndim == 3 and shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"`{name}` must be (H, W), not empty: got shape {shape}")
    if array.dtype.kind == "f":
        low, high = array.min(), array.max()
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # not a number fails, too
            raise ValueError(
                f"`{name}` must lie in [0, 1]: got values from {low:.9g} to {high:.9g}"
            )
        if low < 0 or high > 1:
            array = array.clip(0, 1)
    return array


def _pair(saliency: Any, truth: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    values, mask = as_map(saliency, "saliency"), as_map(truth, "truth")
    if values.shape != mask.shape:
        raise ValueError(
            f"`truth` must have the saliency's shape {values.shape}: got shape {mask.shape}"
        )
    return values, mask


def _over(values: npt.NDArray[Any], threshold: float) -> npt.NDArray[np.bool_]:
    """True where the values exceed a threshold of 0 or 0.5."""
    if values.dtype == np.bool_:
        return values
    over: npt.NDArray[np.bool_] = values > (
        int(threshold * 255) if values.dtype == np.uint8 else threshold
    )
    return over


def _counts(
    values: npt.NDArray[Any], truth: npt.NDArray[np.bool_], thresholds: Floats
) -> tuple[Floats, Floats, int]:
    """Counts: pixels above each threshold, true pixels among them, and all true pixels."""
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        histogram = _histogram(values, truth)
        # The number of thresholds that a level exceeds.
        exceeded = np.searchsorted(thresholds, _LEVELS)
        histogram = np.stack([np.bincount(exceeded, row, minlength=256) for row in histogram])
    else:
        histogram = _histogram(_exceeded(values, thresholds), truth)
    above = histogram[:, ::-1].cumsum(axis=1)[:, -2::-1].astype(np.float64)
    return above.sum(axis=0), above[1], int(np.count_nonzero(truth))


def _exceeded(values: npt.NDArray[Any], thresholds: Floats) -> npt.NDArray[np.uint8]:
    """The number of thresholds that each float in [0, 1] exceeds."""
    bounds = np.append(thresholds, [np.inf, np.inf]).astype(values.dtype)
    # Never more than the thresholds below v, and at most two fewer: the second where 255 v is
    # rounded down or a threshold lies a bit below k / 255.
    least = (values * values.dtype.type(255)).astype(np.uint8)
    counts: npt.NDArray[np.uint8] = least + (values > bounds[least])
    counts += values > bounds[1:][least]
    return counts


def _histogram(
    levels: npt.NDArray[np.uint8], truth: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """(2, 256): the number of false and of true pixels of each level."""
    keys = levels | (truth.astype(np.uint16) << np.uint16(8))
    return np.bincount(keys.ravel(), minlength=512).reshape(2, 256)
