"""The automatic threshold on similarities: Otsu's, on a sample of an image's patches."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arrays import check_data, check_dense

SAMPLE = 128  # patches at most, evenly spaced in row-major order
BINS = 256  # of [-1, 1]


def auto_tau(rows: Tensor) -> Tensor:
    """(B,) float64 thresholds of (B, N, d) features, each of its own image alone.

    Patches i N // m for i < m = min(N, 128) are normalised in float64 and rounded to multiples of
    2^-26, so that their inner products are exact in whatever order they are summed. The threshold
    is the edge between two of 256 bins of [-1, 1] that maximises the between-class variance of the
    similarities of all pairs i < j (N. Otsu, *A threshold selection method from gray-level
    histograms*, 1979), and 1 / 128 at least, as an edge joins similar patches. Where several edges
    are as good, it is their mean: the middle of an empty valley.
    """
    check_dense(rows, "features")
    check_data(rows, "features")
    return torch.stack([_otsu(_similarities(image)) for image in rows])


def _similarities(rows: Tensor) -> Tensor:
    """(m (m - 1) / 2,) float64 inner products of the sampled unit rows."""
    n, device = len(rows), rows.device
    m = min(n, SAMPLE)
    sample = rows[torch.arange(m, device=device) * n // m].double()
    unit = sample / sample.norm(dim=1, keepdim=True).clamp(min=1e-12)
    unit = (unit * 2**26).round() / 2**26
    i, j = torch.triu_indices(m, m, 1, device=device)
    products: Tensor = unit @ unit.T
    return products[i, j]


def _otsu(values: Tensor) -> Tensor:
    """The threshold, a scalar. Nothing here waits for a device; what is not finite is in a bin."""
    bins = ((values + 1) * (BINS // 2)).floor().long().clamp(0, BINS - 1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=values.device)
    counts = counts.scatter_add(0, bins, torch.ones_like(bins))
    number = torch.arange(BINS, device=values.device)
    # Of the bins below each edge: how many values, and the sum of their bins' numbers; integers.
    below, sums = counts.cumsum(0).double(), (counts * number).cumsum(0).double()
    total, whole = below[-1], sums[-1]
    difference = sums * total - below * whole
    variance = difference * difference / (below * (total - below)).clamp(min=1)
    edges = (number[:-1].double() + 1) * (2 / BINS) - 1
    best = variance[:-1] == variance[:-1].amax()
    return ((edges * best).sum() / best.sum()).clamp(min=2 / BINS)
