"""The normalised cut: eigenpairs of the affinity graph, and the initial mask."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _native
from . import _params as params
from ._arrays import Grid, as_features
from .graph import Graph, affinity

_CONVERGED = 1e-8  # a residual above this is not what the solver aims at


@dataclass(frozen=True)
class Eigenpairs:
    """k nontrivial pairs of (D - A) x = lambda D x for each of B images."""

    values: Tensor  #: (B, k) float64, ascending
    vectors: Tensor  #: (B, k, N) float64, x^T D x = 1, positive where |x| peaks
    gaps: Tensor  #: (B, k) float64, distance to the nearest other eigenvalue that was found
    residuals: Tensor  #: (B, k) float64, |M y - theta y| of the unit vector y = D^1/2 x
    iterations: Tensor  #: (B,) int64, products with the graph


def ncut(
    features: Any,
    *,
    k: int = 1,
    tau: float = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
) -> tuple[Any, Any]:
    """The k smallest nontrivial eigenpairs of (D - A) x = lambda D x (Shi and Malik, 2000).

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w), as for :func:`selfment.affinity`; or a
            :class:`~selfment.graph.Graph`, whose tau, eps and mode then hold.
        k: the number of pairs, below N. The trivial one (0, a constant) is not counted.
        tau: see :func:`selfment.affinity`.
        eps: see :func:`selfment.affinity`.
        graph: see :func:`selfment.affinity`.

    Returns:
        Eigenvalues (B, k), ascending, and eigenvectors (B, N, k) with x^T D x = 1 and the entry of
        largest magnitude positive, both float64; without B for (N, d) features. The vectors of a
        repeated eigenvalue are one deterministic choice among many. A ``RuntimeWarning`` says so
        when pairs have not converged after 4000 products with the graph.

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, device or parameter, or features that are not finite.
    """
    if isinstance(features, Graph):
        params.check_k(k, features.n)
        A = features
    else:
        params.check_k(k, as_features(features).tensor.shape[1])
        A = affinity(features, tau=tau, eps=eps, graph=graph)
    pairs = eigenpairs(A, k)
    return A.give(pairs.values), A.give(pairs.vectors.transpose(1, 2).contiguous())


def eigenpairs(graph: Graph, k: int) -> Eigenpairs:
    """The k < N smallest nontrivial pairs of the graph, with what is known of their accuracy."""
    batch = len(graph.degree)
    pairs = Eigenpairs(
        values=torch.empty((batch, k), dtype=torch.float64),
        vectors=torch.empty((batch, k, graph.n), dtype=torch.float64),
        gaps=torch.empty((batch, k), dtype=torch.float64),
        residuals=torch.empty((batch, k), dtype=torch.float64),
        iterations=torch.empty(batch, dtype=torch.int64),
    )
    _native.cpu().fiedler(
        bits=graph.bits.data_ptr(),
        weights=graph.weights,
        degrees=graph.degree.data_ptr(),
        batch=batch,
        n=graph.n,
        eps=graph.eps,
        k=k,
        eigenvalues=pairs.values.data_ptr(),
        vectors=pairs.vectors.data_ptr(),
        gaps=pairs.gaps.data_ptr(),
        residuals=pairs.residuals.data_ptr(),
        iterations=pairs.iterations.data_ptr(),
        threads=_native.threads(),
    )
    worst = pairs.residuals.max().item()
    if worst > _CONVERGED:
        warnings.warn(
            f"the eigenvectors have not converged: the largest residual is {worst:.0e}",
            RuntimeWarning,
            stacklevel=3,
        )
    return pairs


def initial_mask(fiedler: Tensor, grid: Grid, orient: str) -> tuple[Tensor, Tensor]:
    """The initial masks (B, N) bool and seeds (B,) int64 of Fiedler vectors (B, N) float64.

    The side x > mean(x) that holds the seed, the first peak of |x|; of it the seed's 4-connected
    component (TokenCut). With ``orient="corners"`` the other side, if three grid corners or more
    lie in the first (MaskCut); its seed is the patch deepest in it.
    """
    fiedler = fiedler.contiguous()
    mask = torch.empty(fiedler.shape, dtype=torch.bool)
    seed = torch.empty(len(fiedler), dtype=torch.int64)
    _native.cpu().components(
        fiedler=fiedler.data_ptr(),
        batch=len(fiedler),
        h=grid[0],
        w=grid[1],
        corners=orient == "corners",
        mask=mask.data_ptr(),
        seed=seed.data_ptr(),
        threads=_native.threads(),
    )
    return mask, seed
