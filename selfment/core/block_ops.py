"""The native operation that joins landmarks with features block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ops import dtype_code
from .options import CutOptions
from .twins import twin_of


@dataclass(frozen=True)
class LandmarkSums:
    """Sums that m landmarks have gathered from all blocks of rows so far; see ``landmarks``."""

    sums: Tensor  #: (c, m) float64, of the rows' vectors over the edges of each landmark
    edges: Tensor  #: (m,) int64, the edges of each landmark
    totals: Tensor  #: (c,) float64, of the rows' vectors over all rows

    @classmethod
    def zeros(cls, columns: int, m: int, device: torch.device) -> LandmarkSums:
        """Returns the sums before the first block."""
        sums = torch.zeros((columns, m), dtype=torch.float64, device=device)
        edges = torch.zeros(m, dtype=torch.int64, device=device)
        return cls(sums, edges, torch.zeros(columns, dtype=torch.float64, device=device))


def landmarks(
    rows: Tensor,
    landmark_rows: Tensor,
    cut: CutOptions,
    x: Tensor | None,
    means: Tensor,
    gathered: LandmarkSums,
) -> int:
    """Joins a block of rows with the landmarks; the edges are not kept.

    Returns the first row that is not finite, or -1. A CUDA device is not waited for: there the
    means of such a row are NaN, and -1 is returned.

    Args:
        rows: (n, d) features, as :class:`selfment.core.blocks.Blocks` yields them.
        landmark_rows: (m, d) features of the landmarks, finite and contiguous, of the same dtype
            and device, as the tensors below.
        cut: the options of the cut, whose ``tau`` is a number.
        x: (c, m) float64, contiguous, vectors of the landmarks; or None.
        means: (c, n) float64, whose last axis is contiguous: out, the mean of each row's landmarks
            in ``x``, weighed by the affinity; or in, if there is no ``x``.
        gathered: the rows' part is added to it.
    """
    twin = twin_of(rows.device)
    sizes = {
        "dtype": dtype_code(twin.native, rows.dtype),
        "n": len(rows),
        "m": len(landmark_rows),
        "d": rows.shape[1],
    }
    bad = twin.run(
        "landmarks",
        sizes,
        features=rows,
        landmarks=landmark_rows,
        **sizes,
        tau=cut.tau,
        eps=cut.eps,
        x=0 if x is None else x,
        columns=len(means),
        stride=means.stride(0),
        means=means,
        sums=gathered.sums,
        edges=gathered.edges,
        totals=gathered.totals,
    )
    return -1 if bad is None else int(bad)
