"""The patch affinity graph: one bit for each pair of patches, never an N x N matrix of floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import TORCH, ArrayType, as_features, as_tensor, check_device
from .options import CutOptions
from .summary import Summarized
from .threshold import auto_tau


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Summarized):
    """The affinity matrices A of B images of N patches, as :func:`affinity` makes them.

    Binary: A = eps 11^T + (1 - eps) E, where E is one bit for each pair. Weighted: a float32 for
    each edge besides.
    """

    eps: float
    n: int  #: N
    bits: Tensor  #: (B, words * rows) int64; the layout is in csrc/params.h
    weights: Any  #: the twin's edge weights, None in binary mode
    degree: Tensor  #: (B, N) float64, as a tensor
    taus: Tensor  #: (B,) float64, the thresholds on similarities, as a tensor
    batched: bool = field(default=True, repr=False)  #: True if results have the axis B
    #: the type of array of the results
    array_type: ArrayType = field(default=TORCH, repr=False)

    @property
    def degrees(self) -> Any:
        """(B, N) float64, the row sums of A; (N,) for (N, d) features."""
        return self.to_caller(self.degree)

    @property
    def nbytes(self) -> int:
        """The bytes of the graph's tensors."""
        weights = 0 if self.weights is None else self.weights.nbytes
        return self.bits.nbytes + self.degree.nbytes + weights

    def matvec(self, x: Any) -> Any:
        """Returns A x in float64, for x (B, N) or (B, N, m); without B for (N, d) features.

        Raises ``ValueError`` for another shape, or a device that is not the graph's.
        """
        vectors, array_type = as_tensor(x, "x")
        rows = tuple(self.degree.shape) if self.batched else (self.n,)
        if vectors.shape[: len(rows)] != rows or vectors.ndim > len(rows) + 1:
            raise ValueError(
                f"`x` must be {rows} or ({', '.join(map(str, rows))}, m) for this graph: "
                f"got {tuple(vectors.shape)}"
            )
        check_device(vectors, "x", self.degree.device, "the graph")
        with array_type.stream():
            columns = vectors.reshape(len(self.degree), self.n, -1).transpose(1, 2)
            columns = columns.to(torch.float64).contiguous()
            product = _ops.matvec(self.bits, self.weights, self.n, self.eps, columns)
            return array_type.from_tensor(product.transpose(1, 2).reshape(vectors.shape))

    def paint(self, mask: Any) -> Graph:
        """Returns the graph of the same features with zeros for some patches, equal to the bit.

        No features are needed: the edges of those patches are dropped, those to themselves
        included, or all added if tau < 0. This graph does not change.

        Args:
            mask: the patches, (B, N) or (B, h, w), without B for (N, d) features; bool or a number
                type, where any number but 0 means True; on the graph's device.

        On a CUDA device nothing waits for the work. Raises ``TypeError`` for a wrong kind of array
        and ``ValueError`` for another shape or device.
        """
        painted, array_type = as_tensor(mask, "mask")
        lead = (len(self.degree),) if self.batched else ()
        own = tuple(painted.shape)[len(lead) :]
        if painted.shape[: len(lead)] != lead or len(own) not in (1, 2) or prod(own) != self.n:
            axes = f"{lead[0]}, " if lead else ""
            raise ValueError(
                f"`mask` must be ({axes}{self.n}{'' if axes else ','}), or ({axes}h, w) with "
                f"h*w == {self.n}, for this graph: got {tuple(painted.shape)}"
            )
        check_device(painted, "mask", self.degree.device, "the graph")
        with array_type.stream():
            rows = painted.reshape(self.degree.shape).bool().contiguous()
            bits, degree, weights = _ops.paint(
                self.bits, self.weights, self.degree, self.n, self.eps, self.taus, rows
            )
            return replace(self, bits=bits, degree=degree, weights=weights)

    def to_dense(self) -> Any:
        """Returns A, (B, N, N) float64; (N, N) for (N, d) features. For inspection: it is large."""
        with self.array_type.stream():
            eye = torch.eye(self.n, dtype=torch.float64, device=self.degree.device)
            plain = replace(self, batched=True, array_type=TORCH)
            return self.to_caller(plain.matvec(eye.expand(len(self.degree), -1, -1)))

    def to_caller(self, result: Tensor) -> Any:
        """Returns a (B, ...) result as the caller's type, without B for (N, d) features."""
        return self.array_type.from_tensor(result if self.batched else result[0])


def affinity(
    features: Any,
    *,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
) -> Graph:
    """Returns the affinity graph of patch features.

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w) in float16, bfloat16, float32 or float64; torch,
            numpy or DLPack (cupy, jax), on the CPU or a CUDA device, where the results then are.
            Rows are normalised in float64 and rounded to float32.
        tau: the threshold on the similarity, the float64 inner product of two such rows; or "auto",
            one for each image from a sample of its similarities, see
            :func:`selfment.core.threshold.auto_tau`.
        eps: A where there is no edge, in [1e-30, 1).
        graph: "binary", A = 1 where the similarity is > tau (TokenCut, and Selfment's code), or
            "weighted", A = the similarity where it is >= tau (Selfment's equation 1).

    On a CUDA device the work is queued on the current stream of torch, or of cupy for its arrays,
    and nothing waits for it. Patches that are not finite then have the degree NaN.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, device or parameter, or, on the CPU, features that are not
            finite.
        ImportError: the module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    return make_graph(features, CutOptions(tau=tau, eps=eps, graph=graph))


def make_graph(features: Any, cut: CutOptions) -> Graph:
    """Returns what :func:`affinity` returns, and raises what it raises."""
    checked = as_features(features)
    with checked.array_type.stream():
        made = build(checked.tensor.contiguous(), cut)
    return replace(made, batched=checked.batched, array_type=checked.array_type)


def build(rows: Tensor, cut: CutOptions, *, first: int = 0, frames: Sequence[int] = ()) -> Graph:
    """Returns the graph of checked, contiguous (B, N, d) rows.

    For errors: ``first`` is the first image's number, and ``frames`` are the numbers of patches of
    the frames that share a single graph.
    """
    n = rows.shape[1]
    taus = thresholds(rows, cut.tau)
    bits, degree, weights, bad = _ops.affinity(rows, taus, cut.eps, cut.weighted)
    check_finite(bad, n, first, frames)
    return Graph(cut.eps, n, bits, weights, degree, taus)


def thresholds(rows: Tensor, tau: float | str) -> Tensor:
    """Returns the (B,) float64 thresholds of checked (B, N, d) rows."""
    if isinstance(tau, str):
        return auto_tau(rows)
    return rows.new_full((len(rows),), tau, dtype=torch.float64)


def check_finite(bad: int, n: int, first: int, frames: Sequence[int] = ()) -> None:
    """Raises ``ValueError`` if a native operation found a ``bad`` row, >= 0, of the features."""
    if bad >= 0:
        image, patch = divmod(bad, n)
        for size in frames:
            if patch < size:
                break
            image, patch = image + 1, patch - size
        raise ValueError(
            f"`features` must be finite, and so must their norms: got NaN, infinity or an overflow "
            f"in patch {patch} of image {first + image}"
        )
