"""Labels random features and images for a long time, and looks at masks and memory.

    python benchmarks/soak.py [--minutes 60] [--threads-at-once 1] [--every 20] [--seed 0]

A share of the masks is compared with the dense reference in float64. Where they differ, that is
wrong unless the cut is not determined: entries of the vector that rounding, over the gap, could
move across its mean, or make its peak. Growth is the slope of the resident memory over the calls
after the warm-up, which is half of them and 2000 at least. The exit code is 1 for a wrong mask or
an error, and for a growth above 100 bytes per call that is more than 4 standard errors from none.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from inputs import machine
from torch import Tensor

import selfment

BOUND = 100.0  # bytes per call
WARM_UP = 2000  # calls, at least
SAMPLE_EVERY = 1.0  # seconds
SIDES = (1, 34)  # of the grid, in patches
DIMS = (1, 3, 8, 24, 96, 384, 1100)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


Sample = tuple[int, int]  # calls, bytes


@dataclass
class Record:
    """What has happened so far, in all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0
    images: int = 0  # calls of PseudoLabeler
    checked: int = 0
    undetermined: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def resident() -> int:
    """Bytes of the process in memory, without what is free but kept for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def contents(random: np.random.Generator) -> tuple[Tensor, tuple[int, int]]:
    """(N, d) features of a random kind, size and dtype, and their grid."""
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
    """Whether no mask of the reference hangs on rounding, of the field, the solver or weights."""
    x = theirs.fiedler.double().flatten()
    rounding = 1e-6 if graph == "weighted" else 1e-9
    moved = (1e-6 + rounding / max(theirs.gap.item(), 1e-30)) * x.abs().max()
    same_peak = ours.seed == theirs.seed or x.abs()[ours.seed] < x.abs().max() - moved
    return bool(len(x) > 1 and same_peak and (x - x.mean()).abs().min() > moved)


def verdict(features: Tensor, grid: tuple[int, int], graph: str) -> str:
    """Of the masks: equal to the reference's, wrong, or not determined."""
    ours = selfment.pseudo_label(features, grid, graph=graph)
    theirs = selfment.reference.pseudo_label(features, grid, graph=graph)
    if torch.equal(ours.mask, theirs.mask) and torch.equal(ours.ncut_mask, theirs.ncut_mask):
        return "equal"
    return "wrong" if determined(ours, theirs, graph) else "undetermined"


def labels(record: Record, seed: int, every: int, until: float) -> None:
    """Labels until the time is over."""
    random = np.random.default_rng(seed)
    labeler = {size: selfment.PseudoLabeler("classic", size) for size in (96, 160, 224)}
    count = 0
    while time.monotonic() < until:
        count += 1
        try:
            image = count % 10 == 0
            if image:
                size = random.integers(20, 300, size=2)
                pixels = random.integers(0, 256, size=(*size, 3), dtype=np.uint8)
                pixels[: size[0] // 2, : size[1] // 2] //= 4
                labeler[int(random.choice(list(labeler)))](pixels)
            else:
                features, grid = contents(random)
                graph = "weighted" if random.random() < 0.4 else "binary"
                which = random.integers(4)
                if which == 0 and len(features) > 4:
                    selfment.ncut(features, k=3, graph=graph)
                elif which == 1:
                    selfment.multi_label(features, grid, graph=graph)
                else:
                    batch = features.expand(int(random.integers(1, 4)), -1, -1)
                    selfment.pseudo_label(batch, grid, graph=graph)
                if count % every == 1:
                    found = verdict(features, grid, graph)
                    with record.lock:
                        record.checked += 1
                        record.undetermined += found == "undetermined"
                        if found == "wrong":
                            shape = tuple(features.shape)
                            record.wrong.append(f"seed {seed}, call {count}: {shape}, {graph}")
            with record.lock:
                record.calls += 1
                record.images += image
        except Exception as error:
            with record.lock:
                record.errors.append(f"seed {seed}, call {count}: {type(error).__name__}: {error}")
            return


def warm(samples: list[Sample]) -> list[Sample]:
    """Those after the warm-up."""
    first = max(WARM_UP, samples[-1][0] // 2)
    return [sample for sample in samples if sample[0] >= first]


def growth(samples: list[Sample]) -> tuple[float, float]:
    """Bytes per call and its standard error, after the warm-up; NaN if these are few."""
    if len(warm(samples)) < 10:
        return float("nan"), float("nan")
    calls, sizes = np.array(warm(samples), dtype=np.float64).T
    x = calls - calls.mean()
    slope = float(x @ sizes / (x @ x))
    rest = sizes - sizes.mean() - slope * x
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def soak(minutes: float, at_once: int, every: int, seed: int) -> Record:
    """Labels in so many threads, and looks at the memory meanwhile."""
    record = Record()
    until = time.monotonic() + 60 * minutes
    threads = [
        threading.Thread(target=labels, args=(record, seed * 1000 + number, every, until))
        for number in range(at_once)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        record.samples.append((record.calls, resident()))
        time.sleep(SAMPLE_EVERY)
    return record


def rows(record: Record, minutes: float, at_once: int) -> Iterator[tuple[str, str]]:
    """The table."""
    slope, error = growth(record.samples)
    first, last = [*warm(record.samples), record.samples[-1]][0][1], record.samples[-1][1]
    yield "minutes, threads at once", f"{minutes:g}, {at_once}"
    yield "calls, of them images", f"{record.calls}, {record.images}"
    yield "masks checked, wrong", f"{record.checked}, {len(record.wrong)}"
    yield "cuts not determined, with other masks", f"{record.undetermined}"
    yield "unexpected errors", f"{len(record.errors)}"
    yield "resident after the warm-up, at the end", f"{first / 2**20:.0f}, {last / 2**20:.0f} MiB"
    yield "growth per call", f"{slope:.1f} +- {error:.1f} bytes"
    yield "leak per million calls", f"{slope * 1e6 / 2**20:.1f} +- {error * 1e6 / 2**20:.1f} MiB"


def main() -> None:
    """Prints the table; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--threads-at-once", type=int, default=1)
    parser.add_argument("--every", type=int, default=20, help="calls for each that is checked")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        sys.exit("error: reads the memory as Linux counts it")
    record = soak(arguments.minutes, arguments.threads_at_once, arguments.every, arguments.seed)
    for name, value in rows(record, arguments.minutes, arguments.threads_at_once):
        print(f"{name:40} {value}")
    for line in [*record.wrong, *record.errors]:
        print(line)
    print(json.dumps(machine()))
    slope, error = growth(record.samples)
    if record.wrong or record.errors or (slope > BOUND and slope > 4 * error):
        sys.exit(1)


if __name__ == "__main__":
    main()
