"""Selfment in plain torch: dense, float64, and slow; the oracle of the tests and benchmarks.

It reads top to bottom in the order of the method: affinity graph, normalised cut, initial mask,
IPO. The functions have the signatures of the fast ones in :mod:`selfment`, and compute image by
image.

Source: You, Wu, Jiang, *Learning Accurate Segmentation Purely from Self-Supervision*, ECCV 2026;
the initial mask is TokenCut's (Wang et al., CVPR 2022), the corner rule MaskCut's (Wang et al.,
CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from . import options as params
from .arrays import Grid, as_features, as_tensor
from .confidence import confidence
from .frames import as_frames
from .joint import JointLabels, to_caller
from .label import PseudoLabels
from .landmarks import CHECKED, VECTORS, side_margin, stratified
from .options import CutOptions, IpoOptions
from .threshold import auto_tau


def normalize(features: Tensor) -> Tensor:
    """Returns rows of (N, d) features with norm 1, computed in float64 and rounded to float32."""
    rows = features.double()
    norms: Tensor = rows.norm(dim=1, keepdim=True)
    return (rows / norms.clamp(min=1e-12)).float()


def affinity(
    features: Any,
    *,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
) -> Any:
    """Returns the dense affinity matrix A, (B, N, N) float64; (N, N) for (N, d) features.

    Binary: 1 where the similarity is > tau. Weighted: the similarity where it is >= tau.
    Elsewhere eps.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph)
    checked = as_features(features, devices=None)
    return checked.to_caller(torch.stack([_affinity(f, cut)[0] for f in checked.tensor]))


def ncut(
    features: Any,
    *,
    k: int = 1,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
) -> tuple[Any, Any]:
    """Returns the k smallest nontrivial pairs of (D - A) x = lambda D x: (B, k) and (B, N, k).

    They are float64, with x^T D x = 1; the entry of largest magnitude of x is positive.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph)
    checked = as_features(features, devices=None)
    params.check_k(k, checked.tensor.shape[1])
    pairs = [_eigenpairs(_affinity(f, cut)[0]) for f in checked.tensor]
    values = torch.stack([values[1 : k + 1] for values, _ in pairs])
    vectors = torch.stack([_signed(vectors[:, 1 : k + 1]) for _, vectors in pairs])
    return checked.to_caller(values), checked.to_caller(vectors)


def ipo(
    features: Any,
    labels: Any,
    *,
    iters: int = params.IPO_ITERS,
    min_count: int = params.IPO_MIN_COUNT,
) -> Any:
    """Runs Iterative Patch Optimization on (B, N) labels in {0, 1}; shape and dtype stay."""
    options = IpoOptions(iters=iters, min_count=min_count)
    checked = as_features(features, devices=None)
    start, array_type = as_tensor(labels, "labels")
    batch = start.reshape(checked.tensor.shape[:2]).bool()
    result = torch.stack(
        [_ipo(f, label, options)[0] for f, label in zip(checked.tensor, batch, strict=True)]
    )
    return array_type.from_tensor(result.reshape(start.shape).to(start.dtype))


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
    """Labels images as the fast function does.

    Args:
        features: see :func:`selfment.pseudo_label`.
        grid: see there.
        tau: see there.
        eps: see there.
        graph: see there.
        orient: see there.
        ipo_iters: see there.
        ipo_min_count: see there.
        min_confidence: see there.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    options = cut, ipo, params.check_min_confidence(min_confidence)
    checked = as_features(features, grid, needs_grid=True, devices=None)
    assert checked.grid is not None
    images = [_label(f, [checked.grid], *options) for f in checked.tensor]
    names = [field.name for field in fields(PseudoLabels)]
    stacked = {name: torch.stack([image[name] for image in images]) for name in names}
    for name in ("mask", "ncut_mask", "fiedler"):
        stacked[name] = stacked[name].unflatten(1, checked.grid)
    return PseudoLabels(**{name: checked.to_caller(values) for name, values in stacked.items()})


def joint_label(
    features: Any,
    grid: Grid | Sequence[Grid] | None = None,
    *,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    orient: str = "seed",
    ipo_iters: int = params.IPO_ITERS,
    ipo_min_count: int = params.IPO_MIN_COUNT,
    min_confidence: float = 0.0,
    landmarks: int | None = None,
    landmark_seed: int = 0,
) -> JointLabels:
    """Labels frames by one cut as the fast function does.

    Args:
        features: see :func:`selfment.joint_label`.
        grid: see there.
        tau: see there.
        eps: see there.
        graph: see there.
        orient: see there.
        ipo_iters: see there.
        ipo_min_count: see there.
        min_confidence: see there.
        landmarks: see there.
        landmark_seed: see there.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    options = cut, ipo, params.check_min_confidence(min_confidence)
    checked, grids = as_frames(features, grid, devices=None)
    f = checked.tensor.flatten(0, 1)
    if landmarks is None or landmarks >= len(f):
        labels = _label(f, grids, *options)
    else:
        labels = _landmark_label(f, grids, landmarks, landmark_seed, *options)
    return to_caller(checked.array_type, checked.batched, grids, labels)


def _label(
    f: Tensor, grids: Sequence[Grid], cut: CutOptions, ipo: IpoOptions, min_confidence: float
) -> dict[str, Tensor]:
    """Returns the fields of the labels of (N, d) features; maps are (N,), N over all grids."""
    graph, threshold = _affinity(f, cut)
    values, vectors = _eigenpairs(graph)
    # A single patch has no second pair: the trivial one stands in, and all of it is foreground.
    index = min(1, len(values) - 1)
    gap = values[2] - values[1] if len(values) > 2 else values.new_tensor(torch.inf)
    pair = _signed(vectors[:, index : index + 1])[:, 0], values[index], gap
    return {
        **_finished(f, pair, grids, cut, ipo, min_confidence),
        "residual": values.new_tensor(0.0),
        "tau": values.new_tensor(threshold),
    }


def _finished(
    f: Tensor,
    pair: tuple[Tensor, Tensor, Tensor],
    grids: Sequence[Grid],
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float,
) -> dict[str, Tensor]:
    """Returns the fields of the labels but ``residual`` and ``tau``.

    Args:
        f: (N, d) features.
        pair: the Fiedler vector (N,), its eigenvalue and its gap.
        grids: (h, w) of each frame.
        cut: the options of the cut.
        ipo: the options of IPO.
        min_confidence: the least confidence of a label that is kept.
    """
    x, value, gap = pair
    ncut_mask, seed, peaks = _initial_masks(x, grids, cut.corners)
    mask, steps = _ipo(f, ncut_mask, ipo)
    separation = _separation(f, mask)
    sure = confidence(value[None], gap[None], separation[None], mask[None], grids)[0]
    return {
        "mask": mask & (sure >= min_confidence),
        "ncut_mask": ncut_mask,
        "fiedler": x.float(),
        "eigenvalue": value,
        "gap": gap,
        "seed": seed,
        "lanczos_iters": torch.zeros_like(seed),
        "ipo_iters": torch.full_like(seed, steps),
        "separation": separation,
        "confidence": sure,
        "rejected": sure < min_confidence,
        "peaks": peaks,
    }


def _landmark_label(
    f: Tensor,
    grids: Sequence[Grid],
    m: int,
    seed: int,
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float,
) -> dict[str, Tensor]:
    """Returns the fields of the labels of (N, d) features by m landmarks; see `landmarks`.

    Args:
        f: (N, d) features.
        grids: (h, w) of each frame.
        m: landmarks, 2 <= m < N.
        seed: the seed of the random numbers.
        cut: the options of the cut.
        ipo: the options of IPO.
        min_confidence: the least confidence of a label that is kept.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = stratified(grids, m, generator)
    sample = torch.randperm(len(f), generator=generator)[:CHECKED]
    A, threshold = _affinity(f, cut)
    _, vectors = _eigenpairs(A[chosen][:, chosen])
    means = A[:, chosen] @ vectors[:, 1 : 1 + VECTORS] / A[:, chosen].sum(1, keepdim=True)
    x, theta = _combination(means, A[chosen], chosen)
    gap = theta[0] - theta[1] if len(theta) > 1 else theta.new_tensor(0.0)
    degree, product, own = A[sample].sum(1), A[sample] @ x, x[sample]
    square = (degree * own * own).sum()
    value = own @ product / square
    residual = ((product - value * degree * own).square() / degree).sum().div(square).sqrt()
    changed = (product / degree > value * x.mean()) != (own > x.mean())
    weight = A[chosen].sum(1)
    pair = torch.stack([means[chosen, 0], x[chosen]])
    pair = (pair - (pair @ weight / weight.sum())[:, None]) * weight.sqrt()
    cosine = torch.nn.functional.normalize(pair).prod(dim=0).sum().abs()
    return {
        **_finished(f, (x, 1 - theta[0], gap), grids, cut, ipo, min_confidence),
        "residual": residual,
        "tau": x.new_tensor(threshold),
        "landmarks": chosen,
        "angle": (residual / gap).clamp(max=1).asin().rad2deg(),
        "turn": cosine.clamp(max=1).acos().rad2deg(),
        "changing": changed.double().mean(),
        "side_margin": x.new_tensor(side_margin(x, x > x.mean(), grids, cut.corners)),
    }


def _combination(means: Tensor, rows: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the vector (N,) in the span of 1 and ``means`` (N, k), and all nontrivial thetas.

    ``rows``: (m, N), those of A of the ``chosen`` patches.
    """
    v = torch.cat([torch.ones_like(means[:, :1]), means], dim=1)
    mass = v[chosen].T @ (rows.sum(1, keepdim=True) * v[chosen])
    stiff = v[chosen].T @ rows @ v
    half = torch.linalg.inv(torch.linalg.cholesky(mass))
    theta, turn = torch.linalg.eigh(half @ (stiff + stiff.T) @ half.T / 2)
    x = v @ (half.T @ turn.flip(1)[:, 1:2]) * (len(rows) / len(v)) ** 0.5
    return _signed(x)[:, 0], theta.flip(0)[1:]


def _affinity(features: Tensor, cut: CutOptions) -> tuple[Tensor, float]:
    """Returns the matrix A (N, N) of (N, d) features, and the threshold on similarities."""
    tau = auto_tau(features[None]).item() if isinstance(cut.tau, str) else cut.tau
    f = normalize(features).double()
    s = f @ f.T
    if cut.weighted:
        return torch.where(s >= tau, s, cut.eps), tau
    return (s > tau).double().clamp(min=cut.eps), tau


def _eigenpairs(A: Tensor) -> tuple[Tensor, Tensor]:
    """Returns all pairs of (D - A) x = lambda D x, ascending, with x^T D x = 1."""
    scale = A.sum(dim=1).rsqrt()
    M = scale[:, None] * A * scale
    theta, y = torch.linalg.eigh(M)
    return 1 - theta.flip(0), scale[:, None] * y.flip(1)


def _signed(vectors: Tensor) -> Tensor:
    """(N, k) vectors, the entry of largest magnitude made positive (the first among equals)."""
    peaks = torch.tensor([_first_peak(x.abs()) for x in vectors.T], device=vectors.device)
    sign = vectors.gather(0, peaks[None]).sign()
    return vectors * torch.where(sign == 0, 1, sign)


def _first_peak(values: Tensor) -> Tensor:
    """Returns the index of the maximum: the first of values equal up to rounding."""
    peak = values.max()
    return (values >= peak - params.SEED_TIE * peak.abs()).int().argmax()


def _initial_mask(x: Tensor, grid: Grid, orient: str) -> tuple[Tensor, Tensor]:
    """Returns the initial mask (h, w) and the seed, by TokenCut's rule or MaskCut's corner rule."""
    mask, seed, _ = _initial_masks(x, [grid], orient == "corners")
    return mask.reshape(grid), seed


def _initial_masks(
    x: Tensor, grids: Sequence[Grid], corner_rule: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the initial masks (N,) of F frames that share x (N,), the seed, and the peaks (F,).

    The side and its seed are chosen among all patches. A frame keeps the component of the seed, or,
    if the seed is in another frame, the component of its own patch that is deepest in the side.
    """
    side = x > x.mean()
    seed = _first_peak(x.abs())
    if not side[seed]:
        side, x = ~side, -x
    frames = zip(side.split([h * w for h, w in grids]), grids, strict=True)
    corners = [part.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() for part, grid in frames]
    if corner_rule and sum(corners) >= 3 * len(grids) and not side.all():
        side, x = ~side, -x
        seed = _first_peak(x)
    masks, peaks, first = [], [], 0
    for h, w in grids:
        part, depth = side[first : first + h * w], x[first : first + h * w]
        peak = int(seed) - first
        if not 0 <= peak < h * w:
            peak = int(_first_peak(depth.where(part, -torch.inf))) if part.any() else -1
        masks.append(_component(part.reshape(h, w), peak).flatten() if peak >= 0 else part)
        peaks.append(peak)
        first += h * w
    return torch.cat(masks), seed, seed.new_tensor(peaks)


def _component(side: Tensor, seed: int) -> Tensor:
    """Returns the 4-connected component of ``side`` (h, w) with the flat index ``seed``."""
    h, w = side.shape
    component = torch.zeros_like(side)
    stack = [divmod(seed, w)]
    while stack:
        row, col = stack.pop()
        if 0 <= row < h and 0 <= col < w and side[row, col] and not component[row, col]:
            component[row, col] = True
            stack += [(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)]
    return component


def _separation(features: Tensor, label: Tensor) -> Tensor:
    """Returns the distance of the class means of the unit rows; 0 if a class is empty."""
    f = normalize(features).double()
    if label.all() or not label.any():
        return f.new_tensor(0.0)
    distance: Tensor = (f[label].mean(0) - f[~label].mean(0)).norm()
    return distance


def _ipo(features: Tensor, label: Tensor, options: IpoOptions) -> tuple[Tensor, int]:
    """Returns the final labels (N,) bool and the number of steps taken."""
    f = normalize(features).double()
    if label.all() or not label.any():
        return label, 0
    reference = f[label].mean(0) - f[~label].mean(0)
    for step in range(options.iters):
        foreground = int(label.sum())
        if min(foreground, len(label) - foreground) < options.min_count:
            return label, step
        previous = label
        label = f @ (f[label].mean(0) - f[~label].mean(0)) > params.IPO_TIE
        if label.all() or not label.any():
            return label, step + 1
        if (f[label].mean(0) - f[~label].mean(0)) @ reference < 0:
            label = ~label
        # The step is a function of the labels alone: a repeat is the fixed point.
        if torch.equal(label, previous):
            return label, step + 1
    return label, options.iters
