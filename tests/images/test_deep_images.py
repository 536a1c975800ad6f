"""Images of 16 and more bits, and with transparency, are read to the same bytes in any boxes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import processes
from selfment.images.load import load_image


def deep_images() -> dict[str, Image.Image]:
    """Returns 13 x 9 images of one channel of more than 8 bits, in and outside of their range."""
    rng = np.random.RandomState(0)
    words, noise = rng.randint(0, 65536, (9, 13)), rng.randn(9, 13).astype(np.float32)
    strange = noise.copy()
    strange[0, :4] = np.nan, np.inf, -np.inf, -0.0
    images = {
        mode: Image.frombytes(mode, (13, 9), words.astype(dtype).tobytes())
        for mode, dtype in [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")]
    }
    integers = {"words": words, "wide": rng.randint(-(2**31), 2**31, (9, 13)), "minus": words * -3}
    images |= {name: Image.fromarray(values.astype(np.int32)) for name, values in integers.items()}
    floats = {"unit": np.abs(np.sin(noise)), "noise": noise, "huge": noise * np.float32(1e38)}
    floats |= {"strange": strange, "none": noise * np.nan, "equal": noise * 0 - 3}
    return images | {name: Image.fromarray(values) for name, values in floats.items()}


BOXES = [1, 5, 13, 40, 1 << 20]  # pixels: parts of a row, rows, and all


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("name", deep_images())
def test_deep_images_by_boxes(name, box, monkeypatch):
    monkeypatch.setattr("selfment.images.load._BOX", box)
    values = np.asarray(deep_images()[name]).astype(np.float64)
    notes = [] if np.isfinite(values).all() else ["values that are not finite read as 0"]
    values[~np.isfinite(values)] = 0
    low, high = values.min(), values.max()
    span = 1.0 if np.asarray(deep_images()[name]).dtype == np.float32 else 65535.0
    if low < 0 or high > span:
        notes.append(f"scaled from [{low:g}, {high:g}]")
        values, span = values - low, (high - low) or 1.0
    expected = np.rint(values * (255 / span)).astype(np.uint8)
    image, found = load_image(deep_images()[name])
    assert (image.mode, found) == ("RGB", notes)
    assert np.array_equal(np.asarray(image), np.dstack([expected] * 3))


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "PA", "P", "P of bytes", "RGB", "L", "1"])
def test_transparency_by_boxes(mode, box, monkeypatch):
    monkeypatch.setattr("selfment.images.load._BOX", box)
    levels = np.random.RandomState(0).randint(0, 256, (9, 13, 4)).astype(np.uint8)
    given = Image.fromarray(levels)
    if mode in ("PA", "P", "P of bytes"):
        given = given.convert("RGB").quantize(8)
        given.info["transparency"] = bytes(range(0, 256, 32)) if mode == "P of bytes" else 3
        given = given.convert("PA") if mode == "PA" else given
    else:
        given = given.convert(mode)
        if mode in ("RGB", "L", "1"):
            given.info["transparency"] = given.getpixel((4, 4))
    opaque = given.convert("RGBA")
    white = Image.new("RGBA", (13, 9), "white")
    expected = Image.alpha_composite(white, opaque).convert("RGB")
    image, notes = load_image(given)
    assert notes == ["transparency composited on white"]
    assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert len(np.unique(np.asarray(opaque)[..., 3])) > 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
@pytest.mark.parametrize("mode", ["I;16", "F", "LA"])
def test_memory_of_a_large_image(mode):
    script = f"""
import re
from pathlib import Path
from PIL import Image
from selfment.images import load_image

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

image = Image.new({mode!r}, (6_000, 5_000), 1)
load_image(image.crop((0, 0, 64, 64)))
before = peak()
load_image(image)
print(peak() - before)
"""
    done = processes.run([sys.executable, "-c", script])
    made = 4 * 6_000 * 5_000  # bytes of Pillow's RGB
    assert made // 2 < 1024 * int(done.stdout) < made + (64 << 20)
