"""Colours, gradients and matrix products for the hand-made backbones.

Nothing here depends on the number of threads. In torch, powers do, because the ends of each
thread's share are computed by another function, and so do matrix products, because the order of
their sums changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

BINS = 8  # directions of gradients by the double angle, for which an edge equals its reverse
_LUMA = (0.299, 0.587, 0.114)
# Linear sRGB to CIE XYZ, relative to the white point D65.
_XYZ = (
    (0.4124564 / 0.95047, 0.3575761 / 0.95047, 0.1804375 / 0.95047),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339 / 1.08883, 0.1191920 / 1.08883, 0.9503041 / 1.08883),
)


def lab(rgb: Tensor) -> Tensor:
    """Converts (B, 3, H, W) sRGB values in [0, 1] to CIE Lab, in hundredths."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, _power((rgb + 0.055) / 1.055, 2.4))
    xyz = _mixed(_constant(_XYZ, rgb), linear)
    root = _power(xyz.clamp(min=1e-8), 1 / 3)
    x, y, z = torch.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack([1.16 * y - 0.16, 5 * (x - y), 2 * (y - z)], dim=1)


def gradients(rgb: Tensor) -> Tensor:
    """Returns (B, BINS + 1, H, W): the gradient's part in each direction, and its magnitude."""
    luma = _mixed(_constant(_LUMA, rgb)[None], rgb)
    luma = functional.pad(luma, (1, 1, 1, 1), "replicate")
    dx = luma[:, :, 1:-1, 2:] - luma[:, :, 1:-1, :-2]
    dy = luma[:, :, 2:, 1:-1] - luma[:, :, :-2, 1:-1]
    magnitude = (dx * dx + dy * dy + 1e-8).sqrt()
    double = torch.cat([dx * dx - dy * dy, 2 * dx * dy], dim=1) / magnitude
    angle = torch.arange(BINS, dtype=torch.float32, device=rgb.device) * (2 * math.pi / BINS)
    directions = torch.stack([angle.cos(), angle.sin()], dim=1)
    along = _mixed(directions, double).clamp(min=0)
    return torch.cat([along, magnitude], dim=1)


def halved(maps: Tensor) -> Tensor:
    """Returns the means of 2 x 2 pixels of maps (..., H, W) with even sides."""
    rows = maps[..., ::2, :] + maps[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def rounded(values: Tensor) -> Tensor:
    """Rounds to the nearest multiples of 2^-12, in float64."""
    return (values.double() * 2**12).round() / 2**12


def product(rows: Tensor, others: Tensor) -> Tensor:
    """Returns the inner products, (n, m) float32, of the rounded (n, k) and (m, k) rows.

    In float64 they are exact in any order of summation, while all magnitudes are below 2^11 and k
    is at most 64, because the entries are multiples of 2^-12.
    """
    return (rounded(rows) @ rounded(others).T).float()


def _mixed(weights: Tensor, maps: Tensor) -> Tensor:
    """Returns sums (B, k, H, W) of the maps (B, c, H, W) by (k, c) weights, channel by channel."""
    total = weights[:, 0, None, None] * maps[:, :1]
    for channel in range(1, maps.shape[1]):
        total += weights[:, channel, None, None] * maps[:, channel : channel + 1]
    return total


def _power(values: Tensor, exponent: float) -> Tensor:
    """Returns the power of positive values."""
    return (values.log() * exponent).exp()


def _constant(values: object, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)
