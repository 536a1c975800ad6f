"""Selfment's IPO from another split of the patches than the cut's: the paper's ablation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..backbones import Attended
from ..core.arrays import Grid
from ..core.options import IpoOptions
from ..core.regions import kmeans, load_kmeans
from .base import Inputs, Mask, MaskMethod, check_types
from .selfmask import unit


@dataclass(frozen=True)
class _Split(MaskMethod):
    """IPO from a split; no component is taken, for a split has no seed."""

    ipo: IpoOptions = field(default_factory=IpoOptions)

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def ipo_after(self) -> IpoOptions:
        """See :attr:`MaskMethod.ipo_after`."""
        return self.ipo


@dataclass(frozen=True)
class SelfmentKmeans(_Split):
    """IPO from 2-means of the unit rows."""

    name: ClassVar[str] = "selfment-kmeans"

    def __post_init__(self) -> None:
        super().__post_init__()
        load_kmeans()  # a missing library is this call's error, not that of each image

    def mask(self, features: Inputs, image: int, grid: Grid) -> Mask:
        """See :meth:`MaskMethod.mask`."""
        return kmeans_split(self.rows(features)[image], grid)


@dataclass(frozen=True)
class SelfmentCls(_Split):
    """IPO from the patches whose cosine with the CLS token exceeds its mean over the patches."""

    name: ClassVar[str] = "selfment-cls"
    cls_token: ClassVar[str | None] = "CLS token"

    def mask(self, features: Inputs, image: int, grid: Grid) -> Mask:
        """See :meth:`MaskMethod.mask`."""
        assert isinstance(features, Attended)
        return cls_split(features.features[image], features.cls[image])


def kmeans_split(features: Tensor, grid: Grid) -> Mask:
    """Returns the foreground (N,) of 2-means of (N, d) rows, N >= 2; all where they are equal.

    The foreground is the cluster with fewer patches on the border of the grid; of equals the
    smaller one, then the one without the first patch. The clusters are scikit-learn's best of ten
    starts, which are always the same.
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
    """Returns the foreground (N,) of (N, d) rows: a cosine with ``cls`` (d,) above its mean."""
    cosine = unit(features) @ unit(cls[None])[0]
    return np.asarray((cosine > cosine.mean()).numpy())
