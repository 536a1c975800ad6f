"""A small recipe, and its pictures with masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TINY = """
title = "a tiny one"
source = "made up"

[backbone]
name = "classic"

[train]
set = "folder"
size = 96
epochs = 1
max_images = 4
seed = 1

[predict]
size = 96

[evaluate]
sets = ["folder"]
protocol = "paper"
metrics = ["F_max", "IoU"]

[paper]
folder = { F_max = 0.25 }

[split]
every = 3
"""


def pictures(root: Path, images: str, masks: str, stems: list[str]) -> None:
    """Writes images of a bright object, and masks."""
    for folder in (images, masks):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index, stem in enumerate(stems):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 90, (48, 64, 3)).astype(np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        mask[12:36, 16 + index : 40 + index] = 255
        pixels[mask > 0] = stream.randint(150, 255, 3)
        Image.fromarray(pixels).save(root / images / f"{stem}.jpg")
        Image.fromarray(mask).save(root / masks / f"{stem}.png")


def recipe_of(folder: Path, text: str = TINY, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = folder / "tiny.toml"
    file.write_text(text)
    return file
