"""More than two parts: the spectral embedding of the patches, made discrete.

A patch is embedded as its row of the leading eigenvectors y of M = D^-1/2 A D^-1/2, the trivial one
included, scaled to norm 1 (Ng, Jordan and Weiss, 2001; Yu and Shi, 2003, scale rows of
x = D^-1/2 y, which is the same). Vectors of an eigenvalue of M <= 1e-6, with which no region gains
association, count as 0. There are fewer than k regions if the embedding has fewer distinct rows:
patches that are all equal are one region.
"""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..util.extras import load_extra
from . import ops as _ops
from . import options as params
from .arrays import Grid, as_features
from .graph import build, check_finite
from .ncut import eigenpairs
from .options import CutOptions
from .torch_state import SETTINGS

METHODS = ("kmeans", "rotation")

_STARTS = 10  # of k-means, of which the best is taken
NO_ASSOCIATION = 1e-6  # eigenvalues of M up to this are those of its null space, and rounding
_STALLED = 1e-12  # the relative gain at which the rotation has arrived

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def regions(
    features: Any,
    grid: Grid | None = None,
    *,
    k: int,
    method: str = "kmeans",
    vectors: int | None = None,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    seed: int = 0,
) -> Any:
    """Divides patches into up to k regions (k-way normalised cut), see the module.

    Args:
        features: (N, d) or (B, N, d) with ``grid=(h, w)``, or (B, d, h, w); see
            :func:`selfment.affinity`. The discretisation runs on the CPU.
        grid: (h, w), in patches.
        k: regions, 2 <= k <= N.
        method: "kmeans", the best of 10 starts of scikit-learn's, or "rotation", the discretisation
            of Yu and Shi: the indicator matrix nearest to the embedding up to a rotation, which is
            a local optimum, from a start that has no randomness.
        vectors: eigenvectors to embed with, the trivial one included, 2 <= vectors <= N; None takes
            k, which the rotation needs.
        tau: see :func:`selfment.affinity`.
        eps: see :func:`selfment.affinity`.
        graph: see :func:`selfment.affinity`.
        seed: the seed of the random starts of k-means.

    Returns:
        Region labels (B, h, w) int64, (h, w) for (N, d) features; numbered from 0 in the order in
        which regions appear, in reading order.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, grid, device or parameter, or features that are not finite.
        ImportError: the native module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph)
    params.choice("method", method, METHODS)
    params.require("k", k, "an integer >= 2", isinstance(k, Integral) and k >= 2)
    whole = isinstance(seed, Integral) and 0 <= seed < 2**32
    params.require("seed", seed, "an integer from 0 to 2^32 - 1", whole)
    checked = as_features(features, grid, needs_grid=True)
    assert checked.grid is not None
    n = checked.tensor.shape[1]
    count = _vector_count(k, vectors, method, n)
    labels = np.empty((len(checked.tensor), n), dtype=np.int64)
    with checked.array_type.stream():
        step = _ops.images_at_once(checked.tensor, cut.weighted)
        for first in range(0, len(labels), step):
            rows = checked.tensor[first : first + step].contiguous()
            for image, points in enumerate(_embed(rows, count, cut, first), first):
                parts = kmeans(points, k, seed) if method == "kmeans" else _rotation(points)
                labels[image] = _in_order(parts)
        tensor = torch.from_numpy(labels).to(checked.tensor.device)
        return checked.to_caller(tensor.reshape(-1, *checked.grid))


def _vector_count(k: int, vectors: int | None, method: str, n: int) -> int:
    """Returns how many eigenvectors to embed n patches with; raises ``ValueError``."""
    if k > n:
        raise ValueError(f"`k` must be <= N: got k = {k} for N = {n}")
    count = k if vectors is None else vectors
    whole = isinstance(count, Integral) and 2 <= count <= n
    params.require("vectors", vectors, f"None or an integer from 2 to N = {n}", whole)
    if method == "rotation" and count != k:
        raise ValueError(f"`vectors` must be k for the rotation: got {count} for k = {k}")
    return count


def _embed(rows: Tensor, count: int, cut: CutOptions, first: int) -> Array:
    """Returns (B, N, count) float64 rows of norm 1; the first column is the trivial vector's."""
    made = build(rows, cut, first=first)
    pairs = eigenpairs(made, count - 1)
    nontrivial = pairs.vectors * (pairs.values < 1 - NO_ASSOCIATION)[..., None]
    trivial = made.degree.sum(1).rsqrt()[:, None, None].expand(-1, 1, made.n)
    points = torch.cat([trivial, nontrivial], dim=1).transpose(1, 2)
    points = points / points.norm(dim=2, keepdim=True)
    bad = points.isnan().flatten().nonzero()  # on a CUDA device only: the CPU has raised
    check_finite(int(bad[0]) // count if len(bad) else -1, made.n, first)
    result: Array = points.cpu().numpy()
    return result


def load_kmeans() -> Any:
    """Returns scikit-learn's clusters; raises ``ImportError`` if they are missing."""
    return load_extra("sklearn.cluster", "scikit-learn", "methods", "k-means")


def kmeans(rows: NDArray[Any], k: int, seed: int = 0) -> NDArray[np.int32]:
    """Returns the cluster (N,) of each of the rows (N, d): scikit-learn's best of ten starts."""
    cluster = load_kmeans()
    # Both come with scikit-learn.
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # One thread, because the number of threads decides the order of the sums, and so the clusters.
    # That number and the filters of warnings belong to the process.
    with SETTINGS.held(), threadpool_limits(1), warnings.catch_warnings():
        # If fewer rows differ than there are clusters, some clusters are empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = cluster.KMeans(k, n_init=_STARTS, random_state=int(seed))
        clusters: NDArray[np.int32] = kmeans.fit_predict(rows)
    return clusters


def _rotation(points: Array) -> Labels:
    """Returns the part (N,) of each of the points (N, k) (Yu and Shi, 2003).

    Alternates between the indicator X nearest to points R, and the rotation R nearest to X, as
    long as the sum of the singular values of X^T points grows.
    """
    k = points.shape[1]
    # The first axis is the first patch; each next one the patch most nearly orthogonal to them.
    chosen, overlap = [0], np.zeros(len(points))
    while len(chosen) < k:
        overlap += np.abs(points @ points[chosen[-1]])
        chosen.append(int(overlap.argmin()))
    rotation = points[chosen].T
    best, labels = 0.0, np.zeros(len(points), dtype=np.int64)
    while True:
        parts = (points @ rotation).argmax(axis=1)
        u, s, vt = np.linalg.svd(np.eye(k)[parts].T @ points)
        if s.sum() <= best * (1 + _STALLED):
            return labels
        best, labels, rotation = s.sum(), parts, (u @ vt).T


def _in_order(labels: NDArray[Any]) -> Labels:
    """Returns the labels (N,) numbered from 0 by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    ordered: Labels = rank[inverse]
    return ordered
