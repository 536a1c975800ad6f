"""Backbones: any timm ViT by its timm name, and two embedded ones that need no weights.

``classic`` distinguishes an object from its surroundings, for one mask; ``statistics`` describes
every patch alike, for several objects.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ..core.options import choice
from ..core.torch_state import as_device, loading
from .base import Attended, Backbone, WeightsError
from .classic import Classic
from .names import EMBEDDED
from .position_embeddings import POSITIONS, resampling
from .statistics import Statistics

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "FEATURES",
    "POSITIONS",
    "Attended",
    "Backbone",
    "WeightsError",
    "as_dtype",
    "backbone_class",
    "load_backbone",
    "resampling",
]

FEATURES = ("tokens", "keys")
_CLASSES: dict[str, type[Classic | Statistics]] = {
    "classic": Classic,
    "statistics": Statistics,
}
DTYPES = ("float32", "bfloat16", "float16")


def load_backbone(
    name: str,
    *,
    features: str = "tokens",
    weights: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    positions: str = "authors",
    device: str | torch.device = "cpu",
) -> Backbone:
    """Loads a backbone.

    The caller's default dtype, default device and autocast change neither the backbone nor its
    features. ``torch.set_float32_matmul_precision`` does apply: it sets the precision of products
    of float32 matrices.

    Args:
        name: one of ``EMBEDDED``, or the name of a ViT in timm.
        features: ``"tokens"``, the final normalised patch tokens, or ``"keys"``, the keys of the
            last attention block.
        weights: a checkpoint file, or a folder of the Hugging Face hub, instead of timm's download.
        dtype: ``float16`` or ``bfloat16`` for autocast; None and ``float32`` use none.
        positions: resample position embeddings as the model's ``"authors"`` do, or as ``"timm"``
            does; see :mod:`selfment.backbones.position_embeddings`.
        device: the device that computes the features.

    Raises:
        ValueError: a wrong argument.
        WeightsError: the weights cannot be downloaded or read, or do not fit the model.
    """
    choice("features", features, FEATURES)
    choice("positions", positions, POSITIONS)
    autocast = as_dtype(dtype)
    where = as_device(device)
    if name in EMBEDDED:
        options: dict[str, Any] = {"weights": weights, "dtype": autocast}
        wrong = [f"{key}={value}" for key, value in options.items() if value is not None]
        wrong += [f"features={features!r}"] if features != "tokens" else []
        wrong += [f"positions={positions!r}"] if positions != "authors" else []
        if wrong:
            raise ValueError(f"the backbone {name!r} has no such option: got {', '.join(wrong)}")
        with loading():
            return _CLASSES[name](where)
    from .timm_vit import TimmViT

    with loading():
        return TimmViT(
            name,
            features=features,
            weights=weights,
            dtype=autocast,
            positions=positions,
            device=where,
        )


def backbone_class(name: str) -> type[Backbone]:
    """Returns the class of the backbone ``name``; it need not be loaded to read its attributes."""
    return _CLASSES.get(name, Backbone)


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Returns the autocast dtype, None for float32.

    Raises ``ValueError`` for a dtype that is not in ``DTYPES``.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}: got {name!r}")
    resolved: torch.dtype = getattr(torch, name)
    return None if resolved == torch.float32 else resolved
