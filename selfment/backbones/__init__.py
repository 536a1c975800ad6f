"""Backbones: any timm ViT by its name, any module of one's own, and two that need no weights.

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
from .custom import OWN, ModuleBackbone, from_factory
from .hugging_face import PREFIX, HuggingFaceViT, folder_patch_size
from .names import EMBEDDED, patch_size, timm_name
from .position_embeddings import POSITIONS, resampling
from .statistics import Statistics

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "FEATURES",
    "POSITIONS",
    "Attended",
    "Backbone",
    "ModuleBackbone",
    "WeightsError",
    "as_backbone",
    "as_dtype",
    "backbone_class",
    "is_factory",
    "load_backbone",
    "patch_size_of",
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
        name: one of ``EMBEDDED``, the name of a ViT in timm, ``hf:`` and a folder or a repository
            of the Hugging Face hub, which transformers loads, or ``package.module:factory``, a
            function without arguments that returns a backbone, a module or a function.
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
    elsewhere = is_factory(name) or name.startswith(PREFIX)
    if elsewhere and (features != "tokens" or weights is not None):
        raise ValueError(
            f"`features` and `weights` must be left alone with {name!r}: "
            f"got {features!r} and {weights!r}"
        )
    if is_factory(name):
        backbone = as_backbone(from_factory(name), where, autocast, name)
        backbone.name = name
        return backbone
    if name.startswith(PREFIX):
        with loading():
            return HuggingFaceViT(name, dtype=autocast, positions=positions, device=where)
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


def as_backbone(
    backbone: Any,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    name: str | None = None,
) -> Backbone:
    """Returns a :class:`Backbone` as it is, and makes one of a module or function.

    Args:
        backbone: the backbone, or what :class:`ModuleBackbone` takes.
        device: where a module or function runs; see :class:`ModuleBackbone`.
        dtype: the autocast dtype of a module or function.
        name: the name of a function.

    Raises:
        ValueError: a wrong argument, or a device or dtype for a backbone, which has its own.
    """
    if not isinstance(backbone, Backbone):
        return ModuleBackbone(backbone, device=device, dtype=dtype, name=name)
    own = getattr(backbone, "device", None)
    if dtype is not None or (device is not None and own is not None and own != as_device(device)):
        raise ValueError(
            "`device` and `dtype` must be left alone with a backbone, which has its own: "
            f"got {str(device)!r} and {dtype}"
        )
    return backbone


def is_factory(name: str) -> bool:
    """Returns whether a name is ``package.module:factory``, and not one of a hub."""
    return ":" in name and not name.startswith((PREFIX, OWN)) and not timm_name(name)


def patch_size_of(name: str) -> int | None:
    """Returns the patch size of a backbone that is not loaded; None if it is not known.

    It is in the names of timm's models, and in the ``config.json`` of a folder.
    """
    if name in EMBEDDED:
        return _CLASSES[name].patch_size
    if name.startswith(PREFIX):
        return folder_patch_size(name) or patch_size(timm_name(name.removeprefix(PREFIX)) or "")
    return None if is_factory(name) else patch_size(name)


def backbone_class(name: str) -> type[Backbone]:
    """Returns the class of the backbone ``name``; it need not be loaded to read its attributes."""
    if name.startswith(PREFIX):
        return HuggingFaceViT
    if is_factory(name):
        return ModuleBackbone
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
