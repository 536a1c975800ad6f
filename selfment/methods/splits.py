"""The splits that IPO can start from in the place of the cut."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..core.arrays import Grid
from ..core.regions import kmeans
from .selfmask import Mask, unit


def kmeans_split(features: Tensor, grid: Grid) -> Mask:
    """The foreground (N,) of 2-means of (N, d) rows, N >= 2; all of it where they are equal.

    scikit-learn's k-means, the best of ten starts, which are always the same.
    """
    f = unit(features).float().numpy()
    if np.array_equal(f.min(axis=0), f.max(axis=0)):
        return np.ones(len(f), dtype=bool)
    side = kmeans(f, 2) == 1
    inner = np.zeros(grid, dtype=bool)
    inner[1:-1, 1:-1] = True
    border = ~inner.ravel()

    def background(part: Mask) -> tuple[int, ...]:
        return int((part & border).sum()), int(part.sum()), int(part[0])

    return min(side, ~side, key=background)


def cls_split(features: Tensor, cls: Tensor) -> Mask:
    """The foreground (N,) of (N, d) rows: a cosine with ``cls`` (d,) above its mean."""
    cosine = unit(features) @ unit(cls[None])[0]
    return np.asarray((cosine > cosine.mean()).numpy())
