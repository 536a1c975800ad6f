"""Deep Spectral Methods (Melas-Kyriazi et al., CVPR 2022)."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.arrays import Grid
from ..core.label import PseudoLabels, pseudo_label
from .masks import with_mask


def dsm(features: Tensor, grid: Grid) -> PseudoLabels:
    """Deep Spectral Methods' labels of (B, N, d) features."""
    # Without edges below the smallest tau, and so small an eps, A is max(cosine, 0).
    graph: dict[str, Any] = {"tau": sys.float_info.min, "eps": 1e-30, "graph": "weighted"}
    labels = pseudo_label(features, grid, **graph, ipo_iters=0)
    # A patch without edges, even to itself, has an entry of 0; with eps it would have a mean.
    empty = (features == 0).all(dim=-1).unflatten(1, grid)
    x = labels.fiedler.masked_fill(empty & (features.shape[1] > 1), 0)
    share = (x > 0).flatten(1).double().mean(dim=1)
    x = torch.where(((share > 0.5) & (share < 1))[:, None, None], -x, x)
    labels = replace(labels, ncut_mask=x > 0, fiedler=x, seed=torch.full_like(labels.seed, -1))
    return with_mask(labels, features, x > 0)
