"""Deep Spectral Methods (Melas-Kyriazi et al., CVPR 2022)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..core.arrays import Grid
from ..core.label import PseudoLabels, label_features
from ..core.options import NO_IPO, CutOptions
from .base import Inputs, Method, with_mask

# With edges down to the smallest tau, and so small an eps, A is max(cosine, 0).
_CUT = CutOptions(tau=sys.float_info.min, eps=1e-30, graph="weighted", orient="seed")


@dataclass(frozen=True)
class Dsm(Method):
    """Deep Spectral Methods without colour affinities, their default.

    The foreground is where the first nontrivial generalised eigenvector of the cosine graph without
    negative weights is > 0. The vector is negated if it is positive for more than half of the
    patches but not for all.
    """

    name: ClassVar[str] = "dsm"

    def label(self, features: Inputs, grid: Grid) -> PseudoLabels:
        """See :meth:`Method.label`."""
        rows = self.rows(features)
        labels = label_features(rows, grid, _CUT, NO_IPO)
        # A patch without edges, even to itself, has an entry of 0; with eps it would have a mean.
        empty = (rows == 0).all(dim=-1).unflatten(1, grid)
        x = labels.fiedler.masked_fill(empty & (rows.shape[1] > 1), 0)
        share = (x > 0).flatten(1).double().mean(dim=1)
        x = torch.where(((share > 0.5) & (share < 1))[:, None, None], -x, x)
        labels = replace(labels, ncut_mask=x > 0, fiedler=x, seed=torch.full_like(labels.seed, -1))
        return with_mask(labels, rows, x > 0)
