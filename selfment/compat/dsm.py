"""Deep Spectral Segmentation's eigenvectors, masks and boxes (Melas-Kyriazi et al., CVPR 2022).

A program that calls scipy's ``eigsh`` on D - W, and their helpers, changes one line::

    from selfment.compat.dsm import box, eigs, knn_affinity, mask

``eigs`` replaces the part of ``extract_eigs`` between loading and saving, for the features of one
image; ``knn_affinity`` is theirs, without pymatting; ``mask`` is their single region; ``box`` is
their ``get_largest_cc_box`` with the patch size as an argument.

Features may be on the CPU or a CUDA device, which then computes the cut, except with colours. If
eigenvalues repeat, or the rule for the sign does not determine it, the vectors are one
deterministic choice. Row 0 is always the trivial pair unless no patch has an edge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import scipy.spatial
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core import options as params
from ..core.arrays import as_tensor
from ..core.graph import Graph, affinity
from ..core.ncut import ncut
from . import _shared as _cut
from ._shared import Array

_TAU = sys.float_info.min  # the least tau: every positive similarity is an edge
_NO_EDGE = 1e-30  # the least affinity that a graph may have; it is below rounding
_LEAST_DEGREE = 1e-12
_DENSE = 64  # up to so many patches LAPACK is faster
_REPEATED = 1e-9  # eigenvalues closer than this count as equal
_TOLERANCE = 1e-12

Pairs = tuple[Array, Array]  # (k,) eigenvalues, ascending, and (k, N) vectors


def eigs(
    feats: Any,
    K: int = 20,  # noqa: N803, the original name
    image_color_lambda: float = 0.0,
    image: Any = None,
) -> tuple[Tensor, Tensor]:
    """Returns the K smallest generalised eigenpairs of (D - W, D).

    W = max(cos, 0) / max + ``image_color_lambda`` * ``knn_affinity(image)``, without a threshold
    and with the diagonal. D are its row sums, with 1 in place of those below 1e-12, so that a patch
    without edges is an eigenvector of eigenvalue 1. x^T D x = 1. The entry of largest magnitude is
    made positive; then a vector is negated if the share of its positive entries is above 0.5 and
    below 1.

    Args:
        feats: (N, C) features without the CLS token, any float type, normalised or not.
        K: the number of pairs, including the trivial one, at most N.
        image_color_lambda: the weight of the colours, >= 0.
        image: (h, w, 3) colours of the patches, h * w = N, needed if the weight is > 0. The
            original code passes ``np.array(image.resize((w, h), Image.BILINEAR)) / 255``, in
            [0, 1]. Before February 2023 it divided by 255 once more, so that colours hardly
            mattered beside positions.

    Returns:
        Eigenvalues (K,), ascending, and eigenvectors (K, N), both float32 on the CPU; row 0 is the
        trivial pair: 0, and a constant.

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, K or weight, or features that are not finite.
        ImportError: the native module for the device is missing.
    """
    tensor, _ = as_tensor(feats, "feats")
    if tensor.ndim != 2 or len(tensor) == 0:
        raise ValueError(f"`feats` must be (N, C), N >= 1: got shape {tuple(tensor.shape)}")
    n = len(tensor)
    rows = _cut.from_rows(tensor, (1, n))
    params.require("K", K, f"an integer from 1 to N = {n}", isinstance(K, Integral) and 1 <= K <= n)
    weight = float(image_color_lambda)
    params.require("image_color_lambda", weight, "a finite number >= 0", 0 <= weight < np.inf)
    colour = scipy.sparse.csr_array((n, n))
    if weight > 0:
        colour = weight * _colours(image, n)
        rows = rows.cpu()
    values, vectors = _smallest_pairs(_scaled(rows), colour, K)
    share = (vectors > 0).mean(axis=1)
    vectors[(share > 0.5) & (share < 1)] *= -1
    return torch.from_numpy(values).float(), torch.from_numpy(vectors).float()


def _smallest_pairs(rows: Tensor, colour: scipy.sparse.csr_array, k: int) -> Pairs:
    """Returns the k smallest pairs; each patch without edges is a pair with the eigenvalue 1."""
    n = len(rows)
    graph = _graph(rows)
    degree = _degree(graph, colour)
    linked = np.flatnonzero(degree >= _LEAST_DEGREE)
    if 0 < len(linked) < n:
        graph = _graph(rows[torch.from_numpy(linked).to(rows.device)])
        colour = colour[linked][:, linked]
        degree = _degree(graph, colour)
    lone = np.setdiff1d(np.arange(n), linked)[:k]
    values, vectors = np.ones(len(lone)), np.zeros((len(lone), n))
    vectors[np.arange(len(lone)), lone] = 1
    if len(linked):
        linked_values, entries = _linked_pairs(graph, colour, degree, min(k, len(linked)))
        padded = np.zeros((len(linked_values), n))
        padded[:, linked] = entries
        values, vectors = np.append(linked_values, values), np.concatenate([padded, vectors])
    first = np.argsort(values, kind="stable")[:k]
    return values[first], vectors[first]


def knn_affinity(
    image: Any,
    n_neighbors: Sequence[int] = (20, 10),
    distance_weights: Sequence[float] = (2.0, 0.1),
) -> scipy.sparse.csr_matrix:
    """Returns the colour affinity: how often two patches are nearest neighbours of each other.

    For each number k of neighbours and weight w, every patch i selects the k patches j nearest to
    it, itself included, in (r, g, b, w*x, w*y), Euclidean and in float32, with x and y from 0 to 1.
    Each selection adds 1 to the entries (i, j) and (j, i). Which of equally distant patches are
    selected depends on the k-d tree, as in the original. After KNN matting (Chen, Li and Tang,
    TPAMI 2013).

    Args:
        image: (h, w, 3) colours, not scaled here.
        n_neighbors: numbers of neighbours, each from 1 to h * w.
        distance_weights: equally many weights of the position.

    Returns:
        (h * w, h * w) float64, symmetric.

    Raises:
        TypeError: a wrong kind of array.
        ValueError: a wrong shape or number of neighbours, or colours that are not finite.
    """
    tensor, _ = as_tensor(image, "image")
    if tensor.ndim != 3 or tensor.shape[2] != 3 or tensor.numel() == 0:
        raise ValueError(f"`image` must be (h, w, 3): got shape {tuple(tensor.shape)}")
    h, w, _ = tensor.shape
    n = h * w
    colours = tensor.cpu().double().numpy().reshape(n, 3)
    if not np.isfinite(colours).all():
        raise ValueError("`image` must be finite: got NaN or infinity")
    for k in n_neighbors:
        whole = isinstance(k, Integral) and 1 <= k <= n
        params.require("n_neighbors", k, f"integers from 1 to h * w = {n}", whole)
    if len(n_neighbors) != len(distance_weights):
        raise ValueError(
            "`distance_weights` must be as many as `n_neighbors`: "
            f"got {len(distance_weights)} for {len(n_neighbors)}"
        )
    y, x = np.meshgrid(np.linspace(0, 1, h), np.linspace(0, 1, w), indexing="ij")
    places = np.stack([x.ravel(), y.ravel()], axis=1)
    selected = scipy.sparse.csr_matrix((n, n))
    for k, weight in zip(n_neighbors, distance_weights, strict=True):
        points = np.concatenate([colours, weight * places], axis=1).astype(np.float32)
        nearest = scipy.spatial.cKDTree(points).query(points, k=np.arange(1, k + 1))[1]
        ends = np.arange(0, n * k + 1, k)
        selected += scipy.sparse.csr_matrix((np.ones(n * k), nearest.ravel(), ends), (n, n))
    return (selected + selected.T).tocsr()


def mask(eigenvectors: Any, dims: Any) -> NDArray[np.bool_]:
    """Returns the foreground (h, w) bool: the first nontrivial eigenvector of (K, h*w) is positive.

    Raises ``TypeError`` for a wrong kind of array, ``ValueError`` for a wrong shape.
    """
    tensor, _ = as_tensor(eigenvectors, "eigenvectors")
    h, w = _cut.as_dims(dims)
    if tensor.ndim != 2 or len(tensor) < 2 or tensor.shape[1] != h * w:
        raise ValueError(
            f"`eigenvectors` must be (K, h*w), here (K, {h * w}) with K >= 2: "
            f"got shape {tuple(tensor.shape)}"
        )
    foreground: NDArray[np.bool_] = (tensor[1] > 0).cpu().numpy().reshape(h, w)
    return foreground


def box(mask: Any, patch_size: int = 1) -> list[int]:
    """Returns the box of the largest 8-connected component, the first of equally large ones.

    Args:
        mask: (h, w), nonzero in the foreground. An empty mask counts as full, as in the original.
        patch_size: the side of a patch in pixels.

    Returns:
        [x1, y1, x2, y2] in pixels, x2 and y2 exclusive.

    Raises:
        TypeError: a wrong kind of array.
        ValueError: a wrong shape or patch size.
    """
    tensor, _ = as_tensor(mask, "mask")
    if tensor.ndim != 2 or tensor.numel() == 0:
        raise ValueError(f"`mask` must be (h, w): got shape {tuple(tensor.shape)}")
    whole = isinstance(patch_size, Integral) and patch_size >= 1
    params.require("patch_size", patch_size, "an integer >= 1", whole)
    foreground = (tensor != 0).cpu().numpy()
    if not foreground.any():
        foreground = ~foreground
    labels, _ = scipy.ndimage.label(foreground, structure=np.ones((3, 3)))
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = np.nonzero(labels == largest)
    corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return [int(patch_size * corner) for corner in corners]


def _colours(image: Any, n: int) -> scipy.sparse.csr_array:
    """Checks the image of n patches, and returns its colour affinity."""
    if image is None:
        raise ValueError("`image` is needed with image_color_lambda > 0: got None")
    colour = scipy.sparse.csr_array(knn_affinity(image))
    if colour.shape[0] != n:
        raise ValueError(
            f"`image` must have a pixel for each of {n} patches: got {colour.shape[0]}"
        )
    return colour


def _scaled(rows: Tensor) -> Tensor:
    """Scales the rows so that one has norm 1 after normalisation, and the largest entry of W is 1.

    This changes only rows whose norms are all below 1e-12, at which the normalisation is clamped.
    """
    longest = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).max().item()
    return rows.double() * (1e-12 / longest) if 0 < longest < 1e-12 else rows


def _graph(rows: Tensor) -> Graph:
    return affinity(rows, tau=_TAU, eps=_NO_EDGE, graph="weighted")


def _degree(graph: Graph, colour: scipy.sparse.csr_array) -> Array:
    degree: Array = graph.degrees.cpu().numpy() + colour.sum(axis=1)
    return degree


def _linked_pairs(graph: Graph, colour: scipy.sparse.csr_array, degree: Array, k: int) -> Pairs:
    """Returns the k smallest pairs of a graph in which every patch has an edge."""
    values, vectors = np.empty(0), np.empty((0, graph.n))
    if k > 1 and colour.nnz == 0:
        values, vectors = (result.cpu().numpy() for result in ncut(graph, k=k - 1))
        vectors = vectors.T
    elif k > 1:
        values, vectors = _with_colours(graph, colour, degree, k - 1)
    constant = np.full((1, graph.n), degree.sum() ** -0.5)
    # Eigenvalues are negative by rounding only; clamped, the trivial pair is first among equals.
    return np.append(0.0, np.maximum(values, 0)), np.concatenate([constant, vectors])


def _with_colours(graph: Graph, colour: scipy.sparse.csr_array, degree: Array, k: int) -> Pairs:
    """Returns the k < N smallest nontrivial pairs, from the largest of D^-1/2 W D^-1/2."""
    n = graph.n
    scale = degree**-0.5
    trivial = 1 / scale / np.sqrt(degree.sum())
    if n <= _DENSE:
        dense = graph.to_dense().numpy() + colour.toarray()
        dense = scale[:, None] * dense * scale - 3 * np.outer(trivial, trivial)
        theta, y = scipy.linalg.eigh(dense, subset_by_index=[n - k, n - 1])
        return _oriented(theta, y, scale)
    start = np.random.default_rng(0).standard_normal(n)

    def largest(known: Array, count: int) -> Pairs:
        """Returns the ``count`` largest pairs orthogonal to ``known``, whose theta moves by -3."""

        def product(y: Array) -> Array:
            x = scale * y.ravel()
            wx = graph.matvec(x) + colour @ x
            moved: Array = scale * wx - 3 * (known @ (known.T @ y.ravel()))
            return moved

        operator = scipy.sparse.linalg.LinearOperator((n, n), product, dtype=np.float64)
        theta, y = scipy.sparse.linalg.eigsh(operator, count, which="LA", v0=start, tol=_TOLERANCE)
        return theta, y

    theta, y = largest(trivial[:, None], k)
    # A Krylov space contains one vector of a repeated eigenvalue; the others are orthogonal to it.
    while k + 1 < n:
        missed, more = largest(np.column_stack([trivial, y]), 1)
        if missed[0] <= theta.min() + _REPEATED:
            break
        drop = theta.argmin()
        theta[drop], y[:, drop] = missed[0], more[:, 0]
    return _oriented(theta, y, scale)


def _oriented(theta: Array, y: Array, scale: Array) -> Pairs:
    """Converts (theta, y) to ascending (lambda, x), with the peak of each vector positive."""
    order = np.argsort(-theta, kind="stable")
    x = (scale[:, None] * y).T[order]
    peaks = [row[_cut.first_peak(np.abs(row))] for row in x]
    return 1 - theta[order], x * np.sign(peaks)[:, None]
