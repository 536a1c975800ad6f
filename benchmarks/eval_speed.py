"""Times scoring: F_max by counting levels, folders with several processes, and the memory.

Results are compared first. Folders have generated pairs of 400 x 300 pixels: ellipses, and blurred,
shifted and noisy versions of them as predictions.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from inputs import machine
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from selfment.evaluation.folders import evaluate
from selfment.evaluation.metrics import f_max


def literal_f_max(saliency: Tensor, truth: Tensor) -> float:
    """Returns the paper's F_max, by one pass over the pixels for each threshold."""
    best = 0.0
    for k in range(255):
        positive = saliency > k / 255
        true = (positive & truth).sum()
        precision = true / (positive.sum() + 1e-7)
        recall = true / (truth.sum() + 1e-7)
        best = max(best, float(1.09 * precision * recall / (0.09 * precision + recall + 1e-7)))
    return best


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Returns the wall time of each of ``repeats`` runs."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def compare_f_max(side: int, repeats: int) -> None:
    """Prints the times of both implementations on one random map."""
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(side, side, generator=rng) < 0.3
    saliency = (torch.rand(side, side, generator=rng) + 0.6 * truth).clamp(max=1)
    levels = (255 * saliency).round().byte()
    for name, literal, ours in (
        ("float32", saliency, saliency),
        ("8-bit", levels.float() / 255, levels),
    ):
        difference = abs(literal_f_max(literal, truth) - f_max(ours, truth))
        if difference > 1e-6:
            sys.exit(f"error: F_max differs by {difference:g} on a {name} map")
        slow = seconds(lambda x=literal: literal_f_max(x, truth), repeats)  # type: ignore[misc]
        fast = seconds(lambda x=ours: f_max(x, truth), 5 * repeats)  # type: ignore[misc]
        ratio = statistics.median(slow) / statistics.median(fast)
        print(
            f"| F_max, {side} x {side}, {name} | {spread(slow)} | {spread(fast)} | {ratio:.0f} x |"
        )


def spread(times: list[float]) -> str:
    """Formats median, minimum and maximum in milliseconds."""
    low, middle, high = (1e3 * f(times) for f in (min, statistics.median, max))
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


def generate(folder: Path, count: int) -> None:
    """Writes ``count`` pairs."""
    rng = np.random.default_rng(0)
    size = (400, 300)
    for part in ("pred", "gt"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        x, y = rng.uniform(0.1, 0.5, 2) * size
        w, h = rng.uniform(0.15, 0.45, 2) * size
        truth, guess = Image.new("L", size), Image.new("L", size)
        ImageDraw.Draw(truth).ellipse([x, y, x + w, y + h], fill=255)
        shift = rng.uniform(-25, 25)
        ImageDraw.Draw(guess).ellipse([x + shift, y, x + w + shift, y + h], fill=225)
        blurred = np.asarray(guess.filter(ImageFilter.GaussianBlur(6)), dtype=np.float64)
        noisy = (blurred + rng.normal(0, 8, blurred.shape)).clip(0, 255).astype(np.uint8)
        truth.save(folder / f"gt/{index:05}.png")
        Image.fromarray(noisy).save(folder / f"pred/{index:05}.png")


def compare_workers(folder: Path, workers: int, repeats: int) -> None:
    """Prints the time of one process and of more, measured in turns."""
    alone: list[float] = []
    shared: list[float] = []
    for _ in range(repeats):
        scores = []
        for count, times in ((1, alone), (workers, shared)):
            start = time.perf_counter()
            report = evaluate(folder / "pred", folder / "gt", workers=count, progress=False)
            times.append(time.perf_counter() - start)
            scores.append((report.scores, report.images))
        if scores[0] != scores[1]:
            sys.exit("error: the scores depend on the number of processes")
    ratio = statistics.median(alone) / statistics.median(shared)
    name = f"{len(report.images)} pairs, 400 x 300, 1 and {workers} processes"
    print(f"| {name} | {spread(alone)} | {spread(shared)} | {ratio:.2f} x |")


def peak(folder: Path) -> int:
    """Returns the peak resident memory in MiB of a process that scores a folder."""
    code = (
        "import resource, sys\n"
        "from selfment.evaluation import evaluate\n"
        "evaluate(sys.argv[1] + '/pred', sys.argv[1] + '/gt', progress=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1280, help="in pixels (%(default)s)")
    parser.add_argument("--pairs", type=int, default=1000, help="in the folder (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="(%(default)s)")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("| what | before | now | ratio |\n|---|---|---|---|")
    compare_f_max(arguments.side, arguments.repeats)
    with tempfile.TemporaryDirectory() as name:
        few, many = Path(name, "few"), Path(name, "many")
        generate(few, max(1, arguments.pairs // 10))
        generate(many, arguments.pairs)
        compare_workers(many, arguments.workers, arguments.repeats)
        counts = f"{max(1, arguments.pairs // 10)} and {arguments.pairs} pairs"
        low, high = peak(few), peak(many)
        print(f"| peak memory, {counts} | {low} MiB | {high} MiB | {high / low:.2f} x |")


if __name__ == "__main__":
    main()
