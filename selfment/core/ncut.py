"""The normalised cut: eigenpairs of the affinity graph, and the initial mask."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import Grid, as_features
from .graph import Graph, build
from .options import CutOptions

_CONVERGED = 1e-8  # the solver aims at residuals below this


@dataclass(frozen=True)
class Eigenpairs:
    """k nontrivial pairs of (D - A) x = lambda D x for each of B images."""

    values: Tensor  #: (B, k) float64, ascending
    vectors: Tensor  #: (B, k, N) float64, x^T D x = 1
    gaps: Tensor  #: (B, k) float64, distance to the nearest other eigenvalue that was computed
    residuals: Tensor  #: (B, k) float64, |M y - theta y| of the unit vector y = D^1/2 x
    iterations: Tensor  #: (B,) int64, products with the graph


def ncut(
    features: Any,
    *,
    k: int = 1,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    sign: str = "peak",
) -> tuple[Any, Any]:
    """Returns the k smallest nontrivial eigenpairs of (D - A) x = lambda D x (Shi and Malik, 2000).

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w), as for :func:`selfment.affinity`; or a
            :class:`~selfment.core.graph.Graph`, whose tau, eps and mode are then used.
        k: the number of pairs, below N. The trivial one (0, a constant) is not counted.
        tau: see :func:`selfment.affinity`.
        eps: see :func:`selfment.affinity`.
        graph: see :func:`selfment.affinity`.
        sign: "peak": the entry of largest magnitude of each vector is positive; or "lapack": each
            vector has the sign that it has from ``scipy.linalg.eigh(D - A, D,
            subset_by_index=...)``.

    Returns:
        Eigenvalues (B, k), ascending, and eigenvectors (B, N, k) with x^T D x = 1, both float64;
        without B for (N, d) features. The vectors of a repeated eigenvalue are one deterministic
        choice among many. On the CPU, a ``RuntimeWarning`` says that pairs have not converged after
        4000 products with the graph. On a CUDA device, where a check would have to wait, see the
        residual of :func:`selfment.pseudo_label`; NaN marks an image that is not finite.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, device or parameter, or, on the CPU, features that are not
            finite.
        ImportError: the module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    params.choice("sign", sign, params.SIGNS)
    if isinstance(features, Graph):
        params.check_k(k, features.n)
        with features.array_type.stream():
            values, vectors = _of_graph(features, int(k), sign)
            return features.to_caller(values), features.to_caller(vectors)
    cut = CutOptions(tau=tau, eps=eps, graph=graph)
    checked = as_features(features)
    params.check_k(k, checked.tensor.shape[1])
    with checked.array_type.stream():
        values, vectors = _ncut(checked.tensor, int(k), cut.threshold, cut.eps, cut.graph, sign)
        return checked.to_caller(values), checked.to_caller(vectors)


def _of_graph(graph: Graph, k: int, sign: str) -> tuple[Tensor, Tensor]:
    pairs = eigenpairs(graph, k, sign)
    return pairs.values, pairs.vectors.transpose(1, 2).contiguous()


def _ncut_impl(
    features: Tensor, k: int, tau: float | None, eps: float, graph: str, sign: str
) -> tuple[Tensor, Tensor]:
    cut = CutOptions.from_operator(tau, eps, graph)
    return _of_graph(build(features.contiguous(), cut), k, sign)


def _ncut_fake(
    features: Tensor, k: int, tau: float | None, eps: float, graph: str, sign: str
) -> tuple[Tensor, Tensor]:
    batch, n, _ = features.shape
    values = features.new_empty((batch, k), dtype=torch.float64)
    return values, features.new_empty((batch, n, k), dtype=torch.float64)


_ncut = _ops.register(
    "ncut(Tensor features, SymInt k, float? tau, float eps, str graph, str sign) "
    "-> (Tensor eigenvalues, Tensor eigenvectors)",
    _ncut_impl,
    _ncut_fake,
)


def eigenpairs(graph: Graph, k: int, sign: str = "peak") -> Eigenpairs:
    """Returns the k < N smallest nontrivial pairs of the graph, with their gaps and residuals."""
    pairs = Eigenpairs(
        *_ops.fiedler(graph.bits, graph.weights, graph.degree, graph.n, graph.eps, k, sign)
    )
    if not pairs.residuals.is_cuda:
        worst = pairs.residuals.max().item()
        if worst > _CONVERGED:
            warnings.warn(
                f"the eigenvectors have not converged: the largest residual is {worst:.0e}",
                RuntimeWarning,
                stacklevel=outside(),
            )
    return pairs


def outside() -> int:
    """Returns the level of the stack, as `warnings.warn` counts, at which selfment was called.

    torch's dispatcher lies between functions of this package.
    """
    level, frame = 1, sys._getframe(1)
    inside = (__name__.partition(".")[0], "torch")
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        level, frame = level + 1, frame.f_back
    return level


def initial_mask(fiedler: Tensor, grid: Grid, orient: str) -> tuple[Tensor, Tensor]:
    """Returns the initial masks (B, N) bool and seeds (B,) int64 of (B, N) float64 Fiedler vectors.

    The side is that of x > mean(x) and its complement which contains the seed, the first peak of
    |x|; the mask is the seed's 4-connected component in it (TokenCut). With ``orient="corners"`` it
    is the other side, if three grid corners or more lie in the first (MaskCut); its seed is the
    patch deepest in it.
    """
    return _ops.components(fiedler.contiguous(), [grid], orient == "corners")[:2]
