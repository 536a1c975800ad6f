"""Scores of one saliency map against one mask; a data set's is the mean over its images."""

from __future__ import annotations

import torch
from torch import Tensor

F_BETA2 = 0.09  #: beta^2 of the paper's F measure, whose 0.3 is squared


def iou(saliency: Tensor, truth: Tensor) -> float:
    """Intersection over union of ``saliency`` > 0.5 and ``truth`` > 0.5; 1 if both are empty.

    Both (H, W), in [0, 1] or bool.
    """
    ours, theirs = saliency > 0.5, truth > 0.5
    union = int((ours | theirs).sum())
    return int((ours & theirs).sum()) / union if union else 1.0


def f_max(saliency: Tensor, truth: Tensor) -> float:
    """The largest F measure over the thresholds k / 255, k = 0 to 254: the paper's ``F_max``.

    ``saliency`` (H, W) in [0, 1] or bool, ``truth`` > 0.5. F = (1 + b) P R / (b P + R) with b =
    0.09, from precision P and recall R of ``saliency`` > threshold, each with 1e-7 in its
    denominator.
    """
    theirs = (truth > 0.5).flatten()
    thresholds = torch.arange(255, dtype=torch.float64) / 255
    # How many of the thresholds a pixel exceeds, and from there counts by threshold.
    exceeded = torch.bucketize(saliency.flatten().double(), thresholds)
    counts = torch.bincount(exceeded, minlength=256).double()
    hits = torch.bincount(exceeded[theirs], minlength=256).double()
    positive, true = (c.flip(0).cumsum(0).flip(0)[1:] for c in (counts, hits))
    precision = true / (positive + 1e-7)
    recall = true / (float(theirs.sum()) + 1e-7)
    scores = (1 + F_BETA2) * precision * recall / (F_BETA2 * precision + recall + 1e-7)
    return float(scores.max())
