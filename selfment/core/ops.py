"""The native operations on tensors: each picks its twin and allocates its outputs.

The tensors of an operation share a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .arrays import Grid
from .blocks import Blocks
from .options import CutOptions, IpoOptions
from .twins import twin_of

Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _true(flags: Tensor) -> Tensor:
    """Returns a copy with bytes 0 and 1, as kernels need; a view as bool can have any bytes."""
    return flags.view(torch.uint8) != 0


def dtype_code(native: ModuleType, dtype: torch.dtype) -> int:
    """Returns the number of the dtype in the native module."""
    code: int = native.DTYPES.index(str(dtype).removeprefix("torch."))
    return code


def images_at_once(rows: Tensor, weighted: bool) -> int:
    """Returns how many images of (B, N, d) features to label at a time in bounded memory."""
    n, d = rows.shape[1:]
    twin = twin_of(rows.device)
    copied = 0 if rows.is_contiguous() else n * d * rows.element_size()
    images = twin.images_at_once(copied, int(weighted), n, d, dtype_code(twin.native, rows.dtype))
    return max(1, images)


def affinity(
    rows: Tensor, taus: Tensor, eps: float, weighted: bool
) -> tuple[Tensor, Tensor, Any, int]:
    """Returns the graph of (B, N, d) features, and the first row that is not finite, or -1.

    The graph is bits (B, words * rows) int64, degrees (B, N) float64, and weights. ``taus``: (B,)
    float64, contiguous. On a CUDA device, which is not waited for, the last is always -1.
    """
    batch, n, d = rows.shape
    twin = twin_of(rows.device)
    bits = rows.new_empty((batch, twin.native.bits_size(n)), dtype=torch.int64)
    degree = rows.new_empty((batch, n), dtype=torch.float64)
    weights = twin.weights(batch, n) if weighted else None
    dtype = dtype_code(twin.native, rows.dtype)
    bad = twin.run(
        "affinity",
        {"dtype": dtype, "batch": batch, "n": n, "d": d},
        features=twin.readable(rows),
        dtype=dtype,
        batch=batch,
        n=n,
        d=d,
        taus=taus,
        eps=eps,
        weights=weights,
        bits=bits,
        degrees=degree,
    )
    return bits, degree, weights, -1 if bad is None else bad


def paint(
    bits: Tensor,
    weights: Any,
    degree: Tensor,
    n: int,
    eps: float,
    taus: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Any]:
    """Returns bits, degrees and weights as ``affinity`` does, for features with zeroed rows.

    Args:
        bits: see ``affinity``.
        weights: see there.
        degree: (B, N) float64.
        n: N, the patches of an image.
        eps: the affinity without an edge.
        taus: (B,) float64, the thresholds.
        mask: (B, N) bool, the rows that are zeroed.
    """
    batch = len(bits)
    twin = twin_of(bits.device)
    painted_bits, painted_degree = torch.empty_like(bits), degree.clone()
    painted_weights = None if weights is None else twin.weights(batch, n)
    twin.run(
        "paint",
        None,
        bits=bits,
        weights=weights,
        batch=batch,
        n=n,
        eps=eps,
        taus=taus,
        mask=_true(mask),
        painted_bits=painted_bits,
        painted_weights=painted_weights,
        painted_degrees=painted_degree,
    )
    return painted_bits, painted_degree, painted_weights


def matvec(bits: Tensor, weights: Any, n: int, eps: float, x: Tensor) -> Tensor:
    """Returns A x for x (B, m, N) float64."""
    product = torch.empty_like(x)
    twin = twin_of(bits.device)
    twin.run(
        "matvec",
        None,
        bits=bits,
        weights=weights,
        batch=len(x),
        n=n,
        eps=eps,
        x=twin.readable(x),
        y=product,
        columns=x.shape[1],
    )
    return product


def fiedler(
    bits: Tensor,
    weights: Any,
    degree: Tensor,
    n: int,
    eps: float,
    k: int,
    sign: str,
) -> Pairs:
    """Returns eigenvalues, vectors (B, k, N), gaps, residuals, and products with A (B,).

    Args:
        bits: see ``affinity``.
        weights: see there.
        degree: (B, N) float64.
        n: N, the patches of an image.
        eps: the affinity without an edge.
        k: pairs; eigenvalues, gaps and residuals are (B, k) float64.
        sign: "peak" or "lapack", see :func:`selfment.ncut`.
    """
    batch = len(bits)
    twin = twin_of(bits.device)
    values, gaps, residuals = (degree.new_empty((batch, k)) for _ in range(3))
    vectors = degree.new_empty((batch, k, n))
    iterations = bits.new_empty(batch)
    twin.run(
        "fiedler",
        {
            "batch": batch,
            "n": n,
            "k": k,
            "weighted": weights is not None,
            "lapack_sign": sign == "lapack",
            "device": twin.ordinal,
        },
        bits=bits,
        weights=weights,
        degrees=degree,
        batch=batch,
        n=n,
        eps=eps,
        k=k,
        lapack_sign=sign == "lapack",
        eigenvalues=values,
        vectors=vectors,
        gaps=gaps,
        residuals=residuals,
        iterations=iterations,
    )
    return values, vectors, gaps, residuals, iterations


def components(
    fiedler: Tensor, grids: Sequence[Grid], corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the initial masks of (B, N) float64 Fiedler vectors, with seeds and peaks.

    Masks are (B, N) bool, seeds (B,) and peaks (B, F) int64. ``grids``: (h, w) of each of the F
    frames whose patches follow one another in a vector; a peak is the patch of its frame that the
    mask there grew from, -1 without a mask.
    """
    batch, n = fiedler.shape
    mask = fiedler.new_empty(fiedler.shape, dtype=torch.bool)
    seed = fiedler.new_empty(batch, dtype=torch.int64)
    peaks = fiedler.new_empty((batch, len(grids)), dtype=torch.int64)
    twin_of(fiedler.device).run(
        "components",
        {"batch": batch, "n": n, "frames": len(grids)},
        fiedler=fiedler,
        batch=batch,
        n=n,
        grids=grids,
        corners=corners,
        mask=mask,
        seed=seed,
        peaks=peaks,
    )
    return mask, seed, peaks


def ipo(
    rows: Tensor | Blocks, labels: Tensor, options: IpoOptions
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Returns what `run_ipo` returns, and the first row that is not finite, or -1.

    On a CUDA device, which is waited for only if the rows are blocks, the last is always -1.
    """
    batch, n, d = rows.shape
    twin = twin_of(rows.device)
    refined = _true(labels).contiguous()
    steps = labels.new_empty(batch, dtype=torch.int64)
    separation = labels.new_empty(batch, dtype=torch.float64)
    dtype = dtype_code(twin.native, rows.dtype)
    sizes = {"dtype": dtype, "batch": batch, "n": n, "d": d}
    source = rows.source() if isinstance(rows, Blocks) else {"features": twin.readable(rows)}
    bad = twin.run(
        "ipo",
        {**sizes, "device": twin.ordinal},
        **source,
        **sizes,
        iters=options.iters,
        min_count=options.min_count,
        labels=refined,
        steps=steps,
        separation=separation,
    )
    return refined, steps, separation, -1 if bad is None else bad


def finish(
    values: Tensor,
    gaps: Tensor,
    vectors: Tensor,
    separation: Tensor,
    labels: Tensor,
    grids: Sequence[Grid],
    min_confidence: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the last fields of a label: confidence and rejected (B,), mask and vectors (B, N).

    The confidence is computed as :func:`selfment.core.confidence.confidence` does, step by step;
    torch may round a square root differently in its last place. Vectors are float32.

    Args:
        values: eigenvalues (B, 1) float64, from ``fiedler``.
        gaps: (B, 1) float64, from ``fiedler``.
        vectors: (B, 1, N) float64, from ``fiedler``.
        separation: (B,) float64, from ``ipo``.
        labels: (B, N) bool, from ``ipo``.
        grids: (h, w) of each of the frames whose patches follow one another in an image.
        min_confidence: an image below it is rejected, and its mask is empty.
    """
    batch, n = labels.shape
    sure = values.new_empty(batch)
    rejected = labels.new_empty(batch)
    mask = torch.empty_like(labels)
    rounded = values.new_empty((batch, n), dtype=torch.float32)
    twin_of(labels.device).run(
        "finish",
        {"frames": len(grids)},
        eigenvalues=values,
        gaps=gaps,
        separation=separation,
        fiedler=vectors,
        labels=labels,
        batch=batch,
        n=n,
        grids=grids,
        min_confidence=min_confidence,
        confidence=sure,
        rejected=rejected,
        mask=mask,
        vectors=rounded,
    )
    return sure, rejected, mask, rounded


def labels_in_one_call(rows: Tensor) -> bool:
    """Returns True if ``label`` labels the rows: on a CUDA device, where no step is waited for."""
    return twin_of(rows.device).labels_in_one_call


def label(
    rows: Tensor,
    taus: Tensor,
    grids: Sequence[Grid],
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float,
) -> dict[str, Tensor]:
    """Runs all operations of a label of (B, N, d) features on a CUDA device, in one native call.

    Returns the fields of `label.label_rows` by name, all but ``tau``.

    Args:
        rows: (B, N, d) features.
        taus: (B,) float64, contiguous, the thresholds; that of ``cut`` is not used.
        grids: (h, w) of each of the frames whose patches follow one another in an image.
        cut: the options of the cut.
        ipo: the options of IPO.
        min_confidence: the least confidence of a label that is kept.
    """
    batch, n, d = rows.shape
    twin = twin_of(rows.device)
    fields = _new_fields(rows, len(grids))
    dtype = dtype_code(twin.native, rows.dtype)
    twin.run(
        "label",
        {
            "dtype": dtype,
            "batch": batch,
            "n": n,
            "d": d,
            "weighted": cut.weighted,
            "frames": len(grids),
            "device": twin.ordinal,
        },
        features=twin.readable(rows),
        dtype=dtype,
        batch=batch,
        n=n,
        d=d,
        taus=taus,
        eps=cut.eps,
        weighted=cut.weighted,
        grids=grids,
        corners=cut.corners,
        iters=ipo.iters,
        min_count=ipo.min_count,
        min_confidence=min_confidence,
        **fields,
    )
    return fields


def _new_fields(rows: Tensor, frames: int) -> dict[str, Tensor]:
    """Allocates the fields of the labels of (B, N, d) features by name, all but ``tau``."""
    batch, n, _ = rows.shape

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        return rows.new_empty((batch, *shape), dtype=dtype)

    numbers = ("eigenvalue", "gap", "residual", "separation", "confidence")
    counts = ("seed", "lanczos_iters", "ipo_iters")
    return {
        "mask": new(torch.bool, n),
        "ncut_mask": new(torch.bool, n),
        "fiedler": new(torch.float32, n),
        **{name: new(torch.float64) for name in numbers},
        **{name: new(torch.int64) for name in counts},
        "rejected": new(torch.bool),
        "peaks": new(torch.int64, frames),
    }


def samples_at_once(rows: Tensor, m: int) -> int:
    """Returns how many images of (B, N, d) features to sample m float64 rows of at a time."""
    copies = 4
    return max(1, twin_of(rows.device).sample_bytes // (copies * m * rows.shape[2] * 8))


def threshold(similarities: Tensor) -> Tensor:
    """Returns Otsu's thresholds (B,) of the pairs i < j of (B, m, m) float64 similarities."""
    batch, m, _ = similarities.shape
    taus = similarities.new_empty(batch)
    twin_of(similarities.device).run(
        "threshold", None, similarities=similarities, batch=batch, m=m, taus=taus
    )
    return taus


# Not torch.library.custom_op: its first call imports torch._dynamo, 1.4 s and 150 MiB.
_LIBRARY = torch.library.Library("selfment", "DEF")


def register(schema: str, operation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers ``operation`` with torch for both devices, and returns the torch operator.

    ``fake`` makes outputs of the same shapes and dtypes from arguments without data, which is what
    torch.compile, torch.export and FakeTensorMode ask for. Arguments are checked by the
    functions of :mod:`selfment`, which call the operators.
    """
    name = _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, operation, key)
    torch.library.register_fake(f"selfment::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.selfment, name).default
