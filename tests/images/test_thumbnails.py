"""Thumbnails, data URLs, and outlines that cover exactly their mask."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import picture
from selfment.images import ImageError
from selfment.images.thumbnails import data_url, outline, read_thumbnail

STEP = {"h": (1, 0), "v": (0, 1)}


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Returns the mask that a path encloses: pixels with an odd number of edges to their left."""
    crossings = np.zeros((shape[0], shape[1] + 1), dtype=int)
    for start, runs in re.findall(r"M(\d+ \d+)((?:[hv]-?\d+)+)z", path):
        x, y = map(int, start.split())
        for name, length in re.findall(r"([hv])(-?\d+)", runs):
            dx, dy = (part * int(length) for part in STEP[name])
            crossings[min(y, y + dy) : max(y, y + dy), x] += 1
            x, y = x + dx, y + dy
        assert f"{x} {y}" == start
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1


@pytest.mark.parametrize("seed", range(6))
def test_an_outline_encloses_its_mask(seed: int) -> None:
    mask = np.random.RandomState(seed).rand(9 + seed, 14) < (0.5, 0.9, 0.1)[seed % 3]
    path = outline(mask)
    assert re.fullmatch(r"(M\d+ \d+([hv]-?\d+)+z)*", path)
    assert np.array_equal(filled(path, mask.shape), mask)


def test_outlines_are_short() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    assert outline(mask) == ""
    mask[5:12, 3:20] = True
    assert outline(mask) == "M3 5h17v7h-17v-7z"
    mask[7:9, 6:8] = False
    assert outline(mask) == "M3 5h17v7h-17v-7zM6 9h2v-2h-2v2z"
    assert outline(np.eye(2, dtype=bool)) == "M0 0h1v1h-1v-1zM1 1h1v1h-1v-1z"


def test_an_outline_of_noise_is_simplified() -> None:
    mask = np.random.RandomState(0).rand(150, 200) < 0.5
    path = outline(mask, most=3000)
    assert 0 < len(path) <= 3000
    blocks = filled(path, mask.shape)
    assert np.array_equal(blocks[:144:16, :192:16], mask[:144:16, :192:16])


def test_thumbnails_are_small_and_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    file = picture(tmp_path / "a.jpg", size=(1600, 900), exif=exif)
    small = read_thumbnail(file)
    assert small.size == (112, 200)
    whole = Image.open(file).transpose(Image.Transpose.ROTATE_270).resize((112, 200))
    assert np.abs(np.asarray(small, int) - np.asarray(whole, int)).mean() < 8
    assert read_thumbnail(picture(tmp_path / "b.png")).size == (50, 30)
    with pytest.raises(ImageError, match=r"cannot read .*absent\.jpg"):
        read_thumbnail(tmp_path / "absent.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_data_urls_are_pictures(kind: str) -> None:
    pixels = np.full((6, 8, 3), (10, 200, 90), np.uint8)
    start, _, data = data_url(Image.fromarray(pixels), kind).partition(",")
    assert start == f"data:image/{kind.lower()};base64"
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert found.format == kind
    assert np.abs(np.asarray(found, int) - pixels).max() <= (0 if kind == "PNG" else 6)
