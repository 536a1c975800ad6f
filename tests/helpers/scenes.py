"""Pictures of several objects, and the labels of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfment import CutOptions, PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs.label import LabelSummary, label_images
from selfment.methods import Method, MultiObject

SIZES = {"a.png": (90, 60), "sub/b.jpg": (61, 80), "sub/c.png": (64, 64)}


def scene(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Two flat things of different colour and texture on a noisy ground."""
    width, height = size
    rng = np.random.RandomState(seed)
    pixels = rng.randint(60, 80, (height, width, 3))
    pixels[height // 6 : height // 2, width // 6 : width // 2] = (225, 60, 40)
    pixels[5 * height // 8 : 7 * height // 8, 5 * width // 8 : 7 * width // 8] = (30, 70, 220)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def labeler(method: Method | None = None, **cut) -> PseudoLabeler:
    method = method or MultiObject(3, CutOptions(**cut))
    return PseudoLabeler(size=160, batch_size=2, method=method)


def run(inputs, out: Path, model=None, **options) -> LabelSummary:
    model = model or labeler()
    return label_images(find_images(inputs, out=out), out, model, progress=False, **options)


def coco_of(path: Path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is missing")
    return coco.COCO(str(path))
