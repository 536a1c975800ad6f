"""``statistics``: colour and texture of each patch, embedded, with nothing to download."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .hand_made import HandMade
from .pixels import BINS, gradients, lab

_SCALES = (1, 3, 7)  # sides, in patches, of the windows that statistics are taken over
_GAIN = 0.3  # of the random map: larger values make similarity fall faster with distance
_CENTRING = 0.5  # share of the mean feature that is taken away


class Statistics(HandMade):
    """Colour and gradient statistics of each patch and its surroundings, d = 384, patch 16.

    Over windows of 1, 3 and 7 patches: mean and deviation of Lab colour, gradient magnitude and
    direction histogram. Each statistic is standardised over the image; random Fourier features
    turn distance into cosine similarity. Half of their mean is taken away: with none of it gone the
    cut picks outliers, with all of it gone it halves the image.
    """

    name = "statistics"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """The device is where it computes."""
        super().__init__(device, len(_SCALES) * (3 + 3 + BINS + 1), self.dim)

    def features(self, image: Tensor) -> Tensor:
        """(N, 384) of a (1, 3, H, W) image."""
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
    """Means over ``side`` x ``side`` patches, fewer at the border."""
    return functional.avg_pool2d(statistics, side, 1, side // 2, count_include_pad=False)


def _standardised(statistics: Tensor) -> Tensor:
    """(N, C) with zero mean over the patches and deviation 1 / sqrt(C), so that all kinds of
    statistic weigh the same; what hardly varies stays near zero.
    """
    rows = statistics.flatten(2)[0].T
    deviation, mean = torch.std_mean(rows, dim=0, correction=0)
    return (rows - mean) / (math.sqrt(rows.shape[1]) * deviation.clamp(min=1e-3))
