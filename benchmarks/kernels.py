"""Counts registers, memory, instructions and barriers of the CUDA kernels, without a device.

    python benchmarks/kernels.py [--archs 80 90 120] [--all] [--write]

Prints a table of the kernels for bfloat16 features (`--all`: for all types), one row each; a cell
has a number for each architecture, or one if they are equal. Shared memory is that of a batch of 32
images of 2304 patches on an H200. `--write` puts the table into docs/cuda.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cuda_plan
import sass
import torch
from machine_code import Kernel, resident_blocks

import selfment
from selfment.core import block_ops
from selfment.core.arrays import as_features
from selfment.core.blocks import array_blocks
from selfment.core.graph import build
from selfment.core.ipo import run_ipo
from selfment.core.options import CutOptions, IpoOptions

PAGE = sass.ROOT / "docs/cuda.md"
HOPPER = (132, 227 << 10)  # multiprocessors, and bytes of shared memory of a block
OTHERS = re.compile(r"<(Float16|float|double|false)>")


def shared_memory(kernels: Sequence[Kernel], folder: Path) -> dict[str, int]:
    """Returns bytes of dynamic shared memory by kernel, with the names of `cuda_plan`."""
    registers = {kernel.name.partition(": ")[2]: kernel.registers for kernel in kernels}

    def occupancy(kernel: str, threads: int, shared: int) -> int:
        return resident_blocks(registers[kernel], threads, shared)

    device = cuda_plan.Device(folder, *HOPPER, occupancy)
    features = torch.empty(32, 2304, 512, dtype=torch.bfloat16)
    mask = torch.zeros(32, 2304, dtype=torch.bool)

    def everything() -> None:
        selfment.pseudo_label(features, (48, 48), graph="weighted")
        selfment.pseudo_label(features, (48, 48))
        graph = build(features, CutOptions())
        graph.paint(mask).matvec(torch.empty(32, 2304, dtype=torch.float64))
        gathered = block_ops.LandmarkSums.zeros(4, 2304, features.device)
        vectors, means = torch.empty(2, 4, 2304, dtype=torch.float64)
        block_ops.landmarks(features[0], features[1], CutOptions(), vectors, means, gathered)
        run_ipo(array_blocks(as_features(features[0])), mask[:1], IpoOptions())

    return {launch.kernel: launch.shared for launch in device.plan(everything).launches}


def number(kernel: Kernel, *, loads: bool, space: str, widths: Sequence[int]) -> int:
    """Returns the number of loads or stores of a space and of these widths in a kernel."""
    kind = "load" if loads else "store"
    return sum(
        n for (k, s, w), n in kernel.memory().items() if (k, s) == (kind, space) and w in widths
    )


def barriers(kernel: Kernel) -> int:
    """Returns the number of block barriers in the code."""
    return sum(i.name == "BAR" for i in kernel.instructions)


def fences(kernel: Kernel) -> int:
    """Returns the number of fences in the code."""
    return sum(i.name == "MEMBAR" for i in kernel.instructions)


ALL = (16, 8, 4, 2, 1)
COLUMNS: dict[str, Callable[[Kernel], int]] = {
    "registers": lambda k: k.registers,
    "stack, bytes": lambda k: k.stack,
    "spilled, bytes": lambda k: k.spills,
    "instructions": lambda k: len(k.instructions),
    "global loads of 16 bytes": lambda k: number(k, loads=True, space="global", widths=(16,)),
    "of 8": lambda k: number(k, loads=True, space="global", widths=(8,)),
    "of fewer": lambda k: number(k, loads=True, space="global", widths=(4, 2, 1)),
    "shared loads": lambda k: number(k, loads=True, space="shared", widths=ALL),
    "local loads": lambda k: number(k, loads=True, space="local", widths=ALL),
    "generic loads": lambda k: number(k, loads=True, space="generic", widths=ALL),
    "barriers": barriers,
    "fences": fences,
}


def write(script: str, text: str) -> None:
    """Replaces the text between the two markers of a script in docs/cuda.md."""
    begin, end = f"<!-- made by benchmarks/{script} -->", f"<!-- end of benchmarks/{script} -->"
    before, marker, rest = PAGE.read_text().partition(begin)
    if not marker or end not in rest:
        sys.exit(f"{PAGE} has no lines {begin} and {end}")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


def cell(values: Sequence[int]) -> str:
    """Formats one number if all are equal, otherwise all of them."""
    return str(values[0]) if len(set(values)) == 1 else " / ".join(map(str, values))


def table(archs: Sequence[str], every_type: bool) -> str:
    """Returns the table in Markdown."""
    rows: dict[str, list[Kernel]] = {}
    for arch in archs:
        for source in sass.SOURCES:
            for kernel in sass.compiled(source, arch):
                rows.setdefault(kernel.name, []).append(kernel)
    first = [kernels[0] for kernels in rows.values()]
    with tempfile.TemporaryDirectory() as folder:
        shared = shared_memory(first, Path(folder))
    lines = [f"| sm_{', '.join(archs)} | shared memory, bytes | {' | '.join(COLUMNS)} |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for name, kernels in sorted(rows.items()):
        if OTHERS.search(name) and not every_type:
            continue
        cells = [cell([column(kernel) for kernel in kernels]) for column in COLUMNS.values()]
        dynamic = shared.get(name.partition(": ")[2])
        memory = "" if dynamic is None else str(dynamic + kernels[0].shared)
        plain = name if every_type else re.sub(r"<\w+>", "", name)
        lines.append(f"| {plain} | {memory} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and writes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archs", nargs="+", default=["80", "90", "120"])
    parser.add_argument("--all", action="store_true", help="the kernels of all types of features")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    arguments = parser.parse_args()
    if lacks := sass.obstacle():
        sys.exit(lacks)
    made = table(arguments.archs, arguments.all)
    print(made)
    if arguments.write:
        write("kernels.py", made)


if __name__ == "__main__":
    main()
