"""``classic``: hand-made patch features, embedded, with nothing to learn or download."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .._torch_state import as_documented
from .base import Backbone

_BINS = 8  # gradient directions, of the double angle: an edge and its reverse are one
_SCALES = (1, 3, 7)  # sides, in patches, of the windows that statistics are taken over
_GAIN = 0.3  # of the random map: larger values make similarity fall faster with distance
_CENTRING = 0.5  # share of the mean feature that is taken away
_SEED = 0

# Linear sRGB to CIE XYZ, relative to the white point D65.
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


class Classic(Backbone):
    """Colour and gradient statistics of each patch and its surroundings, d = 384, patch 16.

    Over windows of 1, 3 and 7 patches: mean and deviation of Lab colour, gradient magnitude and
    direction histogram. Each statistic is standardised over the image; random Fourier features
    (Rahimi and Recht, NIPS 2007) turn distance into cosine similarity. Half of their mean is taken
    away: with none of it gone the cut picks outliers, with all of it gone it halves the image. An
    image's features do not depend on the others of its batch.
    """

    name = "classic"
    patch_size = 16
    dim = 384
    orient = "corners"
    attends = False
    note = (
        "note: the classic backbone is hand-made and needs no weights; for the paper's quality "
        "use a DINO backbone, such as --backbone vit_small_patch16_dinov3.lvd1689m"
    )

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """The map comes from ``numpy.random.RandomState``, whose stream never changes."""
        self.device = torch.device(device)
        stream = np.random.RandomState(_SEED)
        statistics = len(_SCALES) * (3 + 3 + _BINS + 1)
        projection = _GAIN * stream.standard_normal((statistics, self.dim))
        phase = stream.uniform(0, 2 * math.pi, self.dim)
        self._projection = torch.tensor(projection, dtype=torch.float32, device=self.device)
        self._phase = torch.tensor(phase, dtype=torch.float32, device=self.device)
        angle = torch.arange(_BINS, dtype=torch.float32, device=self.device) * (2 * math.pi / _BINS)
        self._directions = torch.stack([angle.cos(), angle.sin()], dim=1)
        self._xyz = torch.tensor(_XYZ, dtype=torch.float32, device=self.device)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """(B, N, 384) float32 of a (B, 3, H, W) batch of sRGB values in [0, 1]."""
        self.grid(*batch.shape[-2:])
        # One image at a time: the shapes, and so the rounding, do not depend on the batch.
        with as_documented(self.device):
            return torch.stack([self._features(image[None]) for image in batch.to(self.device)])

    def _features(self, image: Tensor) -> Tensor:
        colour = self._lab(functional.avg_pool2d(image, 4))
        means = functional.avg_pool2d(torch.cat([colour, colour * colour], dim=1), 4)
        edges = functional.avg_pool2d(self._gradients(functional.avg_pool2d(image, 2)), 8)
        parts = []
        for side in _SCALES:
            mean, square = _window(means, side).chunk(2, dim=1)
            deviation = (square - mean * mean).clamp(min=0).sqrt()
            edge = _window(edges, side).sqrt()
            parts += [_standardised(mean), _standardised(deviation), _standardised(edge)]
        mapped = (torch.cat(parts, dim=1) @ self._projection + self._phase).cos()
        return mapped - _CENTRING * mapped.mean(dim=0)

    def _lab(self, rgb: Tensor) -> Tensor:
        """CIE Lab, in hundredths, of (1, 3, H, W) sRGB values."""
        linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = torch.einsum("ij,bjhw->bihw", self._xyz, linear)
        root = xyz.clamp(min=1e-8) ** (1 / 3)
        x, y, z = torch.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116).unbind(1)
        return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], dim=1)

    def _gradients(self, rgb: Tensor) -> Tensor:
        """(1, bins + 1, H, W): magnitude along each direction, and the magnitude itself."""
        weights = rgb.new_tensor((0.299, 0.587, 0.114))
        luma = torch.einsum("c,bchw->bhw", weights, rgb)[:, None]
        luma = functional.pad(luma, (1, 1, 1, 1), "replicate")
        dx = luma[:, :, 1:-1, 2:] - luma[:, :, 1:-1, :-2]
        dy = luma[:, :, 2:, 1:-1] - luma[:, :, :-2, 1:-1]
        magnitude = (dx * dx + dy * dy + 1e-8).sqrt()
        double = torch.cat([dx * dx - dy * dy, 2 * dx * dy], dim=1) / magnitude
        along = torch.einsum("kc,bchw->bkhw", self._directions, double).clamp(min=0)
        return torch.cat([along, magnitude], dim=1)


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
