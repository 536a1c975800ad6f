"""Saliency maps with ground truth, and scores by their definitions."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helpers.cases import generator


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **options)


def pair(seed, shape=(24, 31)):
    """Returns a correlated uint8 saliency map and mask."""
    rng = generator(seed)
    coarse = torch.rand(1, 1, 4, 5, generator=rng)
    field = torch.nn.functional.interpolate(coarse, shape, mode="bicubic")[0, 0]
    noise = torch.rand(shape, generator=rng)
    saliency = (0.8 * field + 0.2 * noise).clamp(0, 1).mul(255).round().byte().numpy()
    truth = (field > 0.55).byte().mul(255).numpy()
    return saliency, truth


def literal_f_max(saliency: Tensor, truth: Tensor) -> float:
    values, mask = saliency.numpy(), truth.numpy()
    best = 0.0
    for k in range(255):
        positive = values > k / 255
        true = (positive & mask).sum()
        precision = true / (positive.sum() + 1e-7)
        recall = true / (mask.sum() + 1e-7)
        f = 1.09 * precision * recall / (0.09 * precision + recall + 1e-7)
        best = max(best, f)
    return best


def literal_tokencut(saliency, truth):
    """Returns precision and recall of an image at each threshold of TokenCut, compared by torch."""
    found = []
    for threshold in np.arange(0.0, 1.0, 1.0 / 255):
        positive, mask = (torch.from_numpy(saliency) > threshold).numpy(), truth > 0
        true = np.sum(positive & mask)
        precision = true / positive.sum() if positive.sum() else 1.0
        recall = true / mask.sum() if mask.sum() else 1.0
        found.append((precision, recall))
    return np.array(found).T
