"""Pseudo-labels from patch features: graph, cut, initial mask and IPO on the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import Grid, as_features
from .graph import Graph, build, thresholds
from .ipo import run_ipo
from .ncut import Eigenpairs, eigenpairs
from .options import CutOptions, IpoOptions
from .summary import Summarized

MAPS = ("mask", "ncut_mask", "fiedler")  # fields of all patches


@dataclass(frozen=True, eq=False, repr=False)
class PseudoLabels(Summarized):
    """The labels of B images of h x w patches, in the caller's type of array.

    There is no axis B if the features had none. For the labels of other methods than
    :func:`pseudo_label` see :class:`selfment.methods.Method`.
    """

    mask: Any  #: (B, h, w) bool, the label: the foreground after IPO
    ncut_mask: Any  #: (B, h, w) bool, the initial mask: the seed's component, before IPO
    fiedler: Any  #: (B, h, w) float32, the Fiedler vector x, x^T D x = 1, x > 0 where |x| peaks
    eigenvalue: Any  #: (B,) float64, lambda of (D - A) x = lambda D x: the Ncut value, relaxed
    gap: Any  #: (B,) float64, to the next eigenvalue; small means an ambiguous cut
    residual: Any  #: (B,) float64, |M y - theta y| of the unit vector y = D^1/2 x
    seed: Any  #: (B,) int64, flat index of the seed patch
    lanczos_iters: Any  #: (B,) int64, products with the graph that the eigenvector took
    ipo_iters: Any  #: (B,) int64, IPO steps taken, the one that changed nothing included
    separation: Any  #: (B,) float64, distance of the mean unit rows of the two classes after IPO
    confidence: Any  #: (B,) float64 in [0, 1], see :func:`selfment.core.confidence.confidence`
    rejected: Any  #: (B,) bool, True if that is below ``min_confidence``, and so the mask empty
    tau: Any  #: (B,) float64, the threshold on similarities


def pseudo_label(
    features: Any,
    grid: Grid | None = None,
    *,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    orient: str = "seed",
    ipo_iters: int = params.IPO_ITERS,
    ipo_min_count: int = params.IPO_MIN_COUNT,
    min_confidence: float = 0.0,
) -> PseudoLabels:
    """Labels images from their patch features: affinity graph, normalised cut, initial mask, IPO.

    Args:
        features: patch features, (N, d) or (B, N, d) with ``grid``, or (B, d, h, w); float16,
            bfloat16, float32 or float64; torch, numpy or DLPack (cupy, jax), on the CPU or a CUDA
            device, where the labels then are.
        grid: (h, w) with h * w == N, the patches in row-major order.
        tau: the threshold on the similarity of two patches, or "auto", see
            :func:`selfment.affinity`.
        eps: the affinity of two patches without an edge, in [1e-30, 1).
        graph: "binary" or "weighted", see :func:`selfment.affinity`.
        orient: which side of the cut is the foreground. "seed": the side with the patch of largest
            |x| (TokenCut). "corners": the other side, if at least three corners of the grid lie in
            the first (MaskCut), for features that do not mark objects by themselves.
        ipo_iters: IPO steps at most; 0 leaves the initial mask.
        ipo_min_count: IPO stops while a side has fewer patches than this.
        min_confidence: an image whose ``confidence`` is below this is ``rejected``: it counts as
            one without an object, and ``mask`` is empty. All else stays the same. 0 rejects none;
            0.25 is recommended if images may show nothing.

    Returns:
        The labels and the numbers of the cut, in the caller's type of array; without B for (N, d)
        features. The same features have the same labels, alone or in a batch, on any number of
        threads. A single patch is all foreground, with eigenvalue 0. ``gap`` is between
        eigenvalues that the iteration has met: it may have met one copy of a repeated eigenvalue.

    On a CUDA device the work is queued on the current stream of torch, or of cupy for its arrays,
    and nothing waits for it; it can be captured in a CUDA graph. Features that are not finite are
    then no error: their image has NaN for eigenvalue, gap, residual, separation, confidence and
    Fiedler vector, empty masks and no iterations; the labels of other images do not change.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, grid, device or parameter, or, on the CPU, features that are not
            finite.
        ImportError: the module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    return label_features(features, grid, cut, ipo, min_confidence)


def label_features(
    features: Any,
    grid: Grid | None,
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float = 0.0,
) -> PseudoLabels:
    """Returns what :func:`pseudo_label` returns, and raises what it raises."""
    options = to_operator(cut, ipo, min_confidence)
    checked = as_features(features, grid, needs_grid=True)
    assert checked.grid is not None
    with checked.array_type.stream():
        values = _pseudo_label(checked.tensor, *checked.grid, *options)
        return PseudoLabels(*(checked.to_caller(value) for value in values))


#: The last arguments of the torch operators that label, as :func:`to_operator` makes them.
OPTIONS_SCHEMA = (
    "float? tau, float eps, str graph, str orient, SymInt ipo_iters, SymInt ipo_min_count, "
    "float min_confidence=0.0"
)


def to_operator(cut: CutOptions, ipo: IpoOptions, min_confidence: float) -> tuple[Any, ...]:
    """Returns the options as a torch operator takes them; raises ``ValueError``."""
    orient = params.choice("orient", cut.orient, params.ORIENTS)
    least = params.check_min_confidence(min_confidence)
    return cut.threshold, cut.eps, cut.graph, orient, ipo.iters, ipo.min_count, least


def from_operator(
    tau: float | None,
    eps: float,
    graph: str,
    orient: str,
    ipo_iters: int,
    ipo_min_count: int,
    min_confidence: float = 0.0,
) -> tuple[CutOptions, IpoOptions, float]:
    """Returns the options that :func:`to_operator` got.

    Args:
        tau: the threshold on similarities; None stands for "auto".
        eps: the affinity without an edge.
        graph: "binary" or "weighted".
        orient: "seed" or "corners".
        ipo_iters: IPO steps at most.
        ipo_min_count: IPO stops while a side has fewer patches than this.
        min_confidence: the least confidence of a label that is kept.
    """
    cut = CutOptions.from_operator(tau, eps, graph, orient)
    return cut, IpoOptions(iters=ipo_iters, min_count=ipo_min_count), min_confidence


def _pseudo_label_impl(features: Tensor, h: int, w: int, *options: Any) -> tuple[Tensor, ...]:
    """Returns the fields of :class:`PseudoLabels` for (B, N, d) features."""
    cut, ipo, min_confidence = from_operator(*options)
    parts = []
    first = 0
    for rows in features.split(_ops.images_at_once(features, cut.weighted)):
        labels = label_rows(rows.contiguous(), [(h, w)], cut, ipo, min_confidence, first=first)
        maps = {name: labels[name].unflatten(1, (h, w)) for name in MAPS}
        parts.append(tuple((labels | maps)[field.name] for field in fields(PseudoLabels)))
        first += len(rows)
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def _pseudo_label_fake(features: Tensor, h: int, w: int, *_: Any) -> tuple[Tensor, ...]:
    batch = features.shape[0]
    maps = (torch.bool, torch.bool, torch.float32)
    numbers = (*[torch.float64] * 3, *[torch.int64] * 3, *[torch.float64] * 2)
    numbers += (torch.bool, torch.float64)
    return (
        *(features.new_empty((batch, h, w), dtype=dtype) for dtype in maps),
        *(features.new_empty(batch, dtype=dtype) for dtype in numbers),
    )


_pseudo_label = _ops.register(
    f"pseudo_label(Tensor features, SymInt h, SymInt w, {OPTIONS_SCHEMA}) -> "
    f"({', '.join(f'Tensor {field.name}' for field in fields(PseudoLabels))})",
    _pseudo_label_impl,
    _pseudo_label_fake,
)


def label_rows(
    rows: Tensor,
    grids: Sequence[Grid],
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float,
    *,
    first: int = 0,
) -> dict[str, Tensor]:
    """Labels checked, contiguous (B, N, d) rows; returns the fields of the labels, maps as (B, N).

    Besides the fields of :class:`PseudoLabels` there are the ``peaks`` (B, frames).

    Args:
        rows: (B, N, d) features.
        grids: (h, w) of an image, or of each of the frames whose patches an image consists of.
        cut: the options of the cut.
        ipo: the options of IPO.
        min_confidence: the least confidence of a label that is kept.
        first: the first image's number, for errors.
    """
    if _ops.labels_in_one_call(rows):
        taus = thresholds(rows, cut.tau)
        return _ops.label(rows, taus, grids, cut, ipo, min_confidence) | {"tau": taus}
    frames = [h * w for h, w in grids]
    graph = build(rows, cut, first=first, frames=frames if len(grids) > 1 else ())
    pairs = _cut(graph)
    x = pairs.vectors[:, 0].contiguous()
    mask, seed, peaks = _ops.components(x, grids, cut.corners)
    label, steps, separation = run_ipo(rows, mask, ipo, first=first)
    sure, rejected, kept, vectors = _ops.finish(
        pairs.values, pairs.gaps, pairs.vectors, separation, label, grids, min_confidence
    )
    return {
        "mask": kept,
        "ncut_mask": mask,
        "fiedler": vectors,
        "eigenvalue": pairs.values[:, 0],
        "gap": pairs.gaps[:, 0],
        "residual": pairs.residuals[:, 0],
        "seed": seed,
        "lanczos_iters": pairs.iterations,
        "ipo_iters": steps,
        "separation": separation,
        "confidence": sure,
        "rejected": rejected,
        "tau": graph.taus,
        "peaks": peaks,
    }


def _cut(graph: Graph) -> Eigenpairs:
    """Returns the Fiedler pair; for a single patch, which has none, the trivial pair."""
    if graph.n > 1:
        return eigenpairs(graph, 1)
    zero = graph.degree - graph.degree  # NaN where the patch is not finite
    none = torch.zeros_like(zero[:, 0], dtype=torch.int64)
    vectors = graph.degree.rsqrt()[:, None]
    return Eigenpairs(zero, vectors, zero + torch.inf, zero.clone(), none)
