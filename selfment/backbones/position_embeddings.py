"""Resamples a ViT's learned position embeddings to the patch grid of an input.

timm resamples all of them by the size, bicubic and antialiased. The authors of DINO and of DINOv2
without registers resample by scale factors and without antialiasing, so the same weights give
different features at every size except that of the training. DINOv2 with registers is resampled as
timm does; DINOv3 has rotary embeddings, which are not resampled.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .names import EMBEDDED

#: The resampling of the model's authors, chosen by the family in its name, or timm's.
POSITIONS = ("authors", "timm")

# The only weights of vit_small_patch8_224 are DINO's.
_SCALED = re.compile(
    r"vit_small_patch8_224|vit_[a-z0-9]+_patch\d+_224\.dino|vit_[a-z0-9]+_patch14_dinov2(\..+)?"
)
_OFFSET = 0.1  # in patches: keeps the product of size and scale from falling below the grid


def resampling(name: str, positions: str) -> str | None:
    """Returns how ``positions`` resamples for the backbone ``name``, for settings and records.

    Args:
        name: one of ``EMBEDDED`` or a name in timm, whose tag may name the family, as in
            ``vit_small_patch16_224.dino``.
        positions: one of ``POSITIONS``.

    Returns:
        ``"scaled"`` for :func:`scaled`, ``"timm"``, or None for a backbone without learned position
        embeddings.
    """
    if name in EMBEDDED or "_dinov3" in name:
        return None
    return "scaled" if positions == "authors" and _SCALED.fullmatch(name) else "timm"


def scaled(embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resamples position embeddings as DINO, and DINOv2 without registers, to a patch grid.

    It is bicubic without antialiasing. The coordinates follow from the scale factors
    ((h + 0.1) / s, (w + 0.1) / s), not from the ratio of the sizes.

    Args:
        embeddings: (1, 1 + s * s, d), for the CLS token and a square grid.
        grid: the patch grid (h, w).

    Returns:
        (1, 1 + h * w, d) in the dtype of ``embeddings``; ``embeddings`` itself for the grid (s, s).
    """
    h, w = grid
    side = math.isqrt(embeddings.shape[1] - 1)
    if isinstance(h, torch.SymInt) or isinstance(w, torch.SymInt):
        return scaled_to_any(embeddings, grid)
    if (h, w) == (side, side):
        return embeddings
    patches = embeddings[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((h + _OFFSET) / side, (w + _OFFSET) / side)
    patches = functional.interpolate(patches, scale_factor=factors, mode="bicubic")
    rows = patches.flatten(2).transpose(1, 2).to(embeddings.dtype)
    return torch.cat([embeddings[:, :1], rows], dim=1)


def scaled_to_any(embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns what :func:`scaled` returns, but for rounding, by the same operations for any grid.

    So torch.export can trace it with sides that vary: a matrix product interpolates each axis.
    """
    side = math.isqrt(embeddings.shape[1] - 1)
    options: dict[str, Any] = {"dtype": torch.float32, "device": embeddings.device}
    h, w = (torch.scalar_tensor(count, **options) for count in grid)
    offset = torch.where((h == side) & (w == side), 0.0, _OFFSET)
    down, across = (
        _bicubic((torch.arange(count, **options) + 0.5) * (side / (size + offset)) - 0.5, side)
        for count, size in zip(grid, (h, w), strict=True)
    )
    patches = embeddings[0, 1:].float().unflatten(0, (side, side))
    rows = torch.einsum("is,jt,std->ijd", down, across, patches).flatten(0, 1)
    return torch.cat([embeddings[:, :1], rows[None].to(embeddings.dtype)], dim=1)


def _bicubic(places: Tensor, side: int) -> Tensor:
    """Returns the weights (n, side) of ``side`` >= 2 samples at the (n,) places between them.

    The kernel is Keys' cubic with a = -0.75, as in torch; the first and last sample are repeated.
    """
    a = -0.75
    samples = torch.arange(-2, side + 2, dtype=places.dtype, device=places.device)
    distance = (places[:, None] - samples).abs()
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    first, last = (ends.sum(1, keepdim=True) for ends in (weights[:, :3], weights[:, -3:]))
    return torch.cat([first, weights[:, 3:-3], last], dim=1)


def use_scaled(model: Any) -> None:
    """Makes a timm ``VisionTransformer`` with one CLS token resample by :func:`scaled`."""
    model._pos_embed = partial(_add_positions, model)  # a copy of the model has its own


def _add_positions(model: Any, patches: Tensor) -> Tensor:
    """Adds CLS token and positions to (B, h, w, d) patches; returns (B, 1 + h * w, d)."""
    batch, h, w, _ = patches.shape
    tokens = torch.cat([model.cls_token.expand(batch, -1, -1), patches.flatten(1, 2)], dim=1)
    placed: Tensor = model.pos_drop(tokens + scaled(model.pos_embed, (h, w)))
    return placed
