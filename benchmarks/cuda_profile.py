"""Profiles a batch on a CUDA device: prints the launches and the time of each kernel.

    python benchmarks/cuda_profile.py [--patches 2304] [--dim 4096] [--batch 32] [--tau 0.2]

Times are torch.profiler's, over a few batches after a warm-up. `--once` labels one batch and prints
nothing, for profilers that observe the kernels themselves, such as ncu and nsys.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from itertools import cycle, islice
from typing import Any

import torch
from cuda_speed import input_sets
from inputs import photographs
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import selfment
from selfment.core import native as _native

BATCHES = 5


def threshold(text: str) -> float | str:
    """Parses a number, or auto."""
    return text if text == "auto" else float(text)


def kernels(run: Any, batches: int) -> tuple[Counter[str], Counter[str]]:
    """Returns launches and microseconds of each kernel over all batches, with copies and fills."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(batches):
            run()
        torch.cuda.synchronize()
    launches: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for event in seen.events() or ():
        if event.device_type == DeviceType.CUDA:
            launches[event.name] += 1
            times[event.name] += event.device_time
    return launches, times


def main() -> None:
    """Labels batches and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=2304, help="a square number (%(default)s)")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tau", type=threshold, default=0.2, help="a number or auto (%(default)s)")
    parser.add_argument("--once", action="store_true", help="label one batch and print nothing")
    arguments = parser.parse_args()
    if obstacles := _native.cuda_obstacles():
        parser.error("; ".join(obstacles))
    side = math.isqrt(arguments.patches)
    if side**2 != arguments.patches:
        parser.error(f"--patches must be a square number: got {arguments.patches}")
    device = torch.device("cuda", torch.cuda.current_device())
    sets = input_sets(photographs([])[:5], side, arguments.dim, arguments.batch, device)
    inputs = cycle(sets)

    def label() -> None:
        selfment.pseudo_label(next(inputs), (side, side), tau=arguments.tau)

    label()
    torch.cuda.synchronize()
    if arguments.once:
        return
    for _ in islice(sets, 2):
        label()
    launches, times = kernels(label, BATCHES)
    total, images = sum(times.values()), BATCHES * arguments.batch
    print(
        f"{torch.cuda.get_device_name()}: N = {arguments.patches}, d = {arguments.dim}, bf16, batch"
        f" {arguments.batch}, tau {arguments.tau}: {sum(launches.values()) / BATCHES:.0f} launches"
        f" a batch, {total / images:.1f} us a label in kernels"
    )
    print(f"{'launches a batch':>17} {'us a label':>11} {'share':>6}  kernel")
    for name, time in times.most_common():
        share = f"{100 * time / total:.0f} %"
        print(f"{launches[name] / BATCHES:17.1f} {time / images:11.2f} {share:>6}  {name[:100]}")


if __name__ == "__main__":
    main()
