"""Measures the peak resident memory of a function; here, of a cut through 50 frames at once.

    python benchmarks/memory.py [PHOTO] [--frames 50] [--side 32]

The frames are views of a window of half a photograph's size that moves along its diagonal.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from inputs import machine, photographs
from torch import Tensor

import selfment
from selfment.backbones import load_backbone
from selfment.images.load import load_image

T = TypeVar("T")


def peak_mib(run: Callable[[], T]) -> tuple[T, float | None]:
    """Returns the result of ``run``, and how many MiB memory grew (None except on Linux)."""
    gc.collect()
    try:
        # Freed memory that the allocator keeps would hide new allocations.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
    except (AttributeError, OSError):
        return run(), None
    result = run()
    return result, (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def panning(photo: Path, frames: int, side: int) -> Tensor:
    """Returns (frames, side * side, 384) float32 `statistics` features of a moving window."""
    backbone = load_backbone("statistics")
    image, _ = load_image(photo)
    w, h = image.size
    features = []
    for step in torch.linspace(0, 0.5, frames).tolist():
        window = image.crop(
            tuple(round(v) for v in (step * w, step * h, (step + 0.5) * w, (step + 0.5) * h))
        )
        pixels = backbone.preprocess(window, side * backbone.patch_size)
        features.append(backbone(pixels[None])[0])
    return torch.stack(features)


def main() -> None:
    """Cuts the frames jointly; prints time, memory and the quality of the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", nargs="?", help="a photograph; else a sample of scikit-image's")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--side", type=int, default=32, help="patches along a side of a frame")
    arguments = parser.parse_args()
    photo = photographs([arguments.photo] if arguments.photo else [])[0]
    features = panning(photo, arguments.frames, arguments.side)
    grid = (arguments.side, arguments.side)

    few = features[:: max(1, arguments.frames // 2)]
    ours = selfment.joint_label(few, grid)
    dense = selfment.reference.joint_label(few, grid)
    agree = torch.equal(ours.mask, dense.mask) and torch.equal(ours.ncut_mask, dense.ncut_mask)

    start = time.perf_counter()
    label, peak = peak_mib(lambda: selfment.joint_label(features, grid))
    seconds = time.perf_counter() - start
    n, d = label.mask.numel(), features.shape[2]
    print(f"{photo.name}: {arguments.frames} frames, N = {n}, d = {d}")
    print(f"masks of {len(few)} frames equal the dense reference's: {agree}")
    print(f"{seconds:.1f} s, {peak or float('nan'):.0f} MiB at the peak beyond the features")
    print(
        f"residual {label.residual:.0e}, gap {label.gap:.2g}, {label.lanczos_iters} products, "
        f"{label.ipo_iters} IPO steps, foreground {label.mask.float().mean():.0%}"
    )
    print(json.dumps(machine()))


if __name__ == "__main__":
    main()
