"""Times selfment's drop-ins for MaskCut and Deep Spectral Segmentation against the dense code.

Each pair runs in one process, on the same features and threads; results are compared before
anything is timed. The dense code is what the original projects run:

- MaskCut: three rounds of numpy matrices and LAPACK's generalised solver, `scipy.linalg.eigh`.
  Masks and seeds must be equal; ties of the seed, which depend on rounding in numpy, follow the
  drop-in's rule in both.
- Deep Spectral Segmentation: 20 pairs by scipy's `eigsh` in shift-invert mode, in float32. The time
  is that of `eigsh` alone, with D - W and D computed before; the drop-in's time is from features to
  vectors. Eigenvalues must agree, and residuals |(D - W) x - lambda D x|, W in float64, must be at
  most 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from inputs import machine, photo_features, photographs
from torch import Tensor

from selfment import reference
from selfment.compat import dsm
from selfment.compat._shared import first_peak
from selfment.compat.maskcut import (
    check_num_fg_corners,
    get_affinity_matrix,
    get_masked_affinity_matrix,
    get_salient_areas,
    maskcut_forward,
)
from selfment.compat.tokencut import detect_box

ROUNDS, TAU, PATCH = 3, 0.15, 8
PAIRS = 20


def drop_in_maskcut(columns: Tensor, side: int) -> tuple[int, list[np.ndarray]]:
    """Runs the drop-in on (d, side * side) features; returns the last seed and the masks."""
    size = (side, side)
    return maskcut_forward(columns, size, (PATCH, PATCH), size, TAU, ROUNDS)[:2]


def dense_maskcut(columns: Tensor, side: int) -> tuple[int, list[np.ndarray]]:
    """Runs the same by dense matrices and scipy."""
    grid = (side, side)
    painting = torch.zeros(1, *grid)
    mask = np.zeros(grid)
    masks: list[np.ndarray] = []
    for turn in range(ROUNDS):
        paint = torch.from_numpy(mask).float()
        columns, painting = get_masked_affinity_matrix(painting, columns, paint, side)
        A, D = get_affinity_matrix(columns, TAU)
        x = scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])[1][:, 0]
        foreground = get_salient_areas(x)
        reverse = check_num_fg_corners(foreground, grid) >= 3
        reverse = reverse or not foreground[first_peak(abs(x))]
        foreground = foreground != reverse
        seed = first_peak(-x if reverse else x)
        inside = detect_box(foreground.reshape(grid), seed, grid, None, (PATCH, PATCH))[3]
        last, mask = mask, np.zeros(grid)
        mask[inside] = 1
        union = np.maximum(last, mask).sum()
        if turn > 0 and ((last * mask).sum() / union > 0.5 or mask.mean() <= 0.01):
            mask[:] = 0
        masks.append(np.clip(mask - sum(masks), 0, None))
    return seed, masks


def maskcut(side: int, dim: int, repeats: int) -> None:
    """Compares and times MaskCut on a grid of side * side patches."""
    rows = features(side, dim)
    columns = rows.T.contiguous()
    print(f"MaskCut, {ROUNDS} rounds, tau = {TAU}")
    start = time.perf_counter()
    seed, masks = dense_maskcut(columns, side)
    slow = time.perf_counter() - start

    own_seed, own_masks = drop_in_maskcut(columns, side)
    if own_seed != seed or not np.array_equal(own_masks, masks):
        sys.exit("the drop-in and the dense way differ")
    areas = ", ".join(f"{int(mask.sum())}" for mask in masks)
    print(f"equal: the seed and {ROUNDS} masks of {areas} patches")
    report(times(lambda: drop_in_maskcut(columns, side), repeats), [slow])


def deep_spectral(side: int, dim: int, repeats: int) -> None:
    """Compares and times the eigenpairs of Deep Spectral Segmentation."""
    rows = features(side, dim)
    print(f"Deep Spectral Segmentation, K = {PAIRS}")
    f = torch.nn.functional.normalize(rows)
    similarity = (f @ f.T).clamp(min=0)
    W = (similarity / similarity.max()).numpy()
    D = np.diag(W.sum(axis=1))

    def theirs() -> Any:
        return scipy.sparse.linalg.eigsh(D - W, k=PAIRS, sigma=0, which="LM", M=D)

    def ours() -> tuple[Tensor, Tensor]:
        return dsm.eigs(rows, PAIRS)

    found = {
        "drop-in": [result.double().numpy() for result in ours()],
        "shift-invert": [result.T.astype(np.float64) for result in theirs()],
    }
    exact = reference.normalize(rows).double()
    exact = (exact @ exact.T).clamp(min=0)
    degree = exact.sum(1).numpy()
    for name, (values, vectors) in found.items():
        x = vectors.T
        error = degree[:, None] * x - exact.numpy() @ x - degree[:, None] * x * values
        worst = np.linalg.norm(error, axis=0).max()
        print(f"residual of the {name}: {worst:.1e}")
        if name == "drop-in" and worst > 1e-5:
            sys.exit("the drop-in's residual is above 1e-5")
    difference = abs(found["drop-in"][0] - found["shift-invert"][0]).max()
    print(f"eigenvalues differ by {difference:.1e}")
    if difference > 1e-5:
        sys.exit("the drop-in and the dense way differ")
    report(times(ours, repeats), times(theirs, max(1, repeats // 3)))


def features(side: int, dim: int) -> Tensor:
    """Prints the name of a photograph and returns its (side * side, dim) features."""
    path = photographs([])[0]
    print(f"\nphotograph: {path.name}; {side} x {side} patches, d = {dim}")
    return photo_features(path, side, dim)


def times(function: Callable[[], Any], count: int) -> list[float]:
    """Returns the seconds of each of ``count`` calls."""
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return taken


def report(ours: list[float], theirs: list[float]) -> None:
    """Prints medians, spreads and their ratio."""
    for name, taken in (("drop-in", ours), ("dense", theirs)):
        median = statistics.median(taken)
        line = f"  {name:10} {1000 * median:9.1f} ms  "
        if len(taken) > 1:
            low, _, high = statistics.quantiles(taken, n=4)
            line += f"median of {len(taken)}, spread {100 * (high - low) / 2 / median:.0f} %"
        print(line if len(taken) > 1 else line + "one run")
    print(f"  ratio      {statistics.median(theirs) / statistics.median(ours):9.1f}x")


METHODS = {"maskcut": (maskcut, 60, 768), "dsm": (deep_spectral, 48, 384)}


def main() -> None:
    """Parses the arguments, compares, times and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help=f"{', '.join(METHODS)} (all)")
    parser.add_argument("--side", type=int, help="patches (60 and 48)")
    parser.add_argument("--dim", type=int, help="channels (768 and 384)")
    parser.add_argument("--repeats", type=int, default=15, help="of the drop-in (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if unknown := set(arguments.methods) - set(METHODS):
        parser.error(f"methods are {', '.join(METHODS)}: got {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))
    for name in arguments.methods or METHODS:
        run, side, dim = METHODS[name]
        run(arguments.side or side, arguments.dim or dim, arguments.repeats)


if __name__ == "__main__":
    main()
