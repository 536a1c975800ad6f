"""Measures the cost of many images besides the labels: listing, planning, records.

Empty files replace images and masks; no image is labelled. In the second run everything is done.

    python benchmarks/planning.py --count 200000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import machine

from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs.folder import OutputFolder
from selfment.jobs.label_job import LabelJob

IN_A_FOLDER = 1000


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def run(folder: Path, resumed: bool) -> None:
    """Lists, plans and records every image that is not yet recorded; prints a table."""
    out = folder / "out"
    count = 0

    def report(what: str, since: float, before: float) -> None:
        seconds, mib = time.perf_counter() - since, resident() - before
        print(f"| {what} | {1e6 * seconds / count:.1f} us | {mib * 2**20 / count:.0f} B |")

    print(
        f"\n{'Second' if resumed else 'First'} run\n| | time of an image | memory |\n|---|---|---|"
    )
    start, before = time.perf_counter(), resident()
    entries = find_images([folder / "photos"], out=out)
    count = len(entries)
    report("list (find_images)", start, before)
    start, before = time.perf_counter(), resident()
    results = OutputFolder(out, LabelJob(PseudoLabeler()))
    report("read the records", start, before)
    start, before = time.perf_counter(), resident()
    tasks = results.plan(entries)
    report("plan", start, before)
    assert len(tasks) == (0 if resumed else count)
    start, before = time.perf_counter(), resident()
    numbers = {"eigenvalue": 0.9876543210123456, "gap": 0.0123456789012345, "foreground": 0.25}
    steps = {"residual": 1.23456789012345e-12, "lanczos_iters": 14, "ipo_iters": 9}
    for task in tasks:
        task.read_stat()
        (out / task.name).parent.mkdir(exist_ok=True)
        (out / task.name).write_bytes(b"mask")
        results.start(task)
        task.seconds = 0.1234
        results.finish(task, {**numbers, **steps})
    if tasks:
        report("record", start, before)
        size = (out / "labels.jsonl").stat().st_size / count
        print(f"| labels.jsonl while it runs | {size:.0f} B on disk | |")
    start, before = time.perf_counter(), resident()
    results.records.close()
    report("merge the records", start, before)
    size = (out / "labels.jsonl").stat().st_size / count
    print(f"| labels.jsonl | {size:.0f} B on disk | |")


def main() -> None:
    """Runs twice, each time in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="images (%(default)s)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        run(arguments.folder, (arguments.folder / "out").exists())
        return
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    with tempfile.TemporaryDirectory() as name:
        for index in range(arguments.count):
            file = Path(name, f"photos/{index // IN_A_FOLDER:06}/{index:09}.jpg")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        for _ in range(2):
            sys.stdout.flush()
            subprocess.run([sys.executable, __file__, "--folder", name], check=True)


if __name__ == "__main__":
    main()
