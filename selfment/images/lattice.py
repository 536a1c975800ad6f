"""Lattices in the space of position and colour, as sparse matrices, for edge-aware filters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lattice:
    """A lattice of V vertices, and the weights of n points on them."""

    splat: Any  #: (V, n) sparse, the weight of each point at each vertex; its transpose slices
    links: tuple[Any, ...]  #: (V, V) sparse and symmetric, 1 between neighbours; one per direction

    def blurred(self, values: Floats) -> Floats:
        """Splats (n, ...) values, blurs them by 1 + links[j] / 2, for each j, and slices them."""
        at_vertices = self.splat @ values
        for link in self.links:
            at_vertices = at_vertices + 0.5 * (link @ at_vertices)
        sliced: Floats = self.splat.T @ at_vertices
        return sliced


def bilateral_grid(features: Floats) -> Lattice:
    """Returns a grid of unit cells whose vertices are the occupied cells.

    Each point has the weight 1 at its nearest cell. ``features`` are (n, d), in cells; there is one
    matrix of links per axis. Source: J. T. Barron, B. Poole, *The Fast Bilateral Solver*, 2016,
    section 3.
    """
    cells = np.rint(features).astype(np.int64)
    keys, vertex, strides = _vertices(cells, margin=1)
    n = len(cells)
    splat = sparse.csr_array((np.ones(n), (vertex, np.arange(n))), shape=(len(keys), n))
    return Lattice(splat, tuple(_links(keys, int(stride)) for stride in strides))


def permutohedral_lattice(features: Floats) -> Lattice:
    """Returns the permutohedral lattice: a point has barycentric weights at d + 1 vertices.

    ``features`` are (n, d), in standard deviations; there is one matrix of links for each of d + 1
    directions. :meth:`Lattice.blurred` is approximately proportional to the product with the (n, n)
    matrix of exp(-|f_i - f_j|^2 / 2). Source: A. Adams, J. Baek, M. A. Davis, *Fast
    High-Dimensional Filtering Using the Permutohedral Lattice*, 2010.
    """
    n, d = features.shape
    k = np.arange(d)
    # An orthogonal basis of the hyperplane in R^(d + 1) of coordinates that sum to 0. At this scale
    # splatting, blurring and slicing together have a variance of 1.
    basis = np.tri(d, d + 1).T - np.diag(k + 1.0, -1)[:, :d]
    basis *= math.sqrt(2 / 3) * (d + 1) / np.sqrt((k + 1) * (k + 2))
    points = features @ basis.T
    # First the nearest vertex of remainder 0, whose coordinates are multiples of d + 1, then the
    # simplex, which is given by the order of the coordinates' distances to that vertex.
    multiples = np.rint(points / (d + 1)).astype(np.int64)
    order = np.argsort(multiples * (d + 1) - points, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(d + 1)[None], axis=1)
    # Rounding may leave the hyperplane, which the next lines correct.
    rank += multiples.sum(1, keepdims=True)
    low, high = rank < 0, rank > d
    multiples += low.astype(np.int64) - high
    rank += (d + 1) * (low.astype(np.int64) - high)
    share = points / (d + 1) - multiples
    weights = np.empty((n, d + 1))
    by_rank = np.empty_like(share)
    np.put_along_axis(by_rank, rank, share, axis=1)
    weights[:, 1:] = by_rank[:, d - 1 :: -1] - by_rank[:, :0:-1]
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    # The vertex of remainder r adds r to each coordinate and subtracts d + 1 from the r coordinates
    # of highest rank. The last coordinate follows from the others.
    remainder = np.arange(d + 1)[:, None]
    corners = (multiples * (d + 1))[:, None] + remainder - (d + 1) * (rank[:, None] > d - remainder)
    keys, vertex, strides = _vertices(corners[..., :d].reshape(-1, d), margin=d + 1)
    columns = np.arange(n).repeat(d + 1)
    splat = sparse.csr_array((weights.ravel(), (vertex, columns)), shape=(len(keys), n))
    ones = int(strides.sum())
    steps = [ones - (d + 1) * int(stride) for stride in strides]
    return Lattice(splat, tuple(_links(keys, step) for step in (*steps, ones)))


def _vertices(coordinates: Integers, margin: int) -> tuple[Integers, Integers, Integers]:
    """Returns sorted keys of the distinct rows, the key index of each row, and key steps per axis.

    Steps of up to ``margin`` along any axes do not wrap around.
    """
    low = coordinates.min(0) - margin
    sides = coordinates.max(0) + margin + 1 - low
    if math.prod(map(int, sides)) >= 2**62:
        raise ValueError(
            "the standard deviations must be large enough for a lattice of 2^62 cells: "
            f"got {' x '.join(map(str, sides))}"
        )
    strides = np.cumprod([1, *sides[:-1]], dtype=np.int64)
    keys, vertex = np.unique((coordinates - low) @ strides, return_inverse=True)
    return keys, vertex, strides


def _links(keys: Integers, step: int) -> Any:
    """Returns a symmetric matrix with 1 between vertices whose keys differ by ``step``."""
    at = np.searchsorted(keys, keys + step).clip(max=len(keys) - 1)
    here = np.flatnonzero(keys[at] == keys + step)
    up = sparse.csr_array((np.ones(len(here)), (here, at[here])), shape=(len(keys),) * 2)
    return up + up.T
