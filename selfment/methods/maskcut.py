"""MaskCut's three rounds (Wang et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core.arrays import Grid
from ..core.graph import Graph, make_graph
from ..core.label import PseudoLabels, label_features
from ..core.ncut import eigenpairs, initial_mask
from ..core.options import NO_IPO, CutOptions
from .base import Inputs, Method, with_mask

_CUT = CutOptions(tau=0.15, orient="seed")
_ROUNDS = 3


@dataclass(frozen=True)
class MaskCut(Method):
    """MaskCut at its defaults, tau = 0.15 and three rounds: the union of their masks.

    A mask of all salient objects is compared with the union. The initial mask is that of the first
    round, MaskCut's setting for a single object. Each round cuts the features that earlier masks
    have painted over with zeros. From the second round on a mask is emptied if its intersection
    over union with the one before is > 0.5, or if it covers 1 % of the grid or less.
    """

    name: ClassVar[str] = "maskcut"

    def label(self, features: Inputs, grid: Grid) -> PseudoLabels:
        """See :meth:`Method.label`."""
        rows = self.rows(features)
        labels = label_features(rows, grid, _CUT, NO_IPO)
        graph = make_graph(rows, _CUT)
        if graph.n == 1:
            return with_mask(labels, rows, labels.mask)
        mask, seed, x = _round(graph, grid)
        labels = replace(
            labels,
            ncut_mask=mask.unflatten(1, grid),
            seed=seed,
            fiedler=x.float().unflatten(1, grid),
        )
        union = mask
        for _ in range(_ROUNDS - 1):
            graph = graph.paint(mask)
            last, mask = mask, _round(graph, grid)[0]
            overlap, either = (mask & last).sum(dim=1), (mask | last).sum(dim=1)
            void = (2 * overlap > either) | (100 * mask.sum(dim=1) <= mask.shape[1])
            mask = mask & ~void[:, None]
            union = union | mask
        return with_mask(labels, rows, union.unflatten(1, grid))


def _round(graph: Graph, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the masks (B, N) of one round, their seeds (B,) and the vectors (B, N), as LAPACK's.

    MaskCut asks the side x > mean(x) for its corners. Where x is negative at the peak of |x|, that
    is the side without the seed, which MaskCut leaves in any case.
    """
    x = eigenpairs(graph, 1, sign="lapack").vectors[:, 0]
    mask, seed = initial_mask(x, grid, "seed")
    other, other_seed = initial_mask(x, grid, "corners")
    positive = x.gather(1, seed[:, None]) > 0
    return torch.where(positive, other, mask), torch.where(positive[:, 0], other_seed, seed), x
