"""Joint labels by the rules, dense, in float64, from LAPACK's vector or from another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from selfment import JointLabels

Grids = list[tuple[int, int]]


def frames_of(make: Any, *grids: tuple[int, int]) -> tuple[Tensor, Grids]:
    """Frames of features with the same story, but other numbers."""
    return torch.cat([make(h, w, 32, seed=20 + i) for i, (h, w) in enumerate(grids)]), list(grids)


def box(rows: slice, columns: slice, kind: int = 1, of: Tensor | None = None) -> Tensor:
    """A 16 x 18 map of kinds of patch: 0, the ground, but for a box."""
    kinds = torch.zeros(16, 18, dtype=torch.int64) if of is None else of.clone()
    kinds[rows, columns] = kind
    return kinds


NOTHING = box(slice(0), slice(0))


def initial_masks(
    x: NDArray[np.float64], grids: Grids, orient: str
) -> tuple[NDArray[np.bool_], int, list[int]]:
    """The rules for the initial masks, word by word."""
    side = x > x.sum() / len(x)
    seed = int(np.argmax(np.abs(x) >= np.abs(x).max() * (1 - 1e-7)))
    if not side[seed]:
        side, x = ~side, -x
    starts = np.cumsum([0, *(h * w for h, w in grids)])[:-1]
    corners = [
        side[start + row * w + column]
        for start, (h, w) in zip(starts, grids, strict=True)
        for row in (0, h - 1)
        for column in (0, w - 1)
    ]
    if orient == "corners" and np.mean(corners) >= 0.75 and not side.all():
        side, x = ~side, -x
        seed = int(np.argmax(x >= x.max() - 1e-7 * abs(x.max())))
    mask, peaks = np.zeros(len(x), bool), []
    for start, (h, w) in zip(starts, grids, strict=True):
        frame = slice(start, start + h * w)
        if not side[frame].any():
            peaks.append(-1)
            continue
        if start <= seed < start + h * w:
            peaks.append(int(seed - start))
        else:
            depth = np.where(side[frame], x[frame], -np.inf)
            peaks.append(int(np.argmax(depth >= depth.max() - 1e-7 * abs(depth.max()))))
        parts, _ = scipy.ndimage.label(side[frame].reshape(h, w))
        mask[frame] = (parts == parts.flat[peaks[-1]]).ravel()
    return mask, seed, peaks


def optimized(f: NDArray[np.float64], mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """IPO over all patches, word by word, and its steps."""

    def direction() -> NDArray[np.float64]:
        return np.asarray(f[mask].mean(0) - f[~mask].mean(0))

    if mask.all() or not mask.any():
        return mask, 0
    reference_direction = direction()
    for step in range(20):
        if min(mask.sum(), (~mask).sum()) < 10:
            return mask, step
        before, mask = mask, f @ direction() > 1e-12
        if mask.all() or not mask.any():
            return mask, step + 1
        if direction() @ reference_direction < 0:
            mask = ~mask
        if (mask == before).all():
            return mask, step + 1
    return mask, 20


def expected(
    features: Tensor,
    grids: Grids,
    graph: str,
    orient: str,
    x: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """The labels, dense, in float64, from LAPACK's vector; or from another, ``x``."""
    rows = features.double().numpy()
    f = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    f = f.astype(np.float32).astype(np.float64)
    eigenvalue = math.nan
    if x is None:
        s = f @ f.T
        A = np.where(s > 0.2, 1, 1e-5) if graph == "binary" else np.where(s >= 0.2, s, 1e-5)
        D = np.diag(A.sum(1))
        values, vectors = scipy.linalg.eigh(D - A, D, subset_by_index=[0, 1])
        eigenvalue, x = values[1], vectors[:, 1]
        x = x * np.sign(x[np.argmax(np.abs(x) >= np.abs(x).max() * (1 - 1e-7))])
    ncut_mask, seed, peaks = initial_masks(x, grids, orient)
    mask, steps = optimized(f, ncut_mask)
    return {
        "mask": mask,
        "ncut_mask": ncut_mask,
        "fiedler": x,
        "eigenvalue": eigenvalue,
        "seed": seed,
        "peaks": peaks,
        "ipo_iters": steps,
    }


def flat(maps: Any) -> Tensor:
    return torch.cat([torch.as_tensor(part).flatten() for part in maps])


def assert_follows(label: JointLabels, wanted: dict[str, Any]) -> None:
    for name in ("mask", "ncut_mask"):
        assert flat(getattr(label, name)).tolist() == wanted[name].tolist(), name
    assert label.seed.item() == wanted["seed"]
    assert label.peaks.tolist() == wanted["peaks"]
    assert label.ipo_iters.item() == wanted["ipo_iters"]
