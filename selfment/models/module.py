"""A segmenter's backbone and head as one module of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones import Backbone
from ..core import options as params
from .head import PatchHead


class SaliencyModule(nn.Module):
    """Maps photographs to their saliency: resize, backbone, head, bilinear to the photo's size."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, head: PatchHead, size: int | None) -> None:
        """Copies the backbone and the head.

        Args:
            backbone: one whose features are computed by torch alone.
            head: the head.
            size: the side of the square that photographs are resized to; None leaves their size.
        """
        super().__init__()
        self.size = size
        self._backbone = copy.deepcopy(backbone)
        self.models = nn.ModuleList(self._backbone.parts())
        self.head = copy.deepcopy(head)
        for name in ("mean", "std"):
            colours = torch.tensor(getattr(backbone, name), dtype=torch.float32)
            self.register_buffer(name, colours[:, None, None], persistent=False)

    def forward(self, photo: Tensor) -> Tensor:
        """Returns (B, H, W) float32 saliency in [0, 1] of (B, 3, H, W) uint8 RGB photographs.

        Without a size to resize to, H and W must be multiples of the patch size. Raises
        ``ValueError`` for another shape or dtype.
        """
        is_photo = photo.ndim == 4 and photo.shape[1] == 3 and photo.dtype == torch.uint8
        got = f"{tuple(photo.shape)} {photo.dtype}"
        params.require("photo", got, "(B, 3, H, W) torch.uint8", is_photo)
        height, width = photo.shape[-2:]
        pixels = photo.to(torch.float32) / 255
        if self.size is not None:
            pixels = functional.interpolate(
                pixels, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True
            )
        grid = self._backbone.grid(*pixels.shape[-2:])
        features = self._backbone((pixels - self.mean) / self.std)
        maps = self.head.saliency(features).float().unflatten(1, grid)
        resized = functional.interpolate(
            maps[:, None], (height, width), mode="bilinear", align_corners=False
        )
        return resized[:, 0].clamp(0, 1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SaliencyModule:
        """Moves the module; the backbone computes where its parameters are."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if hasattr(self._backbone, "device"):
            self._backbone.device = self.mean.device
        return self
