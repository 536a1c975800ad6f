"""The patch affinity graph: one bit for a pair of patches, and never an N x N matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import _native
from . import _params as params
from ._arrays import Restore, as_features, as_tensor


def _as_it_is(result: Tensor) -> Tensor:
    return result


@dataclass(frozen=True, eq=False)
class Graph:
    """The affinity matrices A of B images of N patches, as :func:`affinity` makes them.

    Binary: A = eps 11^T + (1 - eps) E, where E is one bit for each pair. Weighted: a float32 for
    each edge besides.
    """

    eps: float
    n: int  #: N
    bits: Tensor  #: (B, words * rows) int64; the layout is in csrc/params.h
    weights: Any  #: the native edge weights, None in binary mode
    degree: Tensor  #: (B, N) float64, as a tensor
    batched: bool = True  #: whether answers have the axis B
    restore: Restore = _as_it_is  #: from a tensor to the kind of array that answers come in

    @property
    def degrees(self) -> Any:
        """(B, N) float64, the row sums of A; (N,) for (N, d) features."""
        return self.give(self.degree)

    @property
    def nbytes(self) -> int:
        """Bytes that the graph holds."""
        weights = 0 if self.weights is None else self.weights.nbytes
        return self.bits.nbytes + self.degree.nbytes + weights

    def matvec(self, x: Any) -> Any:
        """A x in float64, for x of shape (B, N) or (B, N, m); without B for (N, d) features.

        Raises ``ValueError`` for other shapes.
        """
        vectors, restore = as_tensor(x, "x")
        rows = tuple(self.degree.shape) if self.batched else (self.n,)
        if vectors.shape[: len(rows)] != rows or vectors.ndim > len(rows) + 1:
            raise ValueError(
                f"`x` must be {rows} or {(*rows, 'm')} for this graph: got {tuple(vectors.shape)}"
            )
        columns = vectors.reshape(len(self.degree), self.n, -1).transpose(1, 2)
        columns = columns.to("cpu", torch.float64).contiguous()
        product = torch.empty_like(columns)
        _native.cpu().matvec(
            bits=self.bits.data_ptr(),
            weights=self.weights,
            batch=len(columns),
            n=self.n,
            eps=self.eps,
            x=columns.data_ptr(),
            y=product.data_ptr(),
            columns=columns.shape[1],
            threads=_native.threads(),
        )
        return restore(product.transpose(1, 2).reshape(vectors.shape))

    def to_dense(self) -> Any:
        """A itself, (B, N, N) float64; (N, N) for (N, d) features. To look at, not to compute."""
        eye = torch.eye(self.n, dtype=torch.float64).expand(len(self.degree), -1, -1)
        plain = Graph(self.eps, self.n, self.bits, self.weights, self.degree)
        return self.give(plain.matvec(eye))

    def give(self, result: Tensor) -> Any:
        """``result`` (B, ...) as the caller's kind of array, without B for (N, d) features."""
        return self.restore(result if self.batched else result[0])


def affinity(
    features: Any,
    *,
    tau: float = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
) -> Graph:
    """The affinity graph of patch features.

    Args:
        features: (N, d), (B, N, d) or (B, d, h, w) in float16, bfloat16, float32 or float64; torch,
            numpy or DLPack. Rows are normalised in float64 and rounded to float32.
        tau: the threshold on the similarity, the float64 inner product of two such rows.
        eps: A where there is no edge, in [1e-30, 1).
        graph: "binary", A = 1 where the similarity is > tau (TokenCut, and Selfment's code), or
            "weighted", A = the similarity where it is >= tau (Selfment's equation 1).

    Raises:
        TypeError: a wrong kind of array or dtype.
        ValueError: a wrong shape, device or parameter, or features that are not finite.
    """
    params.check_graph(tau, eps, graph)
    given = as_features(features)
    made = build(given.tensor.contiguous(), tau, eps, graph)
    return replace(made, batched=given.batched, restore=given.restore)


def build(
    rows: Tensor,
    tau: float,
    eps: float,
    graph: str,
    *,
    first: int = 0,
) -> Graph:
    """The graph of checked, contiguous (B, N, d) rows; ``first`` is the first image's number."""
    native = _native.cpu()
    batch, n, d = rows.shape
    bits = torch.empty((batch, native.bits_size(n)), dtype=torch.int64)
    degree = torch.empty((batch, n), dtype=torch.float64)
    weights = native.Weights(batch) if graph == "weighted" else None
    bad = native.affinity(
        features=rows.data_ptr(),
        dtype=_native.dtype_code(rows),
        batch=batch,
        n=n,
        d=d,
        tau=tau,
        eps=eps,
        weights=weights,
        bits=bits.data_ptr(),
        degrees=degree.data_ptr(),
        threads=_native.threads(),
    )
    check_finite(bad, n, first)
    return Graph(eps, n, bits, weights, degree)


def check_finite(bad: int, n: int, first: int) -> None:
    """Raises ``ValueError`` if a native operation found a ``bad`` row, >= 0, of the features."""
    if bad >= 0:
        image, patch = divmod(bad, n)
        raise ValueError(
            f"`features` must be finite, and so must their norms: got NaN, infinity or an overflow "
            f"in patch {patch} of image {first + image}"
        )
