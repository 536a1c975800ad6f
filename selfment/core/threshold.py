"""The automatic threshold on similarities: Otsu's, on a sample of an image's patches."""

from __future__ import annotations

import torch
from torch import Tensor

from . import ops as _ops
from .arrays import check_data, check_dense

SAMPLE = 128  # patches at most, evenly spaced in row-major order


def auto_tau(rows: Tensor) -> Tensor:
    """Returns the (B,) float64 thresholds of (B, N, d) features, each from its own image alone.

    Patches i N // m for i < m = min(N, 128) are normalised in float64 and rounded to multiples of
    2^-26, so that their inner products are exact in whatever order they are summed. The threshold
    is the edge between two of 256 bins of [-1, 1] that maximises the between-class variance of the
    similarities of all pairs i < j (N. Otsu, *A threshold selection method from gray-level
    histograms*, 1979), and 1 / 128 at least, as an edge joins similar patches. If several edges
    are equally good, it is their mean: the middle of an empty valley.
    """
    check_dense(rows, "features")
    check_data(rows, "features")
    m = min(rows.shape[1], SAMPLE)
    parts = [_similarities(part, m) for part in rows.split(_ops.samples_at_once(rows, m))]
    return _ops.threshold(parts[0] if len(parts) == 1 else torch.cat(parts))


def _similarities(rows: Tensor, m: int) -> Tensor:
    """Returns the (B, m, m) float64 inner products of m sampled unit rows."""
    n, device = rows.shape[1], rows.device
    sample = rows[:, torch.arange(m, device=device) * n // m].double()
    unit = sample / sample.norm(dim=2, keepdim=True).clamp(min=1e-12)
    unit = (unit * 2**26).round() / 2**26
    products: Tensor = unit @ unit.transpose(1, 2)
    return products
