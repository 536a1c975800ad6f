"""``statistics``: hand-made features of the colour and texture of each patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .hand_made import HandMade
from .pixels import BINS, gradients, lab

_SCALES = (1, 3, 7)  # sides, in patches, of the windows of the statistics
_GAIN = 0.3  # gain of the random map: if larger, similarity falls faster with distance
_CENTRING = 0.5  # share of the mean feature that is subtracted


class Statistics(HandMade):
    """Colour and gradient statistics of each patch and its surroundings, d = 384, patch 16.

    The statistics are mean and standard deviation of Lab colour, gradient magnitude and direction
    histogram, over windows of 1, 3 and 7 patches. Each is standardised over the image; random
    Fourier features convert distance to cosine similarity. Half of their mean is subtracted:
    without that the cut selects outliers, and with all of the mean subtracted it halves the image.
    """

    name = "statistics"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """``device``: the device that computes the features."""
        super().__init__(device, len(_SCALES) * (3 + 3 + BINS + 1), self.dim)

    def features(self, image: Tensor) -> Tensor:
        """Returns (N, 384) features of a (1, 3, H, W) image."""
        colour = lab(functional.avg_pool2d(image, 4))
        means = functional.avg_pool2d(torch.cat([colour, colour * colour], dim=1), 4)
        edges = functional.avg_pool2d(gradients(functional.avg_pool2d(image, 2)), 8)
        parts = []
        for side in _SCALES:
            mean, square = _window(means, side).chunk(2, dim=1)
            deviation = (square - mean * mean).clamp(min=0).sqrt()
            edge = _window(edges, side).sqrt()
            parts += [_standardised(mean), _standardised(deviation), _standardised(edge)]
        mapped = self.mapped(_GAIN * torch.cat(parts, dim=1))
        return mapped - _CENTRING * mapped.mean(dim=0)


def _window(statistics: Tensor, side: int) -> Tensor:
    """Returns means over ``side`` x ``side`` patches, fewer at the border."""
    return functional.avg_pool2d(statistics, side, 1, side // 2, count_include_pad=False)


def _standardised(statistics: Tensor) -> Tensor:
    """Standardises the statistics to mean zero and standard deviation 1 / sqrt(C) over the patches.

    All kinds of statistics then have the same weight; those that hardly vary stay near zero.
    Returns (N, C).
    """
    rows = statistics.flatten(2)[0].T
    deviation, mean = torch.std_mean(rows, dim=0, correction=0)
    return (rows - mean) / (math.sqrt(rows.shape[1]) * deviation.clamp(min=1e-3))
