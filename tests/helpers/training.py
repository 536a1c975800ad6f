"""Training runs on generated pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.models.head import load_head
from selfment.training.run import TrainingSummary, train


def pictures(folder: Path, count: int, size: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 90, (size, size, 3)).astype(np.uint8)
        pixels[size // 4 : size // 2, size // 3 : 2 * size // 3] = stream.randint(100, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def run(inputs: Path, out: Path, **options) -> TrainingSummary:
    options = {"epochs": 2, "progress": False, **options}
    labeler = PseudoLabeler(size=96, batch_size=options.pop("batch_size", 2))
    return train(find_images([inputs]), out, labeler, **options)


def weights(out: Path) -> dict[str, Tensor]:
    return load_head(out / "head")[0].state_dict()


def equal(a: Path, b: Path) -> bool:
    return all(torch.equal(x, weights(b)[name]) for name, x in weights(a).items())


def steps(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
