"""Pseudo-labels from patch features: graph, cut, initial mask and IPO on the native kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _native
from . import _params as params
from ._arrays import Features, Grid, as_features
from .graph import Graph, build
from .optimization import refine
from .spectral import Eigenpairs, eigenpairs, initial_mask

_SCRATCH = 16 << 20  # bytes of graphs, and of copied features, in flight


@dataclass(frozen=True)
class PseudoLabels:
    """What :func:`pseudo_label` finds, B images of h x w patches, in the caller's kind of array.

    There is no axis B where the features had none.
    """

    mask: Any  #: (B, h, w) bool, the label: the foreground after IPO
    ncut_mask: Any  #: (B, h, w) bool, the initial mask: the seed's component, before IPO
    fiedler: Any  #: (B, h, w) float32, the Fiedler vector x, x^T D x = 1, x > 0 where |x| peaks
    eigenvalue: Any  #: (B,) float64, lambda of (D - A) x = lambda D x: the Ncut value, relaxed
    gap: Any  #: (B,) float64, to the next eigenvalue found; small means an ambiguous cut
    residual: Any  #: (B,) float64, |M y - theta y| of the unit vector y = D^1/2 x
    seed: Any  #: (B,) int64, flat index of the seed patch
    lanczos_iters: Any  #: (B,) int64, products with the graph that the eigenvector took
    ipo_iters: Any  #: (B,) int64, IPO steps taken, the one that changed nothing included


def pseudo_label(
    features: Any,
    grid: Grid | None = None,
    *,
    tau: float = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    orient: str = "seed",
    ipo_iters: int = params.IPO_ITERS,
    ipo_min_count: int = params.IPO_MIN_COUNT,
) -> PseudoLabels:
    """Selfment's pseudo-labels: affinity graph, normalised cut, initial mask, IPO.

    Args:
        features: patch features, (N, d) or (B, N, d) with ``grid``, or (B, d, h, w); float16,
            bfloat16, float32 or float64; torch, numpy or DLPack, on the CPU.
        grid: (h, w) with h * w == N, the patches in row-major order.
        tau: the threshold on the similarity of two patches.
        eps: the affinity below it, in [1e-30, 1).
        graph: "binary" or "weighted", see :func:`selfment.affinity`.
        orient: which side of the cut is the foreground. "seed": the one with the patch of largest
            |x| (TokenCut). "corners": the other one, if at least three corners of the grid lie in
            that (MaskCut), for features that do not mark objects by themselves.
        ipo_iters: IPO steps at most; 0 leaves the initial mask.
        ipo_min_count: IPO stops while a side has fewer patches than this.

    Returns:
        The labels and what is known of the cut, in the caller's kind of array; without B for
        (N, d) features. The same features give the same labels, alone or in a batch, on any number
        of threads. A single patch is all foreground, with eigenvalue 0.
        ``gap`` is between eigenvalues that the iteration has met: of a repeated one that may be a
        single copy.

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, grid, device or parameter, or features that are not finite.
    """
    params.check_graph(tau, eps, graph)
    params.check_ipo(ipo_iters, ipo_min_count)
    params.choice("orient", orient, params.ORIENTS)
    given = as_features(features, grid, needs_grid=True)
    assert given.grid is not None
    fields: dict[str, list[Tensor]] = {name: [] for name in PseudoLabels.__dataclass_fields__}
    first = 0
    for rows in given.chunks(_images_at_once(given, graph)):
        pairs = _cut(build(rows, tau, eps, graph, first=first))
        x = pairs.vectors[:, 0]
        mask, seed = initial_mask(x, given.grid, orient)
        label, steps = refine(rows, mask, ipo_iters, ipo_min_count, first=first)
        found = {
            "mask": label.unflatten(1, given.grid),
            "ncut_mask": mask.unflatten(1, given.grid),
            "fiedler": x.float().unflatten(1, given.grid),
            "eigenvalue": pairs.values[:, 0],
            "gap": pairs.gaps[:, 0],
            "residual": pairs.residuals[:, 0],
            "seed": seed,
            "lanczos_iters": pairs.iterations,
            "ipo_iters": steps,
        }
        for name, value in found.items():
            fields[name].append(value)
        first += len(rows)
    return PseudoLabels(**{name: given.give(torch.cat(parts)) for name, parts in fields.items()})


def _images_at_once(given: Features, graph: str) -> int:
    """Enough images to keep the threads busy, and few enough to bound the memory they take."""
    n, d = given.tensor.shape[1:]
    copied = 0 if given.tensor.is_contiguous() else n * d * given.tensor.element_size()
    weights = n * n if graph == "weighted" else 0  # a float for half of the pairs i <= j
    bytes_each = n * n // 8 + weights + copied + 1
    threads = _native.threads()
    return max(1, min(8 * threads, max(_SCRATCH, threads * _SCRATCH // 8) // bytes_each))


def _cut(graph: Graph) -> Eigenpairs:
    """The Fiedler pair. A single patch has none: the trivial one stands in."""
    if graph.n > 1:
        return eigenpairs(graph, 1)
    zero = torch.zeros_like(graph.degree)
    none = torch.zeros(len(zero), dtype=torch.int64)
    return Eigenpairs(zero, graph.degree.rsqrt()[:, None], zero + torch.inf, zero, none)
