"""Compares joint cuts by landmarks with the exact one, and measures one of a million patches.

    python benchmarks/landmarks.py [PHOTO ...] [--frames 5] [--side 48] [--landmarks 1000 2500 5000]
    python benchmarks/landmarks.py [PHOTO ...] --million [--landmarks 10000]

Inputs are clips, whose frames are a window that moves over a photograph, and mixtures, each frame
of which is another photograph; features are the embedded `classic` or `statistics`. The share of
patches that differ from the exact cut, in percent, is given as mean and worst over inputs and
seeds: on the side of the mean, in the initial mask and after IPO. An input of the million copies
the frames of a clip, with noise of its own in each copy. Times are of the processor, and next to
them on the wall: the machine may be shared. With ncut-pytorch installed, the million is cut by it
too.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from inputs import machine, photographs
from memory import peak_mib
from torch import Tensor

import selfment
from selfment import reference
from selfment.backbones import Backbone, load_backbone
from selfment.images.load import load_image

T = TypeVar("T")
Numbers = dict[str, float]

OPTIONS: dict[str, Any] = {"orient": "corners"}  # as `classic` asks for
MILLION = 450  # frames of 48 x 48 patches


def clip(backbone: Backbone, photo: Path, frames: int, side: int) -> Tensor:
    """Returns (frames, side * side, d) features of a window that moves along the diagonal."""
    image, _ = load_image(photo)
    w, h = image.size
    windows = [
        image.crop(
            tuple(round(v) for v in (step * w, step * h, (step + 0.7) * w, (step + 0.7) * h))
        )
        for step in torch.linspace(0, 0.3, frames).tolist()
    ]
    pixels = [backbone.preprocess(window, side * backbone.patch_size) for window in windows]
    return torch.cat([backbone(one[None]) for one in pixels])


def mixture(backbone: Backbone, photos: list[Path], side: int) -> Tensor:
    """Returns (frames, side * side, d) features of photographs."""
    return torch.cat([clip(backbone, photo, 1, side) for photo in photos])


def inputs(
    backbone: Backbone, photos: list[Path], frames: int, side: int, count: int
) -> Iterator[tuple[str, Tensor]]:
    """Yields names and features of ``count`` clips, and of as many mixtures."""
    step = max(1, len(photos) // count)
    for index in range(count):
        first = index * step
        yield f"clip {index}", clip(backbone, photos[first % len(photos)], frames, side)
        some = [photos[(first + 7 * k) % len(photos)] for k in range(frames)]
        yield f"mixture {index}", mixture(backbone, some, side)


def timed(run: Callable[[], T]) -> tuple[T, float, float]:
    """Returns the result, the seconds of the processor and those on the wall."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.process_time() - processor, time.perf_counter() - wall


def differences(ours: Any, exact: Any, degrees: Tensor | None = None) -> Numbers:
    """Returns the shares of patches that differ, in percent, and the angle of D^1/2 x.

    Without degrees, D is the identity.
    """
    x, y = ours.fiedler.flatten().double(), exact.fiedler.flatten().double()
    side = ((x > x.mean()) != (y > y.mean())).double().mean().item()
    if degrees is not None:
        x, y = x * degrees.sqrt(), y * degrees.sqrt()
    cosine = abs((x @ y / x.norm() / y.norm()).item())
    return {
        "side": 100 * min(side, 1 - side),
        "init": 100 * (ours.ncut_mask != exact.ncut_mask).double().mean().item(),
        "IPO": 100 * (ours.mask != exact.mask).double().mean().item(),
        "angle": math.degrees(math.acos(min(1.0, cosine))),
    }


def verify(backbone: Backbone, photo: Path) -> None:
    """Ends the program unless small cuts are the reference's, or exact with all patches."""
    grid, m = (16, 16), 128
    small = clip(backbone, photo, 2, 16)
    ours = selfment.joint_label(small, grid, landmarks=m, **OPTIONS)
    dense = reference.joint_label(small, grid, landmarks=m, **OPTIONS)
    exact = selfment.joint_label(small, grid, **OPTIONS)
    every = selfment.joint_label(small, grid, landmarks=10**9, **OPTIONS)
    same = torch.equal(ours.mask, dense.mask) and torch.equal(every.fiedler, exact.fiedler)
    if not same:
        sys.exit("error: landmarks differ from the reference")


def compare(arguments: argparse.Namespace, photos: list[Path]) -> None:
    """Prints the differences to the exact cut, for each number of landmarks."""
    backbone = load_backbone(arguments.backbone)
    verify(backbone, photos[0])
    grid = (arguments.side, arguments.side)
    found: dict[tuple[str, int], list[Numbers]] = {}
    seconds: list[float] = []
    shape = arguments.frames, arguments.side, arguments.count
    for name, features in inputs(backbone, photos, *shape):
        exact, processor, _ = timed(partial(selfment.joint_label, features, grid, **OPTIONS))
        degrees = selfment.affinity(features.flatten(0, 1)).degrees
        seconds.append(processor)
        for m in arguments.landmarks:
            for seed in range(arguments.seeds):
                options = {"landmarks": m, "landmark_seed": seed, **OPTIONS}
                label, processor, _ = timed(
                    partial(selfment.joint_label, features, grid, **options)
                )
                numbers = differences(label, exact, degrees) | {"ratio": processor / seconds[-1]}
                estimates = ("angle", "changing", "side_margin")
                numbers |= {f"estimated {n}": getattr(label, n).item() for n in estimates}
                found.setdefault((name.split()[0], m), []).append(numbers)
                if arguments.verbose:
                    row = {"input": name, "m": m, "seed": seed, "gap": exact.gap.item(), **numbers}
                    print(json.dumps(row), flush=True)
    patches = arguments.frames * arguments.side**2
    print(f"N = {patches}, exact: {spread(seconds)} s of the processor")
    for (kind, m), rows in found.items():
        print(f"{kind:8} m = {m:6}: {summary(rows)}")


def summary(rows: list[Numbers]) -> str:
    """Returns means and worst cases in words."""
    columns = []
    for name in ("side", "init", "IPO", "angle"):
        values = [row[name] for row in rows]
        columns.append(f"{name} {statistics.mean(values):.3g} / {max(values):.3g}")
    flipped = sum(row["IPO"] > 50 for row in rows)
    above = sum(row["angle"] > row["estimated angle"] for row in rows)
    return (
        f"{', '.join(columns)}; the other side {flipped} of {len(rows)}; angle above its estimate "
        f"{above}; time / exact {spread([row['ratio'] for row in rows])}"
    )


def spread(values: list[float]) -> str:
    """Returns the median and the range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def million(arguments: argparse.Namespace, photos: list[Path]) -> None:
    """Prints time and memory of cuts through a million patches, and what they say of themselves."""
    backbone = load_backbone(arguments.backbone)
    verify(backbone, photos[0])
    frames = clip(backbone, photos[0], 5, 48)
    generator = torch.Generator().manual_seed(0)
    features = torch.empty(MILLION, *frames.shape[1:])
    size = frames.std()
    for index, copy in enumerate(features):
        noise = torch.randn(copy.shape, generator=generator)
        torch.add(frames[index % len(frames)], noise, alpha=0.1 * float(size), out=copy)
    labels = []
    for m in arguments.landmarks:
        (label, processor, wall), grown = peak_mib(
            partial(
                timed,
                partial(selfment.joint_label, features, (48, 48), landmarks=m, **OPTIONS),
            )
        )
        labels.append(label)
        numbers = ("eigenvalue", "gap", "residual", "angle", "turn", "changing", "side_margin")
        print(
            f"N = {features.shape[:2].numel()}, m = {m}: {processor:.1f} s of the processor, "
            f"{wall:.1f} s on the wall, {grown:.0f} MiB beyond the features; "
            + ", ".join(f"{name} {getattr(label, name).item():.3g}" for name in numbers),
            flush=True,
        )
    for m, label in zip(arguments.landmarks, labels, strict=True):
        print(f"m = {m}, differences to m = {arguments.landmarks[-1]}: {said(label, labels[-1])}")
    peer(features, labels[-1])


def said(ours: Any, other: Any) -> str:
    """Returns the differences in words."""
    return ", ".join(f"{name} {value:.4g}" for name, value in differences(ours, other).items())


def peer(features: Tensor, label: Any) -> None:
    """Cuts the features by ncut-pytorch, if it is installed: its second vector over its first."""
    try:
        from ncut_pytorch import Ncut  # type: ignore[import-not-found]
    except ImportError:
        print("ncut-pytorch is not installed")
        return
    rows = features.flatten(0, 1)
    (vectors, processor, wall), grown = peak_mib(
        lambda: timed(lambda: Ncut(n_eig=20, device="cpu").fit_transform(rows))
    )
    x = (vectors[:, 1] / vectors[:, 0]).double()
    y = label.fiedler.flatten().double()
    side = ((x > x.mean()) != (y > y.mean())).double().mean().item()
    print(
        f"ncut-pytorch: {processor:.1f} s of the processor, {wall:.1f} s on the wall, {grown:.0f} "
        f"MiB; {100 * min(side, 1 - side):.3g} % of the patches are on another side"
    )


def main() -> None:
    """Reads the arguments, and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="*", help="photographs; else the samples of scikit-image")
    parser.add_argument("--backbone", choices=("classic", "statistics"), default="classic")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--side", type=int, default=48, help="patches along a side of a frame")
    parser.add_argument("--count", type=int, default=5, help="clips, and mixtures")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--landmarks", type=int, nargs="+", default=[1000, 2500, 5000])
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="print a line for each cut")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    print(json.dumps(machine()))
    photos = photographs(arguments.photos)
    (million if arguments.million else compare)(arguments, photos)


if __name__ == "__main__":
    main()
