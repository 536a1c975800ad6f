"""Measures how labelling scales: images per second with more processes, and the cost of each stage.

    python benchmarks/scale.py photos/ --count 100      # one process, torchrun, Ray
    python benchmarks/scale.py photos/ --stages         # the table of docs/scale.md

The first runs `selfment label` with one process and as many threads as cores, `torchrun` with one
process of one thread for each core, and `--engine ray` in the same way, on links to the same
photographs; masks are compared before anything is printed. The rate is that of the result files,
first to last; the wall time includes the start of the processes.

`--stages` times the stages of one image on one thread, measures the bytes that are stored, and
extrapolates to 10 million and 1 billion images. `--vit` adds the forward pass of a timm model with
random weights. `--price` is the price of a core-hour, in any currency.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from inputs import machine, photographs

from selfment import PseudoLabeler
from selfment.backbones import Backbone, load_backbone
from selfment.images.draw import mask_image
from selfment.images.load import load_image

T = TypeVar("T")

# With "-m", Python in the source tree would import the folder instead of the package.
SELFMENT = str(Path(sys.executable).with_name("selfment"))
MANY = (10_000_000, 1_000_000_000)


def links(photos: Sequence[Path], folder: Path, count: int) -> Path:
    """Makes a folder with ``count`` links to the photographs."""
    folder.mkdir()
    for index, photo in enumerate(islice(cycle(photos), count)):
        (folder / f"{index:06}{photo.suffix}").symlink_to(photo.resolve())
    return folder


def masks_of(out: Path) -> dict[str, Path]:
    """Returns the masks under a folder of results, by name."""
    return {path.name: path for path in out.rglob("[!.]*.png")}


def throughput(photos: Sequence[Path], count: int, size: int, rounds: int) -> None:
    """Prints images per second for the three engines, measured in turns."""
    cores = os.cpu_count() or 1
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(cores), "--no-python"]
    ways = {
        f"one process, {cores} threads": [SELFMENT, "label", "--threads", str(cores)],
        f"torchrun, {cores} processes of 1 thread": [
            *launch,
            *(SELFMENT, "label", "--threads", "1"),
        ],
        f"Ray, {cores} workers of 1 thread": [
            *(SELFMENT, "label", "--engine", "ray", "--workers", str(cores), "--threads", "1")
        ],
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    walls: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = links(photos, Path(name, "photos"), count)
            reference: dict[str, bytes] = {}
            for number, (way, command) in enumerate(ways.items()):
                out = Path(name, str(number))
                start = time.perf_counter()
                subprocess.run(
                    [*command, str(folder), "--out", str(out), "--size", str(size)],
                    env={**os.environ, "OMP_NUM_THREADS": str(cores if number == 0 else 1)},
                    capture_output=True,
                    check=True,
                )
                walls[way].append(time.perf_counter() - start)
                masks = masks_of(out)
                found = {mask: path.read_bytes() for mask, path in masks.items()}
                reference = reference or found
                if len(found) != count or found != reference:
                    sys.exit(f"error: the masks of {way} are not those of one process")
                times = sorted(path.stat().st_mtime for path in masks.values())
                rates[way].append((count - 1) / (times[-1] - times[0]))
    print(f"\n{count} images at {size} x {size}, {rounds} rounds; masks are equal")
    print("| | images/s | ratio | wall time |\n|---|---|---|---|")
    first = statistics.median(next(iter(rates.values())))
    for way in ways:
        rate, wall = statistics.median(rates[way]), statistics.median(walls[way])
        spread = f"{min(rates[way]):.2f} to {max(rates[way]):.2f}"
        print(f"| {way} | {rate:.2f} ({spread}) | {rate / first:.2f} | {wall:.0f} s |")


class Stages:
    """CPU seconds of named stages, for several images; waiting is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, run: Callable[[], T]) -> T:
        """Returns the result of ``run``, and stores its time."""
        start = time.process_time()
        value = run()
        self.seconds.setdefault(name, []).append(time.process_time() - start)
        return value

    def medians(self) -> dict[str, float]:
        """Returns the median of each stage."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}


def stages(photos: Sequence[Path], size: int, vit: str | None, price: float | None) -> None:
    """Prints the times and bytes of one image, and of many."""
    torch.set_num_threads(1)
    labeler = PseudoLabeler(size=size)
    timed = Stages()
    bytes_of: dict[str, list[int]] = {"image": [], "mask": [], "record": []}
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        labeler(photos[0])
        for index, photo in enumerate(photos):
            picture = timed("decode", lambda photo=photo: load_image(photo)[0])  # type: ignore[misc]
            pixels = timed("resize", lambda picture=picture: labeler.preprocess(picture))  # type: ignore[misc]
            tokens = timed("backbone", lambda x=pixels: labeler.backbone(x[None]))  # type: ignore[misc]
            labels = timed("graph, cut, IPO", lambda x=tokens: labeler.label_features(x))  # type: ignore[misc]
            mask = out / f"{index}.png"
            timed(
                "write",
                lambda mask=mask, labels=labels, size=picture.size: (  # type: ignore[misc]
                    mask_image(labels.mask[0], size).save(mask)
                ),
            )
            bytes_of["image"].append(photo.stat().st_size)
            bytes_of["mask"].append(mask.stat().st_size)
        _label_all(photos, out / "run", size)
        lines = (out / "run/labels.jsonl").read_text().splitlines()
        bytes_of["record"] = [len(line) + 1 for line in lines]
    backbones = {"backbone": f"`{labeler.backbone_name}`"}
    if vit is not None:
        backbones |= {dtype: f"{vit}, {dtype}" for dtype in ("float32", "bfloat16")}
        for dtype, backbone in _random_vits(vit).items():
            image = labeler.preprocess(load_image(photos[0])[0])[None]
            backbone(image)
            for _ in range(5):
                timed(dtype, lambda backbone=backbone, x=image: backbone(x))  # type: ignore[misc]
    seconds = timed.medians()
    others = sum(value for name, value in seconds.items() if name not in backbones)
    totals = {name: others + seconds[name] for name in backbones}
    print(f"\nOne image of {len(photos)} at {size} x {size}, one thread: median CPU time")
    heads = " | ".join(f"share with {name}" for name in backbones.values())
    print(f"| stage | CPU ms | {heads} |")
    print("|---|---|" + "---|" * len(backbones))
    for name, value in seconds.items():
        shares = [
            "" if name in backbones and name != own else f"{value / totals[own]:.1%}"
            for own in backbones
        ]
        print(f"| {backbones.get(name, name)} | {1e3 * value:.1f} | {' | '.join(shares)} |")
    sums = " | ".join(f"{1e3 * value:.1f} ms" for value in totals.values())
    print(f"| together | | {sums} |")
    total = totals["backbone"]
    h, w = labeler.backbone.grid(size)
    mean = {name: statistics.mean(values) for name, values in bytes_of.items()}
    features = 2 * h * w * labeler.backbone.dim
    print("\n| | one image | 10 million | 1 billion |\n|---|---|---|---|")
    hours = [f"{n * total / 3600:,.0f} h" for n in MANY]
    print(f"| core-hours, all stages | {total:.2f} s | {' | '.join(hours)} |")
    if price is not None:
        prices = [f"{price * n * total / 3600:,.0f}" for n in MANY]
        print(f"| their price | | {' | '.join(prices)} |")
    for name, size_of in (
        ("images read", mean["image"]),
        ("masks (PNG)", mean["mask"]),
        ("records (JSON lines)", mean["record"]),
        (f"features, float16, {h * w} x {labeler.backbone.dim}", features),
    ):
        print(f"| {name} | {' | '.join(_bytes(n * size_of) for n in (1, *MANY))} |")
    print(
        f"\nprice of a million labels = P x 1e6 x {total:.4f} s / 3600 s = "
        f"{1e6 * total / 3600:.0f} P, with P the price of a core-hour"
    )


def _random_vits(name: str) -> dict[str, Backbone]:
    """Returns a ViT with random weights that computes in float32, and in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pt")
        model: Any = timm.create_model(name, pretrained=False)
        torch.save(model.state_dict(), weights)
        return {
            dtype: load_backbone(name, weights=weights, dtype=dtype, device="cpu")
            for dtype in ("float32", "bfloat16")
        }


def _bytes(size: float) -> str:
    power = min(5, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def _label_all(photos: Sequence[Path], out: Path, size: int) -> None:
    command = [SELFMENT, "label", *map(str, photos), "--out", str(out)]
    subprocess.run([*command, "--size", str(size)], capture_output=True, check=True)


def main() -> None:
    """Prints the tables that the arguments select."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("images", nargs="*", help="files, folders, globs (default: samples)")
    add("--count", type=int, default=100, help="names for the images (%(default)s)")
    add("--size", type=int, default=768, help="(%(default)s)")
    add("--rounds", type=int, default=1, help="(%(default)s)")
    add("--stages", action="store_true", help="times and bytes of an image's stages")
    add("--vit", metavar="NAME", help="with --stages: also a timm ViT with random weights")
    add("--price", type=float, metavar="P", help="with --stages: of a core-hour")
    arguments = parser.parse_args()
    photos = photographs(arguments.images)
    print(json.dumps(machine()))
    if arguments.stages:
        stages(photos, arguments.size, arguments.vit, arguments.price)
    else:
        throughput(photos, arguments.count, arguments.size, arguments.rounds)


if __name__ == "__main__":
    main()
