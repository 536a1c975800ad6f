"""Inputs of the benchmarks: features of photographs, and a description of the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from selfment.backbones import Backbone, load_backbone
from selfment.core import native as _native
from selfment.images.load import find_images, load_image, sample_images


def photographs(inputs: Sequence[str]) -> list[Path]:
    """Lists the image files in ``inputs``; by default the samples of scikit-image.

    Ends the program with one line if there are none.
    """
    try:
        return [entry.path for entry in (find_images(inputs) if inputs else sample_images())]
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


@cache
def _backbone() -> Backbone:
    return load_backbone("statistics")


def photo_features(path: Path, side: int, dim: int) -> Tensor:
    """Returns (side * side, dim) float32 features of a photograph.

    They are the embedded `statistics` for dim = 384, else a fixed random map of them, squashed.
    """
    backbone = _backbone()
    image, _ = load_image(path)
    tokens = backbone(backbone.preprocess(image, side * backbone.patch_size)[None])[0]
    if dim == backbone.dim:
        return tokens
    mixing = torch.randn(backbone.dim, dim, generator=torch.Generator().manual_seed(0))
    return torch.tanh(tokens @ mixing / 4)


def machine() -> dict[str, str]:
    """Describes processor, instruction set, threads and versions."""
    info = _native.info()
    info["scipy"] = importlib.metadata.version("scipy")
    info["processor"] = _processor()
    return info


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
