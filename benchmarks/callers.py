"""Measures the CPU time of a label for several threads, callers and values of OMP_WAIT_POLICY.

The sample photographs of scikit-image are labelled in turn, by `classic` at 480 pixels, in a new
process for each row. CPU time does not count waiting for other programs, but does count threads
that spin while they wait for work.

    python benchmarks/callers.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from inputs import machine

from selfment import PseudoLabeler
from selfment.images.load import load_image, sample_images

POLICIES = ("ACTIVE", "", "PASSIVE")
CASES = ((1, 4), (2, 4), (2, 1))  # threads of a call, callers at the same time


def measure(threads: int, callers: int, calls: int) -> None:
    """Prints the CPU time and the wall time of a label in milliseconds."""
    torch.set_num_threads(threads)
    labeler = PseudoLabeler("classic", 480)
    pictures = [load_image(entry.path)[0] for entry in sample_images()]
    expected = [labeler(picture).mask for picture in pictures]
    cpu, wall = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        turns = [pictures[index % len(pictures)] for index in range(calls)]
        labels = list(pool.map(labeler, turns))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    for index, label in enumerate(labels):
        assert torch.equal(label.mask, expected[index % len(expected)])
    print(f"{1000 * cpu / calls:8.1f} ms CPU {1000 * wall / calls:8.1f} ms wall")


def main() -> None:
    """Measures each case under each policy, ``--rounds`` times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=40, help="labels in each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        threads, callers = arguments.case
        measure(threads, callers, arguments.calls)
        return
    print(machine())
    command = [sys.executable, __file__, "--calls", str(arguments.calls), "--case"]
    for _ in range(arguments.rounds):
        for policy in POLICIES:
            environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
            environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
            for threads, callers in CASES:
                print(f"{policy or 'not set':8}{threads} threads, {callers} callers", end="")
                sys.stdout.flush()
                case = [*command, str(threads), str(callers)]
                subprocess.run(case, env=environment, check=True)


if __name__ == "__main__":
    main()
