"""Pictures of an object on a ground, and the results of commands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (50, 30), **options: Any) -> Path:
    """Writes a bright box on a dim, noisy ground; the colour and the noise depend on the seed.

    Args:
        path: The file; its folders are made.
        seed: Of the random numbers.
        size: (width, height) in pixels.
        options: Of Pillow's ``save``.
    """
    width, height = size
    stream = np.random.RandomState(seed)
    pixels = stream.randint(60, 90, (height, width, 3)).astype(np.uint8)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = stream.randint(150, 255, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pictures(folder: Path, *names: str, size: tuple[int, int] = (50, 30)) -> Path:
    """Writes a picture of each name, each a pixel wider than the one before."""
    for index, name in enumerate(names):
        picture(folder / name, index, (size[0] + index, size[1]))
    return folder


def things(folder: Path, *names: str) -> Path:
    """Writes a picture of each name: a square, larger each time, that labels are sure of."""
    for index, name in enumerate(names):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 90, (90, 120, 3)).astype(np.uint8)
        pixels[20 : 50 + 5 * index, 30 : 70 + 6 * index] = (220, 60 + 20 * index, 30)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name, quality=95)
    return folder


def records(out: Path, file: str = "labels.jsonl") -> dict[str, dict[str, Any]]:
    """The records in a folder of results by the names of their images, which must differ."""
    rows = [json.loads(line) for line in (out / file).read_text().splitlines()]
    by_name = {Path(row["image"]).name: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def files_in(folder: Path) -> list[str]:
    """The paths of all files below a folder, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
