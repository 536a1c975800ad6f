"""FOUND's background discovery (Siméoni et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..backbones import Attended
from ..core.arrays import Grid
from .base import Inputs, Mask, MaskMethod
from .selfmask import unit

_BACKGROUND = 0.3  # FOUND's least cosine with the reference patch


@dataclass(frozen=True)
class Found(MaskMethod):
    """FOUND's background discovery, without the 1 x 1 convolution that it trains on it."""

    name: ClassVar[str] = "found"
    cls_token: ClassVar[str | None] = "attention"

    def mask(self, features: Inputs, image: int, grid: Grid) -> Mask:
        """See :meth:`MaskMethod.mask`."""
        assert isinstance(features, Attended)
        rows, attention = features.features[image], features.attention[image]
        return foreground(rows, attention, by_head=features.by_head)


def foreground(features: Tensor, attention: Tensor, *, by_head: bool) -> Mask:
    """Returns the foreground (N,): patches whose cosine with the reference patch is <= 0.3.

    The reference is the patch that the CLS token attends to least, over the sum of the heads. Where
    the features (N, d) are those of the heads side by side (``by_head``), as keys are, heads and
    their features are weighted first: with q_h the share of patches to which head h attends more
    than the mean over all heads and patches, by log(sum q / q_h). The authors' weights are for
    keys; other features go without, which their code allows.

    ``attention``: (heads, N), of the CLS token in the last block.
    """
    heads = attention.detach().cpu().double()
    rows = features
    if by_head:
        share = (heads > heads.mean()).double().mean(dim=1) + 1e-10
        weights = (share.sum() / share).log()
        heads = heads * weights[:, None]
        parts = features.detach().cpu().double().unflatten(1, (len(heads), -1))
        rows = (parts * weights[:, None]).flatten(1)
    f = unit(rows)
    return np.asarray((f @ f[heads.sum(dim=0).argmin()] <= _BACKGROUND).numpy())
