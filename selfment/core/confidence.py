"""How sure a pseudo-label is: one number, by which images without an object can be told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arrays import Grid

#: Rejects flat images and noise, and hardly any photograph: measured in docs/confidence.md.
RECOMMENDED_MIN_CONFIDENCE = 0.25


def confidence(
    eigenvalue: Tensor, gap: Tensor, separation: Tensor, labels: Tensor, grids: Sequence[Grid]
) -> Tensor:
    """(B,) float64 in [0, 1]: (1 - lambda) s (1 - a / 4 - g / 4).

    - lambda, the eigenvalue, is what the cut costs: 0 if it cuts nothing, 1 if all patches hang
      together.
    - s is how far apart the class means are, without what chance gives: sqrt(min(1, separation^2) -
      1 / n_f - 1 / n_b), or 0. The means of n_f and n_b orthogonal unit rows are 1 / n_f + 1 / n_b
      apart, squared; so a single patch that is unlike all others is no object.
    - a = lambda / (lambda + gap) is how ambiguous the cut is: 1 where the eigenvalue repeats.
    - g is how much the foreground looks like ground: its share of the patches times its share of
      the corners, four of each grid.

    It grows with gap and separation, and falls with the eigenvalue and the corners; 0 where a class
    is empty, NaN where the eigenvalue is. ``eigenvalue``, ``gap`` and ``separation`` (B,) float64,
    ``labels`` (B, N) bool, the patches of one or more ``grids`` one after another.
    """
    size = labels.shape[1]
    foreground = labels.sum(1, dtype=torch.float64)
    chance = size / (foreground * (size - foreground))
    apart = (separation.clamp(max=1).square() - chance).clamp_(min=0).sqrt_()
    cost = eigenvalue.clamp(0, 1)
    ambiguous = cost / (cost + gap).clamp_(min=1e-30)
    ground = foreground * _corners(labels, grids) / size
    return (1 - cost) * apart * (1 - (ambiguous + ground) / 4)


def _corners(labels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """(B,) float64, the share of the corners of all grids that is foreground."""
    frames = zip(labels.split([h * w for h, w in grids], dim=1), grids, strict=True)
    corners = [
        frame.unflatten(1, (h, w))[:, :: max(1, h - 1), :: max(1, w - 1)].flatten(1)
        for frame, (h, w) in frames
    ]
    shares = [frame.mean(1, dtype=torch.float64) for frame in corners]
    return shares[0] if len(shares) == 1 else torch.stack(shares).mean(0)
