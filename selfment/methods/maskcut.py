"""MaskCut's three rounds (Wang et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.arrays import Grid
from ..core.graph import Graph, affinity
from ..core.label import PseudoLabels, pseudo_label
from ..core.ncut import eigenpairs, initial_mask
from .masks import with_mask

_MASKCUT_TAU, _ROUNDS = 0.15, 3


def maskcut(features: Tensor, grid: Grid) -> PseudoLabels:
    """MaskCut's labels of (B, N, d) features: the union of three rounds.

    Each cuts the features that earlier masks have painted over with zeros. From the second on a
    mask is emptied if its intersection over union with the one before is > 0.5, or if it covers 1 %
    of the grid or less.
    """
    labels = pseudo_label(features, grid, tau=_MASKCUT_TAU, ipo_iters=0)
    graph = affinity(features, tau=_MASKCUT_TAU)
    if graph.n == 1:
        return with_mask(labels, features, labels.mask)
    mask, seed, x = _maskcut_round(graph, grid)
    labels = replace(
        labels,
        ncut_mask=mask.unflatten(1, grid),
        seed=seed,
        fiedler=x.float().unflatten(1, grid),
    )
    union = mask
    for _ in range(_ROUNDS - 1):
        graph = graph.paint(mask)
        last, mask = mask, _maskcut_round(graph, grid)[0]
        overlap, either = (mask & last).sum(dim=1), (mask | last).sum(dim=1)
        void = (2 * overlap > either) | (100 * mask.sum(dim=1) <= mask.shape[1])
        mask = mask & ~void[:, None]
        union = union | mask
    return with_mask(labels, features, union.unflatten(1, grid))


def _maskcut_round(graph: Graph, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The masks (B, N) of one round, their seeds (B,) and the vectors (B, N), as LAPACK's.

    MaskCut asks the side x > mean(x) for its corners. Where x is negative at the peak of |x|, that
    is the side without the seed, which it leaves in any case.
    """
    x = eigenpairs(graph, 1, sign="lapack").vectors[:, 0]
    mask, seed = initial_mask(x, grid, "seed")
    other, other_seed = initial_mask(x, grid, "corners")
    positive = x.gather(1, seed[:, None]) > 0
    return torch.where(positive, other, mask), torch.where(positive[:, 0], other_seed, seed), x
