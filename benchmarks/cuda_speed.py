"""The part of ncut_speed.py for a CUDA device: stages, batches, other programs, and floors.

Labels are compared with the CPU's before anything is timed. Times are medians of CUDA events, after
a warm-up, over input sets that together exceed the L2 cache. The floor of a stage is the larger of
its operations and its bytes, divided by ceilings that are measured first: a large bf16 product and
a large copy.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from inputs import photo_features
from torch import Tensor

import selfment
from selfment import reference
from selfment.core.graph import build
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs, initial_mask
from selfment.core.options import CutOptions, IpoOptions

SETS_BYTES = 1 << 28  # least size of all input sets of a problem size together
MOST_BATCH = 256
SLOW = 2.0  # seconds; a program that takes longer runs once


@dataclass(frozen=True)
class Ceilings:
    """Measured peak rates of the device."""

    operations: float  # of a bf16 product, per second
    bytes: float  # of a copy, read and written, per second


def seconds(run: Callable[[], Any], least: int = 10, most: float = 1.0) -> tuple[float, float, int]:
    """Returns median, spread (half the interquartile range over the median) and number of runs."""

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    first = once()
    if first > SLOW:
        return first, math.nan, 1
    for _ in range(2):
        run()
    times: list[float] = []
    while len(times) < least or (sum(times) < most and len(times) < 200):
        times.append(once())
    low, median, high = statistics.quantiles(times, n=4)
    return median, (high - low) / 2 / median, len(times)


def ceilings(device: torch.device) -> Ceilings:
    """Measures the ceilings on random data."""
    size = 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    product, _, _ = seconds(lambda: a @ b)
    big = torch.randn(1 << 29, device=device)
    to = torch.empty_like(big)
    copy, _, _ = seconds(lambda: to.copy_(big))
    return Ceilings(2 * size**3 / product, 2 * big.nbytes / copy)


def batch_size(patches: int, dim: int) -> int:
    """Returns the number of images in half a GiB of bf16 features, at least one."""
    return max(1, min(MOST_BATCH, (1 << 29) // (patches * dim * 2)))


def input_sets(
    photos: Sequence[Path], side: int, dim: int, batch: int, device: torch.device
) -> list[Tensor]:
    """Returns batches (B, N, d) of bf16: patches of photographs, shifted from image to image."""
    images = [photo_features(path, side, dim).bfloat16() for path in photos]
    one = batch * side * side * dim * 2
    sets = []
    for number in range(max(2, -(-SETS_BYTES // one))):
        rolls = (number * batch + i for i in range(batch))
        rows = [images[roll % len(images)].roll(roll // len(images), 0) for roll in rolls]
        sets.append(torch.stack(rows).to(device))
    return sets


def verify(rows: Tensor, grid: tuple[int, int]) -> str:
    """Raises ``SystemExit`` unless the graph and a few labels equal the CPU's."""
    few = rows[:3]
    ours = selfment.pseudo_label(few, grid)
    expected = selfment.pseudo_label(few.cpu(), grid)
    for field in ("mask", "ncut_mask", "seed"):
        wrong = int((getattr(ours, field).cpu() != getattr(expected, field)).sum())
        if wrong:
            raise SystemExit(f"`{field}` differs from the CPU's in {wrong} places")
    if not torch.equal(selfment.affinity(few).bits.cpu(), selfment.affinity(few.cpu()).bits):
        raise SystemExit("the graph differs from the CPU's")
    return f"graph and masks equal the CPU's ({len(few)} images)"


def stages(
    sets: list[Tensor], grid: tuple[int, int], limit: Ceilings
) -> Iterator[tuple[str, Callable[[], Any], float]]:
    """Yields name, function and floor in seconds of each stage of a batch."""
    batch, n, d = sets[0].shape
    inputs = cycle(sets)
    graph = build(sets[0], CutOptions())
    pairs = eigenpairs(graph, 1)
    x = pairs.vectors[:, 0].contiguous()
    mask, _ = initial_mask(x, grid, "seed")
    _, steps, _ = run_ipo(sets[0], mask, IpoOptions())
    features = sets[0].nbytes / limit.bytes
    half_product = batch * n * (n + 1) * d / limit.operations
    bits = graph.bits.nbytes / limit.bytes
    yield "affinity", lambda: build(next(inputs), CutOptions()), max(features, half_product)
    products = pairs.iterations.double().mean().item()
    yield "fiedler", lambda: eigenpairs(graph, 1), bits * products
    yield "components", lambda: initial_mask(x, grid, "seed"), 9 * n * batch / limit.bytes
    passes = steps.double().mean().item() + 1
    yield "ipo", lambda: run_ipo(sets[0], mask, IpoOptions()), features * passes


def captured(rows: Tensor, grid: tuple[int, int]) -> torch.cuda.CUDAGraph:
    """Captures the labelling of a batch as a CUDA graph."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        selfment.pseudo_label(rows, grid)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        selfment.pseudo_label(rows, grid)
    return graph


def peers(rows: Tensor, grid: tuple[int, int]) -> Iterator[tuple[str, Callable[[], Any], int]]:
    """Yields name, function and number of images of each other program."""
    yield "F @ F.T alone (torch, bf16)", lambda: rows @ rows.transpose(1, 2), len(rows)
    image = rows[0].float()
    if len(image) > 7000:
        return  # dense matrices in double, and a dense eigensolver
    yield "reference (torch.linalg.eigh)", lambda: reference.pseudo_label(image, grid), 1
    A = reference.affinity(image)
    scale = A.sum(1).rsqrt()
    M = scale[:, None] * A * scale
    start = torch.randn(len(M), 2, generator=torch.Generator().manual_seed(0)).double().to(M.device)

    def lobpcg() -> None:
        torch.lobpcg(M, k=2, X=start, niter=200, tol=1e-8, largest=True)

    yield "torch.lobpcg, vector alone", lobpcg, 1
    try:
        import cupy
        from cupyx.scipy.sparse.linalg import eigsh
    except ImportError:
        return
    matrix = cupy.from_dlpack(M)

    def arpack() -> None:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            eigsh(matrix, k=2, which="LA")

    yield "cupy eigsh, vector alone", arpack, 1


def run(cases: Sequence[tuple[int, int]], photos: Sequence[Path]) -> list[dict[str, Any]]:
    """Measures and prints every size; returns the rows of all tables."""
    device = torch.device("cuda", torch.cuda.current_device())
    limit = ceilings(device)
    name, products, copies = torch.cuda.get_device_name(), limit.operations, limit.bytes
    print(f"{name}: bf16 product {products / 1e12:.0f} TFLOP/s, copy {copies / 1e12:.2f} TB/s")
    rows = []
    for side, dim in cases:
        rows += measure(side, dim, photos, limit)
        sys.stdout.flush()
    return rows


def measure(side: int, dim: int, photos: Sequence[Path], limit: Ceilings) -> list[dict[str, Any]]:
    """Prints the table of one size; returns its rows."""
    device = torch.device("cuda", torch.cuda.current_device())
    grid, patches = (side, side), side * side
    batch = batch_size(patches, dim)
    sets = input_sets(photos, side, dim, batch, device)
    print(f"\nN = {patches}, d = {dim}, bf16, batch {batch}: {verify(sets[0], grid)}")
    print(f"  {'':34}{'an image':>12} {'spread':>7} {'runs':>5} {'/ selfment':>11} {'floor':>7}")
    results: list[dict[str, Any]] = []

    def report(name: str, work: Callable[[], Any], images: int, floor: float | None = None) -> None:
        median, spread, runs = seconds(work)
        each = median / images
        own = results[0]["seconds"] if results else each
        share = "" if floor is None else f"{100 * floor / median:.0f} %"
        noise = "" if math.isnan(spread) else f"{100 * spread:.0f} %"
        ratio = each / own
        print(f"  {name:34}{1e6 * each:9.1f} us {noise:>7} {runs:5} {ratio:10.2f}x {share:>7}")
        results.append(
            {"patches": patches, "dim": dim, "batch": batch, "name": name, "seconds": each}
            | {"spread": None if math.isnan(spread) else spread, "runs": runs, "ratio": ratio}
            | {"floor_s": floor}
        )

    inputs = cycle(sets)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    report("selfment", lambda: selfment.pseudo_label(next(inputs), grid), batch)
    scratch = (torch.cuda.max_memory_allocated() - before) / (1 << 20)
    print(f"  {'':34}peak beyond the features: {scratch:.0f} MiB")
    graph = captured(sets[0], grid)
    report("selfment, as a CUDA graph", graph.replay, batch)
    del graph
    for name, work, floor in stages(sets, grid, limit):
        report(f"- {name}", work, batch, floor)
    single = cycle([rows[:1] for rows in sets])
    report("selfment, one image at a time", lambda: selfment.pseudo_label(next(single), grid), 1)
    for name, work, images in peers(sets[0], grid):
        report(name, work, images)
    results[0]["peak_mib"] = scratch
    return results
