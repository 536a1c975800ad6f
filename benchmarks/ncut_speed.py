"""Times a pseudo-label: selfment, the dense reference, and other solvers.

It prints two tables for each size. The first is from features to the final mask; the second is for
the eigenvector alone, with each solver's graph or matrix computed before. Everything runs in one
process, on the same photographs and threads; every result is compared with selfment's before
anything is timed. Each size has a share of the time budget; a program is left out if its predicted
time exceeds it.

`--device cuda` prints one table for each size instead: see cuda_speed.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cuda_speed
import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from inputs import machine, photo_features, photographs
from memory import peak_mib
from torch import Tensor

import selfment
from selfment import reference
from selfment.core import native as _native
from selfment.core.graph import Graph
from selfment.core.ncut import initial_mask
from selfment.core.options import EPS, TAU

FULL, VECTOR = "features to mask", "eigenvector alone"
WARM_UP = 0.1  # seconds; OpenBLAS's idle threads spin for somewhat less


@dataclass
class Problem:
    """The features of one photograph, and the matrices for the solvers."""

    features: Tensor  # (N, d) float32
    grid: tuple[int, int]
    graph: Graph
    initial: Tensor  # (N,) bool, the mask that IPO starts from
    A: Tensor  # (N, N) float64
    M: Tensor  # D^-1/2 A D^-1/2

    @classmethod
    def of(cls, features: Tensor, side: int) -> Problem:
        """Returns the problem of (side * side, d) features, in binary mode."""
        A = reference.affinity(features)
        scale = A.sum(1).rsqrt()
        M = scale[:, None] * A * scale
        initial = selfment.pseudo_label(features, (side, side)).ncut_mask.flatten()
        return cls(features, (side, side), selfment.affinity(features), initial, A, M)


def official(problem: Problem) -> Tensor:
    """Runs the official recipe: dense numpy, LAPACK's generalised solver, IPO in float32 torch."""
    f = torch.nn.functional.normalize(problem.features, dim=1)
    similarity = (f @ f.T).numpy()
    A = np.where(similarity > TAU, 1.0, EPS)
    D = np.diag(A.sum(1))
    _, vectors = scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])
    x = torch.from_numpy(vectors[:, 0].copy())
    label = initial_mask(x[None], problem.grid, "seed")[0][0]
    first = f[label].mean(0) - f[~label].mean(0)
    for _ in range(20):
        if min(label.sum(), (~label).sum()) < 10:
            break
        label = f @ f[label].mean(0) > f @ f[~label].mean(0)
        if label.all() or not label.any():
            break
        if (f[label].mean(0) - f[~label].mean(0)) @ first < 0:
            label = ~label
    return label


def lapack(problem: Problem) -> Tensor:
    """Runs `scipy.linalg.eigh` for one pair of the generalised problem."""
    A = problem.A.numpy()
    D = np.diag(A.sum(1))
    return torch.from_numpy(scipy.linalg.eigh(D - A, D, subset_by_index=[1, 1])[1][:, 0])


def arpack(problem: Problem) -> Tensor:
    """Runs `scipy.sparse.linalg.eigsh` on the dense normalised matrix."""
    values, vectors = scipy.sparse.linalg.eigsh(problem.M.numpy(), k=2, which="LA")
    return unscaled(torch.from_numpy(vectors[:, np.argmin(values)]), problem)


def lobpcg(problem: Problem) -> Tensor:
    """Runs `torch.lobpcg` on the dense normalised matrix."""
    start = torch.randn(len(problem.M), 2, generator=torch.Generator().manual_seed(0)).double()
    _, vectors = torch.lobpcg(problem.M, k=2, X=start, niter=200, tol=1e-8, largest=True)
    return unscaled(vectors[:, 1], problem)


def torch_eigh(problem: Problem) -> Tensor:
    """Runs `torch.linalg.eigh` for the whole spectrum."""
    return unscaled(torch.linalg.eigh(problem.M)[1][:, -2], problem)


def unscaled(y: Tensor, problem: Problem) -> Tensor:
    """Returns D^-1/2 y."""
    return y * problem.A.sum(1).rsqrt()


def label(problem: Problem) -> Tensor:
    """Runs selfment; returns (N,) bool."""
    mask: Tensor = selfment.pseudo_label(problem.features, problem.grid).mask
    return mask.flatten()


def degrees(problem: Problem) -> Tensor:
    """Computes selfment's graph only; returns its degrees."""
    result: Tensor = selfment.affinity(problem.features).degrees
    return result


def optimized(problem: Problem) -> Tensor:
    """Runs selfment's IPO only; returns (N,) bool."""
    result: Tensor = selfment.ipo(problem.features, problem.initial)
    return result


def reference_label(problem: Problem) -> Tensor:
    """Runs the reference; returns (N,) bool."""
    mask: Tensor = reference.pseudo_label(problem.features, problem.grid).mask
    return mask.flatten()


def product(problem: Problem) -> Tensor:
    """Computes one float32 product F F^T, with which all others start; no label."""
    return problem.features @ problem.features.T


def vector(problem: Problem) -> Tensor:
    """Computes selfment's Fiedler vector from the bit graph."""
    vectors: Tensor = selfment.ncut(problem.graph)[1]
    return vectors[:, 0]


@dataclass
class Entry:
    """One contestant in one table, and its results at one size."""

    table: str
    name: str
    run: Callable[[Problem], Tensor]
    times: dict[int, list[float]] = field(default_factory=dict)  # seconds, for each photograph
    agreement: str = ""
    memory: float | None = None  # MiB at the peak, more than before

    @property
    def median(self) -> float:
        """The median time in seconds."""
        return statistics.median(t for times in self.times.values() for t in times)

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a share of the median."""
        times = sorted(t for times in self.times.values() for t in times)
        if len(times) < 4:
            return math.nan
        low, _, high = statistics.quantiles(times, n=4)
        return (high - low) / 2 / self.median

    def ratio(self, own: Entry) -> float:
        """The time as a multiple of selfment's, on the photographs for which both were timed."""
        return statistics.median(
            statistics.median(times) / statistics.median(own.times[image])
            for image, times in self.times.items()
            if image in own.times
        )


def contestants() -> list[Entry]:
    """Returns the contestants of each table; selfment is first."""
    return [
        Entry(FULL, "selfment", label),
        Entry(FULL, "  of that, the graph", degrees),
        Entry(FULL, "  of that, IPO", optimized),
        Entry(FULL, "F @ F.T alone (torch, float32)", product),
        Entry(FULL, "official recipe (scipy eigh)", official),
        Entry(FULL, "reference (torch.linalg.eigh)", reference_label),
        Entry(VECTOR, "selfment", vector),
        Entry(VECTOR, "scipy eigsh", arpack),
        Entry(VECTOR, "torch.lobpcg", lobpcg),
        Entry(VECTOR, "scipy.linalg.eigh, one pair", lapack),
        Entry(VECTOR, "torch.linalg.eigh", torch_eigh),
    ]


class Budget:
    """The available time, divided between the sizes in proportion to N, and the times so far."""

    def __init__(self, seconds: float, sizes: list[int]) -> None:
        """Starts the clock."""
        self.total = time.perf_counter() + seconds
        self.sizes = sizes
        self.known: dict[tuple[str, str], tuple[int, float]] = {}
        self.known_sizes: set[int] = set()

    def next_size(self) -> None:
        """Allots the next size its share of the remaining time."""
        now = time.perf_counter()
        self.end = now + (self.total - now) * self.sizes[0] / sum(self.sizes)
        self.sizes = self.sizes[1:]

    def note(self, entry: Entry, patches: int, seconds: float) -> None:
        """Remembers the time of an entry."""
        self.known[entry.table, entry.name] = patches, seconds
        self.known_sizes.add(patches)

    def allows(self, entry: Entry, patches: int) -> bool:
        """Returns whether one more run is likely to end in time; the first two always run."""
        if entry.run in (label, degrees, optimized, vector, product):
            return True
        if (entry.table, entry.name) not in self.known and self.known_sizes - {patches}:
            return False  # it did not fit at a smaller size
        at, seconds = self.known.get((entry.table, entry.name), (patches, 0.0))
        return time.perf_counter() + seconds * (patches / at) ** 3 < self.end


def verify(entry: Entry, result: Tensor, expected: Tensor, problem: Problem) -> None:
    """Stores the agreement with selfment's result; for the graph, with the dense matrix."""
    if entry.run is product:
        return
    if entry.run is degrees:
        torch.testing.assert_close(result, problem.A.sum(1), rtol=1e-13, atol=0)
        entry.agreement = "equal"
        return
    if entry.table == FULL:
        different = int((result != expected).sum())
        if different and entry.run is reference_label:
            sys.exit(f"selfment and the reference differ in {different} of {len(expected)} patches")
        entry.agreement = f"{different} of {len(expected)} patches differ" if different else "equal"
        return
    result = result / result.norm()
    expected = expected / expected.norm()
    error = min((result - expected).abs().max(), (result + expected).abs().max())
    entry.agreement = f"|dx| {error / (expected.max() - expected.min()):.0e}"


def measure(side: int, dim: int, photos: list[Path], rounds: int, budget: Budget) -> list[Entry]:
    """Verifies every contestant on the first photograph, then times all, round by round."""
    patches = side * side
    entries = contestants()
    # The dense matrices limit the number of photographs.
    count = len(photos) if patches <= 2304 else 1
    problems = [Problem.of(photo_features(path, side, dim), side) for path in photos[:count]]
    expected: dict[str, Tensor] = {}
    costs: dict[tuple[str, str], float] = {}
    for entry in entries:
        if not budget.allows(entry, patches):
            continue
        start = time.perf_counter()
        result, entry.memory = peak_mib(partial(entry.run, problems[0]))
        seconds = time.perf_counter() - start
        expected.setdefault(entry.table, result)
        verify(entry, result, expected[entry.table], problems[0])
        costs[entry.table, entry.name] = seconds
        budget.note(entry, patches, seconds)
        if seconds > 5:
            entry.times[0] = [seconds]
    for turn in range(rounds):
        for image, problem in enumerate(problems):
            for entry in entries:
                cost = costs.get((entry.table, entry.name), math.inf)
                # Slow programs run less often; their times also vary less.
                wanted = rounds * count if cost < 0.3 else 3
                done = turn * count + image
                over = cost > 5 or done >= wanted
                if over or (entry.times and not budget.allows(entry, patches)):
                    continue
                if cost < 0.3:
                    # The caches have the last contestant's data, and its idle threads still spin.
                    warm = time.perf_counter() + WARM_UP
                    while time.perf_counter() < warm:
                        entry.run(problem)
                start = time.perf_counter()
                entry.run(problem)
                seconds = time.perf_counter() - start
                entry.times.setdefault(image, []).append(seconds)
    return entries


def show(entries: list[Entry], side: int, dim: int) -> list[dict[str, Any]]:
    """Prints the two tables of one size; returns their rows."""
    rows = []
    for table in (FULL, VECTOR):
        own = next(entry for entry in entries if entry.table == table)
        print(f"\nN = {side * side}, d = {dim}: {table}")
        print(f"  {'':34}{'median':>11} {'spread':>7} {'runs':>5} {'/ selfment':>11} {'peak':>10}")
        for entry in entries:
            if entry.table != table:
                continue
            row = {"patches": side * side, "dim": dim, "table": table, "name": entry.name}
            if not entry.times:
                print(f"  {entry.name:34}left out: over the time budget")
                rows.append(row | {"left_out": True})
                continue
            runs = sum(map(len, entry.times.values()))
            ratio = entry.ratio(own)
            spread = "" if math.isnan(entry.spread) else f"{100 * entry.spread:.0f} %"
            memory = "" if entry.memory is None else f"{entry.memory:.0f} MiB"
            print(
                f"  {entry.name:34}{1000 * entry.median:8.2f} ms {spread:>7} {runs:5} "
                f"{ratio:10.2f}x {memory:>10}  {entry.agreement}"
            )
            rows.append(
                row
                | {
                    "median_s": entry.median,
                    "spread": None if math.isnan(entry.spread) else entry.spread,
                    "runs": runs,
                    "ratio": ratio,
                    "peak_mib": entry.memory,
                    "agreement": entry.agreement,
                }
            )
    return rows


def run(
    cases: list[tuple[int, int]], photos: list[Path], rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Measures and prints every size; returns the rows of all tables."""
    budget = Budget(seconds, [side * side for side, _ in cases])
    rows = []
    for side, dim in cases:
        budget.next_size()
        rows += show(measure(side, dim, photos, rounds, budget), side, dim)
        sys.stdout.flush()
    return rows


def sizes(text: str) -> list[int]:
    """Comma-separated positive integers."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise ValueError
    return values


def main() -> None:
    """Parses the arguments, runs every size, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--patches", type=sizes, default=[900, 2304, 6400], help="square numbers")
    parser.add_argument("--dim", type=sizes, default=[384, 4096])
    parser.add_argument("--images", nargs="*", default=[], help="files, folders or globs")
    parser.add_argument("--photos", type=int, default=5, help="use so many of them (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (%(default)s)")
    parser.add_argument("--budget", type=float, default=100, help="seconds (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="F")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and (obstacles := _native.cuda_obstacles()):
        parser.error(f"--device cuda: {'; '.join(obstacles)}")
    wrong = [n for n in arguments.patches if math.isqrt(n) ** 2 != n]
    if wrong:
        parser.error(f"--patches must be square numbers, the grid is square: got {wrong[0]}")
    torch.set_num_threads(arguments.threads)
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    photos = photographs(arguments.images)[: arguments.photos]
    print(f"photographs: {', '.join(path.name for path in photos)}")
    cases = [(math.isqrt(patches), dim) for patches in arguments.patches for dim in arguments.dim]
    if arguments.device == "cuda":
        rows = cuda_speed.run(cases, photos)
    else:
        rows = run(cases, photos, arguments.rounds, arguments.budget)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
