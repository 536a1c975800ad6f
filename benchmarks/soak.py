"""Labels random features and images for a long time, and checks masks and memory.

    python benchmarks/soak.py [--minutes 60] [--threads-at-once 1] [--every 20] [--seed 0]

A share of the labels of features is compared with the dense reference in float64. A difference is
an error unless the cut is not determined: some entries of the vector could cross its mean, or
become its peak, by an error of rounding divided by the gap.

Every few seconds all threads stop, so that no label is in progress, and the memory is sampled:
allocated memory as malloc counts it, Python's objects included, and resident memory, which adds
fragments that malloc cannot return and memory from other sources. Growth is the slope over the
calls after the warm-up, which is half of them and at least 2000. The exit code is 1 for a wrong
mask, an error, or a growth that is more than 4 standard errors from zero and above 10 bytes per
call for allocated memory, or 100 for resident memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import re
import sys
import threading
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inputs import machine
from torch import Tensor

import selfment

BOUNDS = {"allocated": 10.0, "resident": 100.0}  # bytes per call
# MKL, which solves the reference's eigenproblems for torch, would keep each thread's largest
# buffers, and Python would allocate small objects without malloc.
ENVIRONMENT = {"MKL_DISABLE_FAST_MM": "1", "PYTHONMALLOC": "malloc"}
WARM_UP = 2000  # calls, at least
SAMPLE_EVERY = 5.0  # seconds
SIDES = (1, 34)  # of the grid, in patches
DIMS = (1, 3, 8, 24, 96, 384, 1100)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Samples = np.ndarray[Any, np.dtype[np.int64]]


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@dataclass
class Record:
    """The counts and samples so far, of all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0
    images: int = 0  # calls of PseudoLabeler
    checked: int = 0
    undetermined: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    # Calls, bytes allocated, bytes resident, and so on: plain numbers, which need little memory.
    samples: array[int] = field(default_factory=lambda: array("q"))


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallocInfo


def memory() -> tuple[int, int]:
    """Returns the allocated bytes, and the resident bytes without what malloc can return."""
    gc.collect()
    LIBC.malloc_trim(0)
    info = LIBC.mallinfo2()
    found = re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return info.uordblks + info.hblkhd, int(found[1]) * 1024


def contents(random: np.random.Generator) -> tuple[Tensor, tuple[int, int]]:
    """Returns (N, d) features of a random kind, size and dtype, and their grid."""
    h, w = (int(side) for side in random.integers(*SIDES, size=2))
    n, d = h * w, int(random.choice(DIMS))
    kind = random.integers(5)
    rows = random.normal(size=(n, d))
    if kind == 1:  # regions
        centres = random.normal(size=(int(random.integers(1, 6)), d))
        rows = centres[np.arange(n) * len(centres) // n] + 0.4 * rows
    elif kind == 2:  # waves
        y, x = np.mgrid[0:h, 0:w].reshape(2, n, 1) / 5
        rows = np.sin(x + random.uniform(0, 6, d)) * np.cos(y * random.uniform(0, 1, d)) + rows / 5
    elif kind == 3:  # outlier channels, and empty patches
        rows[:, ::5] *= 100
        rows[random.random(n) < 0.1] = 0
    elif kind == 4:  # something in common, and equal rows
        rows = rows + 2
        rows[: n // 3] = rows[0]
    dtype = DTYPES[random.integers(len(DTYPES))]
    return torch.from_numpy(rows).to(dtype), (h, w)


def determined(ours: selfment.PseudoLabels, theirs: selfment.PseudoLabels, graph: str) -> bool:
    """Returns whether no rounding of rows, solver or weights can change the reference's masks."""
    x = theirs.fiedler.double().flatten()
    rounding = 1e-6 if graph == "weighted" else 1e-9
    moved = (1e-6 + rounding / max(theirs.gap.item(), 1e-30)) * x.abs().max()
    same_peak = ours.seed == theirs.seed or x.abs()[ours.seed] < x.abs().max() - moved
    return bool(len(x) > 1 and same_peak and (x - x.mean()).abs().min() > moved)


def verdict(features: Tensor, copies: int, grid: tuple[int, int], graph: str) -> str:
    """Returns whether masks of a batch of copies are correct, wrong, or not determined."""
    ours = selfment.pseudo_label(features.expand(copies, -1, -1), grid, graph=graph)
    if (ours.mask != ours.mask[0]).any() or (ours.ncut_mask != ours.ncut_mask[0]).any():
        return "wrong"
    ours = selfment.PseudoLabels(*(value[0] for value in vars(ours).values()))
    theirs = selfment.reference.pseudo_label(features, grid, graph=graph)
    if torch.equal(ours.mask, theirs.mask) and torch.equal(ours.ncut_mask, theirs.ncut_mask):
        return "equal"
    return "wrong" if determined(ours, theirs, graph) else "undetermined"


class Worker:
    """The work of one of the threads, always in the same order."""

    def __init__(self, record: Record, seed: int, every: int) -> None:
        self.record, self.seed, self.every = record, seed, every
        self.random = np.random.default_rng(seed)
        self.labelers = [selfment.PseudoLabeler("classic", size) for size in (96, 160, 224)]
        self.count = 0

    def run(self, until: float) -> None:
        """Labels until the end of the time, or until an error."""
        while time.monotonic() < until and not self.record.errors:
            self.count += 1
            where = f"seed {self.seed}, call {self.count}"
            try:
                image = self.count % 10 == 0
                wrong = self.image() if image else self.features(where)
            except Exception as error:
                with self.record.lock:
                    self.record.errors.append(f"{where}: {type(error).__name__}: {error}")
                return
            with self.record.lock:
                self.record.calls += 1
                self.record.images += image
                self.record.wrong += wrong

    def image(self) -> list[str]:
        """Labels an image of noise with a darker quarter."""
        h, w = self.random.integers(20, 300, size=2)
        pixels = self.random.integers(0, 256, size=(h, w, 3), dtype=np.uint8)
        pixels[: h // 2, : w // 2] //= 4
        self.labelers[self.random.integers(len(self.labelers))](pixels)
        return []

    def features(self, where: str) -> list[str]:
        """Cuts or labels features; returns a description if they were checked and are wrong."""
        features, grid = contents(self.random)
        graph = "weighted" if self.random.random() < 0.4 else "binary"
        which, copies = self.random.integers(4), int(self.random.integers(1, 4))
        if self.count % self.every == 1 % self.every:
            found = verdict(features, copies, grid, graph)
            with self.record.lock:
                self.record.checked += 1
                self.record.undetermined += found == "undetermined"
            return [f"{where}: {tuple(features.shape)}, {graph}"] if found == "wrong" else []
        if which == 0 and len(features) > 4:
            selfment.ncut(features, k=3, graph=graph)
        elif which == 1:
            selfment.multi_label(features, grid, graph=graph)
        else:
            selfment.pseudo_label(features.expand(copies, -1, -1), grid, graph=graph)
        return []


def warm(record: Record) -> Samples:
    """Returns (M, 3) int64 samples after the warm-up: calls, bytes allocated, bytes resident."""
    samples = np.array(record.samples, dtype=np.int64).reshape(-1, 3)
    calls = samples[:, 0]
    after: Samples = samples[calls >= max(WARM_UP, calls.max(initial=0) // 2)]
    return after


def growth(calls: Samples, sizes: Samples) -> tuple[float, float]:
    """Returns bytes per call and the standard error; NaN if there are few samples."""
    if len(calls) < 10:
        return float("nan"), float("nan")
    x, y = calls - calls.mean(), sizes - sizes.mean()
    slope = float(x @ y / (x @ x))
    rest = y - slope * x
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def soak(minutes: float, at_once: int, every: int, seed: int) -> Record:
    """Labels in ``threads`` threads, and samples the memory whenever all of them have stopped."""
    record = Record()
    workers = [Worker(record, seed * 1000 + number, every) for number in range(at_once)]
    until = time.monotonic() + 60 * minutes
    with ThreadPoolExecutor(at_once) as pool:
        while time.monotonic() < until and not record.errors:
            stop = min(until, time.monotonic() + SAMPLE_EVERY)
            list(pool.map(lambda worker, stop=stop: worker.run(stop), workers))
            record.samples.extend((record.calls, *memory()))
    return record


def rows(record: Record, minutes: float, at_once: int) -> Iterator[tuple[str, str]]:
    """Returns the rows of the table."""
    yield "minutes, threads at once", f"{minutes:g}, {at_once}"
    yield "calls, of them images", f"{record.calls}, {record.images}"
    yield "masks checked, wrong", f"{record.checked}, {len(record.wrong)}"
    yield "cuts not determined, with other masks", f"{record.undetermined}"
    yield "unexpected errors", f"{len(record.errors)}"
    calls, *memories = warm(record).T
    for name, sizes in zip(BOUNDS, memories, strict=True):
        slope, error = growth(calls, sizes)
        ends = f"{sizes[0] / 2**20:.1f}, {sizes[-1] / 2**20:.1f} MiB" if len(sizes) else "-"
        yield f"{name} after the warm-up, at the end", ends
        yield f"growth of {name} per call", f"{slope:.1f} +- {error:.1f} bytes"


def main() -> None:
    """Prints the table; the exit code is 1 if something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads-at-once", type=int, default=1)
    parser.add_argument("--every", type=int, default=20, help="calls for each that is checked")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if platform.libc_ver()[0] != "glibc":
        sys.exit("error: reads the memory as glibc counts it")
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    record = soak(arguments.minutes, arguments.threads_at_once, arguments.every, arguments.seed)
    for name, value in rows(record, arguments.minutes, arguments.threads_at_once):
        print(f"{name:40} {value}")
    for line in [*record.wrong, *record.errors]:
        print(line)
    print(json.dumps(machine()))
    calls, *memories = warm(record).T
    grown = [growth(calls, sizes) for sizes in memories]
    if math.isnan(grown[0][0]):
        sys.exit("error: `--minutes` must be enough for 10 looks at the memory after the warm-up")
    bounded = zip(BOUNDS.values(), grown, strict=True)
    leaks = [slope > max(bound, 4 * error) for bound, (slope, error) in bounded]
    if record.wrong or record.errors or any(leaks):
        sys.exit(1)


if __name__ == "__main__":
    main()
