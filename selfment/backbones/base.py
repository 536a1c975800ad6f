"""The class of all backbones, and the resizing of images that they share."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

_MOST_BETWEEN = 1 << 24  # pixels between the two steps of a resize, in 192 MiB
_STRIP = 1 << 21  # pixels of a photograph that are converted to floats at a time
_PLAIN = (bool, int, float, str, tuple, torch.dtype, type(None))
_EXPANDED = 1 << 26  # bytes that a tensor's shape may need if its file contains fewer


class WeightsError(RuntimeError):
    """Weights are missing, unreadable or unusable: one sentence with the model and a remedy."""


@dataclass(frozen=True)
class Attended:
    """Patch features of B images, their CLS tokens and attention, float32, on one device."""

    features: Tensor  #: (B, N, d), the result of calling the backbone
    cls: Tensor  #: (B, d), the CLS token's feature of the same kind
    attention: Tensor  #: (B, heads, N), from the CLS token to the patches in the last block
    by_head: bool  #: True if a feature is a concatenation of the heads' features, as a key is

    @property
    def is_cuda(self) -> bool:
        """True if the tensors are on a CUDA device."""
        return self.features.is_cuda

    def cpu(self) -> Attended:
        """Returns a copy on the CPU."""
        return Attended(self.features.cpu(), self.cls.cpu(), self.attention.cpu(), self.by_head)


class Backbone(ABC):
    """From images to patch features."""

    name: str  #: the name passed to :func:`load_backbone`
    patch_size: int  #: side of a patch in pixels
    dim: int  #: d, the length of a patch feature
    orient: str = "seed"  #: the orientation rule that suits the features
    attends: bool = True  #: True if it has a CLS token with attention: see :meth:`attend`
    note: str | None = None  #: one line for the user of this backbone
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  #: of the RGB input in [0, 1]
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)  #: of the RGB input in [0, 1]

    @property
    def settings(self) -> dict[str, Any]:
        """All that the features depend on besides the image, ready for JSON.

        Numbers, texts and dtypes in attributes, and hashes of modules. A class that keeps more
        state, or state elsewhere, adds it.
        """
        plain = {"mean": self.mean, "std": self.std, "patch_size": self.patch_size}
        plain |= {k: v for k, v in vars(self).items() if isinstance(v, _PLAIN)}
        modules = {k: v for k, v in vars(self).items() if isinstance(v, nn.Module)}
        return {k: str(v) for k, v in sorted(plain.items())} | {
            name: digest_of(module) for name, module in sorted(modules.items())
        }

    def parts(self) -> list[nn.Module]:
        """Returns the modules that a call runs, for :meth:`selfment.Segmenter.to_module`.

        Raises ``ValueError`` for a backbone that cannot be a part of a module.
        """
        found = [self, *vars(self).values()]
        return [part for part in found if isinstance(part, nn.Module)]

    def grid(self, height: int, width: int | None = None) -> tuple[int, int]:
        """Returns the patch grid (h, w) of a ``height`` x ``width`` input; square by default.

        Raises ``ValueError`` unless both are positive multiples of the patch size.
        """
        width = height if width is None else width
        for size in (height, width):
            check_size(size, self.patch_size, self.name)
        return height // self.patch_size, width // self.patch_size

    def preprocess(self, image: Image.Image, size: int) -> Tensor:
        """Resizes an RGB image (see :func:`resize`) and standardises it by mean and std.

        Returns (3, size, size) float32.
        """
        self.grid(size)
        return self._standardised(resize(image, (size, size)))

    def fitted_size(self, size: tuple[int, int], longest: int) -> tuple[int, int]:
        """Returns the (height, width) in whole patches of an image of ``size`` (width, height).

        The longer side is ``longest``; the shorter is the multiple of the patch size that is
        nearest to the aspect ratio. Raises ``ValueError`` unless ``longest`` is such a multiple.
        """
        self.grid(longest)
        patches = longest // self.patch_size
        shares = (side / max(size) for side in size)
        width, height = (max(1, round(patches * share)) * self.patch_size for share in shares)
        return height, width

    def preprocess_fitted(self, image: Image.Image, longest: int) -> Tensor:
        """Resizes an RGB image to its :meth:`fitted_size`, and standardises it.

        Returns (3, H, W) float32.
        """
        height, width = self.fitted_size(image.size, longest)
        return self._standardised(resize(image, (width, height)))

    def preprocess_whole(self, image: Image.Image, size: int) -> tuple[Tensor, tuple[int, int]]:
        """Resizes an RGB image in its aspect ratio, pads and standardises it.

        The longer side becomes ``size``; the shorter is padded to a multiple of the patch size by
        repeating its last row or column. Returns (3, H, W) float32, and the (height, width) of the
        image without the padding, which is at its bottom or right.
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
        """Returns (B, N, d) float32 features of a (B, 3, H, W) float32 batch.

        The batch may be on any device; the features are on the backbone's. Patches run row by row
        over ``grid(H, W)``. Threads that share a labeler or a segmenter call this at the same time:
        a call must not store anything in an attribute.
        """

    def attend(self, batch: Tensor) -> Attended:
        """Returns the features of a batch with CLS tokens and their attention, in one pass.

        The features equal those of a call. Raises ``ValueError`` unless ``attends``.
        """
        raise ValueError(f"the backbone must be a ViT with a CLS token: got {self.name!r}")


def digest_of(module: nn.Module) -> str:
    """Returns a hash of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_size(size: int, patch: int, name: str) -> None:
    """Raises ``ValueError`` unless a side in pixels is a positive multiple of the patch size."""
    if size < patch or size % patch:
        below = size // patch * patch
        nearest = f"{below} or {below + patch}" if below > 0 else f"{patch}"
        raise ValueError(
            f"`size` must be a multiple of {patch}, the patch size of {name}: "
            f"got {size}; the nearest is {nearest}"
        )


def _of_colours(stat: tuple[float, float, float]) -> Tensor:
    """Returns (3, 1, 1) float32 on the CPU, whatever torch's default dtype and device are."""
    return torch.tensor(stat, dtype=torch.float32, device="cpu")[:, None, None]


def resize(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Resizes an RGB image, bilinear and antialiased, to (3, height, width) float32 in [0, 1].

    The result equals the official code's, to the bit for any photograph: pixels become floats
    first, so that nothing is rounded to 8 bits. torch resizes the width of all rows first, then the
    height. So strips of rows can be resized one after another, and a large photograph is never in
    memory as floats.

    Args:
        image: RGB.
        size: (width, height) in pixels.
    """
    width, height = size
    pixels = np.array(image)
    between = image.height * width, image.width * height  # pixels after the first of two steps
    if between[0] > _MOST_BETWEEN and between[1] < between[0]:
        # A tall and narrow image: the height is resized first, in strips of columns, and some
        # values are rounded differently in the last bit.
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
    """Converts (h, w, 3) pixels to (3, h, w) float32 in [0, 1]."""
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    return planes.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _interpolated(pixels: Tensor, height: int, width: int) -> Tensor:
    resized: Tensor = functional.interpolate(
        pixels[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0]


def check_memory(state: dict[str, Any]) -> None:
    """Raises ``ValueError`` for a tensor that is not dense, or larger than its data in the file.

    A file can represent a tensor of any shape by one number, and a shape with a side of 0 by none.
    Computing with such a tensor takes as much memory and time as its shape requires.
    """
    for key, value in state.items():
        if isinstance(value, dict):
            check_memory(value)
        elif isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_nested:
                raise ValueError(f"{key} is not a dense tensor")
            stored = value.untyped_storage().nbytes()
            if math.prod(filter(None, value.shape)) * value.element_size() > max(stored, _EXPANDED):
                shape = tuple(value.shape)
                raise ValueError(f"{key} has the shape {shape}, and {stored} bytes in the file")
