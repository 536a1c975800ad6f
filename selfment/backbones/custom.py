"""Backbones of one's own: any module or function from images to patch features."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.options import ORIENTS, choice, require
from ..core.torch_state import as_device, as_documented, autocast
from .base import Backbone

#: Begins the names of these backbones in records and heads, which cannot load them.
OWN = "own:"

_MOST_PREFIX = 16  # prefix tokens that are found out; ViTs have up to 9

Colours = tuple[float, float, float]
Model = nn.Module | Callable[[Tensor], Any]


class ModuleBackbone(Backbone):
    """Patch features by a module, or by any function of a batch of images.

    The model maps (B, 3, H, W) images to (B, N, d) tokens, to (B, prefix + N, d) tokens with CLS
    and registers first, or to (B, d, h, w) maps. A mapping or an object may hold them as
    ``x_norm_patchtokens`` or ``last_hidden_state``. The method ``forward_features`` is called if
    there is one, else the model itself. Images are float32, or of the dtype of a module's
    parameters.
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
            dtype: the autocast dtype, ``torch.bfloat16`` or ``torch.float16``; None uses none.
            device: where the model runs. None leaves a module where its parameters are, and calls a
                function on the CPU; a module is moved to another device.
            name: the name in records and heads. It must be given for a function, and changed with
                all that its results depend on: results under the same name count as done. None
                takes the class of a module, whose weights are recorded by their hash.

        Raises:
            ValueError: an argument is neither given nor found in the model, or is wrong.
        """
        usable = callable(model) and not isinstance(model, type)
        require("model", model, "a module or a function of a batch", usable)
        self.model = model
        if name is None and isinstance(model, nn.Module):
            name = f"{type(model).__module__}.{type(model).__qualname__}"
        if name is None:
            raise ValueError(
                "`name` must be given for a function, as in ModuleBackbone(function, name=...)"
            )
        require("name", name, "text that is not empty", isinstance(name, str) and name != "")
        self.name = f"{OWN}{name}"
        self.orient = choice("orient", orient, ORIENTS)
        kinds = (None, torch.bfloat16, torch.float16)
        require("dtype", dtype, "torch.bfloat16, torch.float16 or None", dtype in kinds)
        self.dtype = dtype
        sizes = {"patch_size": _patch_size(model, patch_size)}
        colours = {"mean": _colours_of(model, "mean", mean), "std": _colours_of(model, "std", std)}
        lacking = [key for key, value in (sizes | colours).items() if value is None]
        if lacking:
            raise ValueError(
                f"`{lacking[0]}` must be given where the model does not say it, as in "
                f"ModuleBackbone(model, {', '.join(f'{key}=...' for key in lacking)}): {self.name} "
                f"says no {' and no '.join(lacking)}"
            )
        self.patch_size = _whole("patch_size", sizes["patch_size"], 1)
        self.prefix_tokens = prefix_tokens
        if prefix_tokens is not None:
            self.prefix_tokens = _whole("prefix_tokens", prefix_tokens, 0)
        self.mean, self.std = (_colours(key, value) for key, value in colours.items())
        self._input_dtype = torch.float32
        if isinstance(model, nn.Module):
            model.eval()
            if device is not None:
                model.to(as_device(device))
            for parameter in model.parameters():
                device, self._input_dtype = parameter.device, parameter.dtype
                break
        self.device = as_device("cpu" if device is None else device)
        dim = _length(model) if dim is None else dim
        self.dim = self._probed() if dim is None else _whole("dim", dim, 1)

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, d) float32; raises ``ValueError`` for an output of another shape."""
        grid = self.grid(*batch.shape[-2:])
        if isinstance(self.model, nn.Module) and self.model.training:
            raise ValueError("`model` must be in evaluation mode: call its eval()")
        run = getattr(self.model, "forward_features", self.model)
        with as_documented(self.device), autocast(self.device, self.dtype):
            output = run(batch.to(self.device, self._input_dtype))
        return self._rows(_tensor_of(output), batch.shape[0], grid).float()

    def _rows(self, output: Any, images: int, grid: tuple[int, int]) -> Tensor:
        """Returns the (B, N, d) patch features in an output."""
        patches, d = grid[0] * grid[1], getattr(self, "dim", None)
        rows = None
        if (
            isinstance(output, Tensor)
            and output.is_floating_point()
            and output.shape[:1] == (images,)
        ):
            if output.ndim == 4 and tuple(output.shape[2:]) == grid:
                rows = output.flatten(2).transpose(1, 2)
            elif output.ndim == 3:
                prefix = output.shape[1] - patches
                if prefix == self.prefix_tokens or (
                    self.prefix_tokens is None and 0 <= prefix <= _MOST_PREFIX
                ):
                    rows = output[:, prefix:]
        if rows is not None and d in (None, rows.shape[-1]):
            return rows
        tokens = "a few" if self.prefix_tokens is None else self.prefix_tokens
        got = type(output).__name__
        if isinstance(output, Tensor):
            got = f"{tuple(output.shape)} {output.dtype}".replace("torch.", "")
        d = d or "d"
        raise ValueError(
            f"`model` must return floats ({images}, {patches}, {d}), the same after a prefix of "
            f"{tokens} tokens, or ({images}, {d}, {grid[0]}, {grid[1]}) for patches of "
            f"{self.patch_size} pixels: {self.name} returned {got}"
        )

    def _probed(self) -> int:
        """Returns the length of the features of a black image of 14 x 14 patches."""
        side = 14 * self.patch_size
        black = torch.zeros(1, 3, side, side, dtype=torch.float32, device=self.device)
        try:
            return int(self(black).shape[-1])
        except ValueError:
            raise
        except Exception as error:  # the code is the user's
            raise ValueError(
                "`dim` must be given for a model that does not say it and takes no image of "
                f"{side} pixels: {self.name} raised {type(error).__name__} ({error})"
            ) from error


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


def _whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number as an int; raises ``ValueError`` for anything else."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    require(name, value, f"an integer >= {least}", whole and value >= least)
    return int(value)


def _patch_size(model: Any, size: Any) -> Any:
    """Returns the patch size, given or said by the model; None if there is none."""
    embedding, config = getattr(model, "patch_embed", None), getattr(model, "config", None)
    for holder in (model, embedding, config) if size is None else ():
        size = getattr(holder, "patch_size", None) if size is None else size
    return size[0] if isinstance(size, Sequence) and len(set(size)) == 1 else size


def _length(model: Any) -> int | None:
    """Returns the length of features that a model says; None if it says none."""
    for holder, name in ((model, "embed_dim"), (getattr(model, "config", None), "hidden_size")):
        length = getattr(holder, name, None)
        if isinstance(length, int):
            return length
    return None


def _colours_of(model: Any, name: str, colours: Any) -> Any:
    """Returns the mean or the standard deviation, given or said by timm's model, or None."""
    if colours is None:
        colours = (getattr(model, "pretrained_cfg", None) or {}).get(name)
    return colours


def _colours(name: str, colours: Any) -> Colours:
    """Returns the mean or the standard deviation of the input as three numbers."""
    try:
        values = np.asarray(colours, dtype=np.float64).tolist()
    except (TypeError, ValueError):
        values = None
    three = isinstance(values, list) and len(values) == 3 and bool(np.isfinite(values).all())
    require(name, colours, "three numbers", three)
    if name == "std":
        require(name, colours, "three numbers > 0", min(values) > 0)
    return values[0], values[1], values[2]


def _tensor_of(output: Any) -> Any:
    """Returns the patch features in an output, which may be a mapping or have attributes."""
    for name in ("x_norm_patchtokens", "last_hidden_state"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if hasattr(output, name):
            return getattr(output, name)
    return output
