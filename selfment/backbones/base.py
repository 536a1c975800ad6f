"""What a backbone is, and what all of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_MOST_BETWEEN = 1 << 24  # pixels between the two steps of a resize, in 192 MiB
_STRIP = 1 << 21  # pixels of a photograph that are floats at a time
_ODDITY = 1 << 26  # bytes that a tensor may say it holds without having them in its file


class WeightsError(RuntimeError):
    """Weights that cannot be had, read or used: one sentence with the model and the way out."""


@dataclass(frozen=True)
class Attended:
    """The patch features of B images with what their CLS tokens know, float32, on one device."""

    features: Tensor  #: (B, N, d), what the backbone gives when it is called
    cls: Tensor  #: (B, d), the CLS token's feature of the same kind
    attention: Tensor  #: (B, heads, N), of the CLS token to the patches in the last block
    by_head: bool  #: whether a feature is the heads' features side by side, as a key is

    @property
    def is_cuda(self) -> bool:
        """Whether they lie on a CUDA device."""
        return self.features.is_cuda

    def cpu(self) -> Attended:
        """The same on the CPU."""
        return Attended(self.features.cpu(), self.cls.cpu(), self.attention.cpu(), self.by_head)


class Backbone(ABC):
    """From images to patch features."""

    name: str  #: what :func:`load_backbone` was asked for
    patch_size: int  #: side of a patch in pixels
    dim: int  #: d, the length of a patch feature
    orient: str = "seed"  #: the orientation rule that suits the features
    attends: bool = True  #: whether it has a CLS token that attends: see :meth:`attend`
    note: str | None = None  #: one line that its user should know
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: of the RGB input in [0, 1]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  #: of the RGB input in [0, 1]

    def grid(self, height: int, width: int | None = None) -> tuple[int, int]:
        """The patch grid (h, w) of a ``height`` x ``width`` input; a square without ``width``.

        Raises ``ValueError`` unless both are positive multiples of the patch size.
        """
        patch = self.patch_size
        for size in (height, height if width is None else width):
            if size < patch or size % patch:
                below = size // patch * patch
                nearest = f"{below} or {below + patch}" if below > 0 else f"{patch}"
                raise ValueError(
                    f"`size` must be a multiple of {patch}, the patch size of {self.name}: "
                    f"got {size}; the nearest is {nearest}"
                )
        return height // patch, (height if width is None else width) // patch

    def preprocess(self, image: Image.Image, size: int) -> Tensor:
        """(3, size, size) float32 of an RGB image: see :func:`resize`; then mean and std."""
        self.grid(size)
        return self._standardised(resize(image, (size, size)))

    def preprocess_whole(self, image: Image.Image, size: int) -> tuple[Tensor, tuple[int, int]]:
        """(3, H, W) float32 of an RGB image in its aspect ratio, and how much of it is image.

        The longer side becomes ``size``; the shorter is padded to a multiple of the patch size by
        repeating its last row or column. The image itself is the first (height, width) of it.
        """
        self.grid(size)
        patch = self.patch_size
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        pixels = self._standardised(resize(image, (width, height)))
        padding = (0, -width % patch, 0, -height % patch)
        return functional.pad(pixels, padding, mode="replicate"), (height, width)

    def _standardised(self, pixels: Tensor) -> Tensor:
        mean, std = (_of_colours(stat) for stat in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    @abstractmethod
    def __call__(self, batch: Tensor) -> Tensor:
        """(B, N, d) float32 features of a (B, 3, H, W) float32 batch, on the backbone's device.

        The batch may lie on any device. Patches run row by row over ``grid(H, W)``. Threads that
        share a labeler or a segmenter call this at the same time: nothing of a call may be kept in
        an attribute.
        """

    def attend(self, batch: Tensor) -> Attended:
        """The features of a batch, as a call gives them, with CLS tokens and their attention.

        One pass. Raises ``ValueError`` for a backbone that does not ``attends``.
        """
        raise ValueError(f"the backbone must be a ViT with a CLS token: got {self.name!r}")


def _of_colours(stat: tuple[float, float, float]) -> Tensor:
    """(3, 1, 1) float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.tensor(stat, dtype=torch.float32, device="cpu")[:, None, None]


def resize(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """(3, height, width) float32 in [0, 1] of an RGB image: bilinear and antialiased.

    As the official code does, to the bit for any photograph: pixels become floats first, so that
    nothing is rounded to 8 bits. torch changes the width of all rows first, and then the height;
    strips of rows can so be taken one after another, and a large photograph never lies in memory as
    floats.

    Args:
        image: RGB.
        size: (width, height) in pixels.
    """
    width, height = size
    pixels = np.array(image)
    between = image.height * width, image.width * height  # pixels after the first of two steps
    if between[0] > _MOST_BETWEEN and between[1] < between[0]:
        # Tall and narrow: the height goes first, column by column, and rounding differs by a bit.
        columns = max(1, _STRIP // image.height)
        parts = [
            _interpolated(part, height, part.shape[2])
            for part in map(_floats, np.split(pixels, range(columns, image.width, columns), axis=1))
        ]
        return _interpolated(torch.cat(parts, dim=2), height, width)
    rows = max(1, _STRIP // image.width)
    parts = [
        _interpolated(part, part.shape[1], width)
        for part in map(_floats, np.split(pixels, range(rows, image.height, rows)))
    ]
    return _interpolated(torch.cat(parts, dim=1), height, width)


def _floats(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """(3, h, w) float32 in [0, 1] of (h, w, 3)."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _interpolated(pixels: Tensor, height: int, width: int) -> Tensor:
    found: Tensor = functional.interpolate(
        pixels[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return found[0]


def check_memory(state: dict[str, Any]) -> None:
    """Raises ``ValueError`` for a tensor that is not dense, or larger than what its file holds.

    One number can stand for all of any shape, and a shape with a side of 0 needs none; what is
    computed from such a tensor takes the memory and the time that its shape says.
    """
    for key, value in state.items():
        if isinstance(value, dict):
            check_memory(value)
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_nested:
                raise ValueError(f"{key} is not a dense tensor")
            held = value.untyped_storage().nbytes()
            if math.prod(filter(None, value.shape)) * value.element_size() > max(held, _ODDITY):
                shape = tuple(value.shape)
                raise ValueError(f"{key} has the shape {shape}, and {held} bytes in the file")
