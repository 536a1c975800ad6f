"""What a backbone is, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional


class WeightsError(RuntimeError):
    """Weights that cannot be had, read or used: one sentence with the model and the way out."""


class Backbone(ABC):
    """From images to patch features."""

    name: str  #: what :func:`load_backbone` was asked for
    patch_size: int  #: side of a patch in pixels
    dim: int  #: d, the length of a patch feature
    orient: str = "seed"  #: the orientation rule that suits the features
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
        """(3, size, size) float32 of an RGB image: bilinear antialiased resize, mean, std."""
        self.grid(size)
        return self._standardised(image.resize((size, size), Image.Resampling.BILINEAR))

    def preprocess_whole(self, image: Image.Image, size: int) -> tuple[Tensor, tuple[int, int]]:
        """(3, H, W) float32 of an RGB image in its aspect ratio, and how much of it is image.

        The longer side becomes ``size``; the shorter is padded to a multiple of the patch size by
        repeating its last row or column. The image itself is the first (height, width) of it.
        """
        self.grid(size)
        patch = self.patch_size
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = self._standardised(resized)
        padding = (0, -width % patch, 0, -height % patch)
        return functional.pad(pixels, padding, mode="replicate"), (height, width)

    def _standardised(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        mean, std = (torch.tensor(stat)[:, None, None] for stat in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    @abstractmethod
    def __call__(self, batch: Tensor) -> Tensor:
        """(B, N, d) float32 features of a (B, 3, H, W) float32 batch, on the backbone's device.

        The batch may lie on any device. Patches run row by row over ``grid(H, W)``.
        """
