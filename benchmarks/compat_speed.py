"""How long MaskCut takes: selfment's drop-in and the dense way, in one process.

Three rounds on the same features and threads. The dense way is what everybody runs: numpy matrices
and LAPACK's generalised solver, `scipy.linalg.eigh`, in every round. Masks and seeds are compared
before anything is timed; the vector's sign and ties of the seed, which LAPACK leaves to rounding,
are by the drop-in's rules in both.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import scipy.linalg
import torch
from inputs import machine, photo_features, photographs
from torch import Tensor

from selfment.compat._cut import first_peak
from selfment.compat.maskcut import (
    check_num_fg_corners,
    get_affinity_matrix,
    get_masked_affinity_matrix,
    get_salient_areas,
    maskcut_forward,
)
from selfment.compat.tokencut import detect_box

ROUNDS, TAU, PATCH = 3, 0.15, 8


def dense(columns: Tensor, side: int) -> tuple[int, list[np.ndarray]]:
    """MaskCut of (d, side * side) features by dense matrices, at the grid's size."""
    grid = (side, side)
    painting = torch.zeros(1, *grid)
    mask = np.zeros(grid)
    masks: list[np.ndarray] = []
    for turn in range(ROUNDS):
        paint = torch.from_numpy(mask).float()
        columns, painting = get_masked_affinity_matrix(painting, columns, paint, side)
        A, D = get_affinity_matrix(columns, TAU)
        x = scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])[1][:, 0]
        x = x * np.sign(x[first_peak(abs(x))])
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


def main() -> None:
    """Parses the arguments, compares, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=60, help="patches (%(default)s)")
    parser.add_argument("--dim", type=int, default=768, help="channels (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="of the drop-in (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("\n".join(f"{name}: {value}" for name, value in machine().items()))
    side = arguments.side
    path = photographs([])[0]
    columns = photo_features(path, side, arguments.dim).T.contiguous()
    print(f"photograph: {path.name}; {side} x {side} patches, d = {arguments.dim}, tau = {TAU}")

    start = time.perf_counter()
    seed, masks = dense(columns, side)
    slow = time.perf_counter() - start

    def ours() -> tuple[int, list[np.ndarray]]:
        size = (side, side)
        return maskcut_forward(columns, size, (PATCH, PATCH), size, TAU, ROUNDS)[:2]

    own_seed, own_masks = ours()
    if own_seed != seed or not np.array_equal(own_masks, masks):
        sys.exit("the drop-in and the dense way differ")
    areas = ", ".join(f"{int(mask.sum())}" for mask in masks)
    print(f"equal: the seed and {ROUNDS} masks of {areas} patches")
    times = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        ours()
        times.append(time.perf_counter() - start)
    fast = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    print(f"  drop-in    {1000 * fast:9.1f} ms  median of {len(times)}, ", end="")
    print(f"spread {100 * (high - low) / 2 / fast:.0f} %")
    print(f"  dense      {1000 * slow:9.1f} ms  one run")
    print(f"  ratio      {slow / fast:9.1f}x")


if __name__ == "__main__":
    main()
