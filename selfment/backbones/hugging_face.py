"""ViTs of the library transformers: DINO (ViT), DINOv2, with registers, DINOv3, ViT-MAE."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.torch_state import as_documented, autocast
from ..util.extras import load_extra
from .base import Backbone, WeightsError
from .hub import without_retries
from .position_embeddings import scaled

#: Begins the name of a folder or a hub repository that transformers loads.
PREFIX = "hf:"

_KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae")
_UNUSED = ("pooler.", "embeddings.mask_token")  # by the features, so that a file may lack them


class HuggingFaceViT(Backbone):
    """Final normalised patch tokens of a frozen ViT in evaluation mode, at any image size."""

    attends = False

    def __init__(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        positions: str = "authors",
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads the model.

        Args:
            name: ``hf:`` and a folder, or the name of a repository on the hub.
            dtype: the autocast dtype; None computes in float32.
            positions: see :func:`selfment.backbones.load_backbone`.
            device: the device that computes the features.

        Raises:
            WeightsError: the model cannot be had or read, is of another kind, or is not whole.
            ImportError: transformers is missing.
        """
        self.name = name
        self.device = torch.device(device)
        self.dtype = dtype
        source = name.removeprefix(PREFIX)
        self.model, kind, colours = _load(name, source)
        self.patch_size, self.dim = self.model.config.patch_size, self.model.config.hidden_size
        self.mean, self.std = (tuple(colours[f"image_{stat}"]) for stat in ("mean", "std"))
        self._prefix = 1 + getattr(self.model.config, "num_register_tokens", 0)
        self._masks = kind == "vit_mae"
        self._resizes = kind in ("vit", "vit_mae")
        if kind != "dinov3_vit":  # whose positions are rotations
            offset = kind == "dinov2" or (kind == "vit" and "dino" in Path(source).name.lower())
            rule = scaled if positions == "authors" and offset else _as_timm
            embeddings = self.model.embeddings
            embeddings.interpolate_pos_encoding = partial(
                _positions, embeddings, self.patch_size, rule
            )
        self.model.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, d) float32, without CLS and register tokens."""
        h, w = self.grid(*batch.shape[-2:])
        options: dict[str, Any] = {"interpolate_pos_encoding": True} if self._resizes else {}
        if self._masks:  # no patch is masked; in the order of the noise they are not shuffled
            noise = torch.arange(h * w, dtype=torch.float32, device=self.device)
            options["noise"] = noise.expand(batch.shape[0], -1)
        with as_documented(self.device), autocast(self.device, self.dtype):
            output = self.model(batch.to(self.device), **options)
        tokens: Tensor = output.last_hidden_state
        return tokens[:, self._prefix :].float()


def folder_patch_size(name: str) -> int | None:
    """Returns the patch size in the ``config.json`` of a folder; None if there is none."""
    try:
        file = Path(name.removeprefix(PREFIX), "config.json")
        size = json.loads(file.read_text(encoding="utf-8"))["patch_size"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return size if isinstance(size, int) and size >= 1 else None


def _load(name: str, source: str) -> tuple[Any, str, dict[str, Any]]:
    """Returns the model, its kind, and the settings of its image processor."""
    library = load_extra("transformers", "transformers", "hf", f"the backbone {name!r}")
    try:
        with without_retries():
            config = library.AutoConfig.from_pretrained(source)
            kind = config.model_type
            if kind not in _KINDS:
                raise ValueError(f"its model_type is {kind!r}, not one of {', '.join(_KINDS)}")
            if kind == "vit_mae":
                config.mask_ratio = 0.0
            file = library.utils.cached_file(source, "preprocessor_config.json")
            colours = json.loads(Path(file).read_text(encoding="utf-8"))
            model, loading = library.AutoModel.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True
            )
            missing = [key for key in loading["missing_keys"] if not key.startswith(_UNUSED)]
            if missing:
                raise ValueError(f"it lacks {len(missing)} weights, {sorted(missing)[0]} first")
    except Exception as error:  # every release of the library raises different errors
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            "`backbone` must be hf: and a folder or a repository with a ViT of transformers: "
            f"{name!r} cannot be loaded ({type(error).__name__}: {reason})"
        ) from error
    return model, kind, colours


def _positions(
    embeddings: Any, patch: int, rule: Any, tokens: Tensor, height: int, width: int
) -> Tensor:
    """Returns the position embeddings (1, 1 + N, d) of an image of this size in pixels."""
    resampled: Tensor = rule(embeddings.position_embeddings, (height // patch, width // patch))
    return resampled


def _as_timm(embeddings: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resamples position embeddings (1, 1 + s * s, d) to a patch grid as timm does."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    resampled: Tensor = resample_abs_pos_embed(embeddings, list(grid), num_prefix_tokens=1)
    return resampled
