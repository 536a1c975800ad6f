"""Backbones of one's own: any module or function from images to patch features."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.options import require
from ..core.torch_state import as_device, as_documented
from .base import Backbone

_MOST_PREFIX = 16  # prefix tokens that are found out; ViTs have up to 9

Colours = tuple[float, float, float]
Model = nn.Module | Callable[[Tensor], Any]


class ModuleBackbone(Backbone):
    """Patch features by a module, or by any function of a batch of images.

    The model maps (B, 3, H, W) float32 images to (B, N, d) tokens, to (B, prefix + N, d) tokens
    with CLS and registers first, or to (B, d, h, w) maps. A mapping or an object may hold them as
    ``x_norm_patchtokens`` or ``last_hidden_state``. The method ``forward_features`` is called if
    there is one, else the model itself.
    """

    attends = False

    def __init__(
        self,
        model: Model,
        *,
        patch_size: int | None = None,
        prefix_tokens: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dim: int | None = None,
        orient: str = "seed",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        """Describes the model. A module is put into evaluation mode.

        Args:
            model: the module or function.
            patch_size: side of a patch in pixels. None reads it from the model, its ``patch_embed``
                or its ``config``.
            prefix_tokens: number of tokens before those of the patches. None finds it out from
                their number, up to 16.
            mean: of the RGB input in [0, 1]. None reads it from timm's ``pretrained_cfg``.
            std: likewise.
            dim: d. None reads it from the model, or from the features of a black image.
            orient: the rule that chooses the foreground: "seed" or "corners".
            dtype: the autocast dtype; None computes in float32.
            device: where the model runs. None leaves a module where its parameters are, and calls a
                function on the CPU; a module is moved to another device.
            name: the name in records and heads. None takes that of the class or function.

        Raises:
            ValueError: an argument is neither given nor found in the model, or is wrong.
        """
        self.model = model
        self.name = _name_of(model) if name is None else name
        self.orient = orient
        self.dtype = dtype
        self.patch_size = _patch_size(model) if patch_size is None else patch_size
        rule = "an integer >= 1, given where the model does not say it"
        whole = isinstance(self.patch_size, int) and self.patch_size >= 1
        require("patch_size", self.patch_size, rule, whole)
        if prefix_tokens is not None:
            whole = isinstance(prefix_tokens, int) and prefix_tokens >= 0
            require("prefix_tokens", prefix_tokens, "an integer >= 0", whole)
        self.prefix_tokens = prefix_tokens
        self.mean, self.std = _colours(model, "mean", mean), _colours(model, "std", std)
        parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
        if isinstance(model, nn.Module):
            model.eval()
            if device is not None:
                model.to(as_device(device))
        if device is None:
            device = parameters[0].device if parameters else "cpu"
        self.device = as_device(device)
        self.dim = _length(model) or self._probed() if dim is None else dim

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, d) float32; raises ``ValueError`` for an output of another shape."""
        grid = self.grid(*batch.shape[-2:])
        run = getattr(self.model, "forward_features", self.model)
        kind = self.device.type
        with (
            as_documented(self.device),
            torch.autocast(kind, dtype=self.dtype, enabled=self.dtype is not None),
        ):
            output = run(batch.to(self.device))
        return self._rows(_tensor_of(output), len(batch), grid).float()

    def _rows(self, output: Any, images: int, grid: tuple[int, int]) -> Tensor:
        """Returns the (B, N, d) patch features in an output."""
        patches = grid[0] * grid[1]
        if isinstance(output, Tensor) and len(output) == images:
            if output.ndim == 4 and tuple(output.shape[2:]) == grid:
                return output.flatten(2).transpose(1, 2)
            if output.ndim == 3:
                prefix = output.shape[1] - patches
                if prefix == self.prefix_tokens or (
                    self.prefix_tokens is None and 0 <= prefix <= _MOST_PREFIX
                ):
                    return output[:, prefix:]
        said = f"prefix of {self.prefix_tokens or 'a few'} tokens"
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"`model` must return ({images}, {patches}, d), the same after a {said}, or "
            f"({images}, d, {grid[0]}, {grid[1]}) for patches of {self.patch_size} pixels: "
            f"{self.name} returned {shape}"
        )

    def _probed(self) -> int:
        """Returns the length of the features of a black image of 14 x 14 patches."""
        side = 14 * self.patch_size
        black = torch.zeros(1, 3, side, side, dtype=torch.float32, device=self.device)
        return int(self(black).shape[-1])


def from_factory(name: str) -> Any:
    """Returns what ``package.module:factory`` makes; modules in the current folder are found, too.

    Raises ``ValueError`` if the name is wrong or the factory fails.
    """
    module, _, attribute = name.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # the code is the user's
        raise ValueError(
            "`backbone` must be package.module:factory, a function without arguments: "
            f"{name!r} raised {type(error).__name__} ({error})"
        ) from error
    finally:
        sys.path.remove(folder)


def _name_of(model: Any) -> str:
    named = model if hasattr(model, "__qualname__") else type(model)
    return f"{named.__module__}.{named.__qualname__}"


def _patch_size(model: Any) -> Any:
    """Returns the patch size that a model says; None if it says none."""
    for holder in (model, *(getattr(model, name, None) for name in ("patch_embed", "config"))):
        size = getattr(holder, "patch_size", None)
        if isinstance(size, Sequence) and len(set(size)) == 1:
            size = size[0]
        if isinstance(size, int):
            return size
    return None


def _length(model: Any) -> int | None:
    """Returns the length of features that a model says; None if it says none."""
    for holder, name in ((model, "embed_dim"), (getattr(model, "config", None), "hidden_size")):
        length = getattr(holder, name, None)
        if isinstance(length, int):
            return length
    return None


def _colours(model: Any, name: str, given: Sequence[float] | None) -> Colours:
    """Returns the mean or the standard deviation of the input, given or said by timm's model."""
    if given is None:
        given = (getattr(model, "pretrained_cfg", None) or {}).get(name)
    rule = "three numbers, given where the model does not say them"
    values = tuple(given) if isinstance(given, Sequence | Tensor) else ()
    numbers = all(isinstance(value, int | float) for value in values)
    require(name, given, rule, len(values) == 3 and numbers)
    if name == "std":
        require(name, given, "three numbers > 0", min(values) > 0)
    return values[0], values[1], values[2]


def _tensor_of(output: Any) -> Any:
    """Returns the patch features in an output, which may be a mapping or have attributes."""
    for name in ("x_norm_patchtokens", "last_hidden_state"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
    return output


def digest_of(model: nn.Module) -> str:
    """Returns a hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
