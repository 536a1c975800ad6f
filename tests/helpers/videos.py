"""Small videos to read, and what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def av() -> Any:
    """PyAV; tests that need it skip without it."""
    return pytest.importorskip("av")


SIZE = (96, 64)  # (W, H)


def pattern(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A dark frame with a bright patch at the upper left, whose colour depends on the index."""
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[: size[1] // 2, : size[0] // 3] = (220, 60 + 10 * (index % 16), 30)
    return pixels


def disc(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A noisy frame with a bright disc that moves to the right."""
    pixels = np.random.default_rng(index).normal(70, 6, (size[1], size[0], 3))
    pixels[disc_mask(index, size)] += (140, 40, -30)
    return pixels.clip(0, 255).astype(np.uint8)


def disc_mask(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """The (H, W) bool mask of the disc of :func:`disc`."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    x = size[0] * (0.35 + 0.02 * (index % 16))
    return (rows - size[1] / 2) ** 2 + (columns - x) ** 2 < (0.28 * size[1]) ** 2


def video(
    path: Path,
    times: Iterable[int] = range(12),
    size: tuple[int, int] = SIZE,
    codec: str = "h264",
    rate: int = 10,
    draw: Callable[[int, tuple[int, int]], np.ndarray] = pattern,
) -> Path:
    """Writes a video of a frame at each of the times, in units of 1 / rate seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av().open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 else "yuv420p"
        for index, time in enumerate(times):
            frame = av().VideoFrame.from_ndarray(draw(index, size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path) -> Path:
    """Notes in an MP4 file that its frames are to be shown a quarter turn clockwise."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one, zero, minus = (value.to_bytes(4, "big", signed=True) for value in (65536, 0, -65536))
    assert data[matrix : matrix + 20] == one + zero * 3 + one
    data[matrix : matrix + 20] = zero + one + zero + minus + zero
    path.write_bytes(data)
    return path


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """The frames of a written video and their times in seconds."""
    with av().open(str(path)) as container:
        frames = list(container.decode(container.streams.video[0]))
        assert len(container.streams) == 1
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames]
