"""The confidence of a pseudo-label: one number, which is low for images without an object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .arrays import Grid


def confidence(
    eigenvalue: Tensor, gap: Tensor, separation: Tensor, labels: Tensor, grids: Sequence[Grid]
) -> Tensor:
    """Returns (B,) float64 in [0, 1]: (1 - lambda) s (1 - a / 4 - g / 4).

    - lambda, the eigenvalue, is the cost of the cut: 0 if it cuts no edge, 1 if all patches are
      connected to each other.
    - s is the distance of the class means beyond chance: sqrt(min(1, separation^2) - 1 / n_f -
      1 / n_b), or 0. The squared distance of the means of n_f and n_b orthogonal unit rows is
      1 / n_f + 1 / n_b; so a single patch that is unlike all others is no object.
    - a = lambda / (lambda + gap) is the ambiguity of the cut: 1 if the eigenvalue repeats.
    - g is the similarity of the foreground to a background: its share of the patches times its
      share of the corners, four of each grid.

    The confidence grows with gap and separation, and falls with the eigenvalue and the corners; it
    is 0 if a class is empty, and NaN if the eigenvalue is. ``eigenvalue``, ``gap`` and
    ``separation`` are (B,) float64; ``labels`` (B, N) bool, for the patches of one or more
    ``grids`` one after another.
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
    """Returns (B,) float64, the share of the corners of all grids that is foreground."""
    frames = zip(labels.split([h * w for h, w in grids], dim=1), grids, strict=True)
    corners = [
        frame.unflatten(1, (h, w))[:, :: max(1, h - 1), :: max(1, w - 1)].flatten(1)
        for frame, (h, w) in frames
    ]
    shares = [frame.mean(1, dtype=torch.float64) for frame in corners]
    return shares[0] if len(shares) == 1 else torch.stack(shares).mean(0)
