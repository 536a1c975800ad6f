"""What a backbone is, and what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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

    def grid(self, size: int) -> tuple[int, int]:
        """The patch grid (h, w) of a ``size`` x ``size`` input.

        Raises ``ValueError`` unless ``size`` is a positive multiple of the patch size.
        """
        patch = self.patch_size
        if size < patch or size % patch:
            below = size // patch * patch
            nearest = f"{below} or {below + patch}" if below > 0 else f"{patch}"
            raise ValueError(
                f"`size` must be a multiple of {patch}, the patch size of {self.name}: "
                f"got {size}; the nearest is {nearest}"
            )
        return size // patch, size // patch

    def preprocess(self, image: Image.Image, size: int) -> Tensor:
        """(3, size, size) float32 of an RGB image: bilinear antialiased resize, mean, std."""
        self.grid(size)
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div_(255)
        mean, std = (torch.tensor(stat)[:, None, None] for stat in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    @abstractmethod
    def __call__(self, batch: Tensor) -> Tensor:
        """(B, N, d) float32 features of a (B, 3, S, S) float32 batch, on the backbone's device.

        The batch may lie on any device. Patches run row by row over ``grid(S)``.
        """
