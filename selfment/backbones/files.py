"""Patch features that are read from files instead of being computed from images."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.arrays import FEATURE_DTYPES, Grid
from ..core.options import require
from ..core.torch_state import as_device
from ..util.files import check_file, reason
from .base import Backbone, check_memory

#: Suffixes of the files that are read, in lower case.
SUFFIXES = (".npy", ".npz", ".safetensors", ".pt", ".pth")

_MOST_PREFIX = 16  # prefix tokens that an error explains; ViTs have up to 9
_SHOWN = 8  # at most so many names in an error


class FeatureFiles(Backbone):
    """A backbone whose features exist: its input is a map (d, h, w) of them, a patch a pixel.

    A file holds the features of one image: (N, d) or (1, N, d), (h, w, d), (d, h, w) or
    (1, d, h, w), with N = h * w and patches row by row; float16, bfloat16, float32 or float64. It
    is an array of numpy (``.npy``), an archive (``.npz``, ``.safetensors``), or a tensor or
    dictionary of tensors of ``torch.save``, which is read with ``weights_only``.
    """

    attends = False
    patch_size = 1
    name = "files"

    def __init__(
        self,
        grid: Grid,
        *,
        array: str | None = None,
        prefix_tokens: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Reads nothing yet.

        Args:
            grid: (h, w), the patches of each image.
            array: the name of the features in a file with several arrays.
            prefix_tokens: the number of tokens, such as CLS and registers, before the patches in
                (N, d) and (1, N, d) arrays. They are left out.
            device: where the features are labelled.

        Raises:
            ValueError: a wrong argument.
        """
        is_grid = len(grid) == 2 and all(isinstance(side, int) and side >= 1 for side in grid)
        require("grid", grid, "(h, w), two integers >= 1", is_grid)
        whole = isinstance(prefix_tokens, int) and prefix_tokens >= 0
        require("prefix_tokens", prefix_tokens, "an integer >= 0", whole)
        self.shape: Grid = (grid[0], grid[1])
        self.array = array
        self.prefix_tokens = prefix_tokens
        self.device = as_device(device)

    @property
    def settings(self) -> dict[str, Any]:
        """The grid, and where in a file the features are."""
        names = {"array": self.array, "prefix_tokens": self.prefix_tokens}
        return {"grid": list(self.shape), **names}

    def preprocess(self, image: Image.Image, size: int) -> Tensor:
        """Raises ``ValueError``: the features of an image are in its file."""
        del image, size
        raise ValueError("`backbone` must compute features of images: these are read from files")

    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, d) features, in their dtype, of (B, d, h, w) that were read."""
        return batch.to(self.device).flatten(2).transpose(1, 2)

    def read(self, path: str | os.PathLike[str]) -> Tensor:
        """Reads the features of an image as (d, h, w), in the dtype of the file.

        Only the features are read from the disk where the format can be memory-mapped: ``.npy``,
        ``.safetensors``, and ``.pt`` of torch >= 1.6. Raises ``ValueError``, a sentence.
        """
        name = os.fspath(path)
        try:
            check_file(name)
            with _opened(Path(name)) as arrays:
                return self._map(_tensor(arrays[self._choose(arrays, name)]), name)
        except _FileError:
            raise
        except Exception as error:  # numpy, torch, zip and safetensors have errors of their own
            raise _FileError(f"cannot read {name}: {_why(error)}") from error

    def _choose(self, arrays: Mapping[str, Any], name: str) -> str:
        """The name of the features among the arrays of a file."""
        if self.array is None and len(arrays) == 1:
            return next(iter(arrays))
        if self.array is not None and self.array in arrays:
            return self.array
        listed = ", ".join(map(repr, list(arrays)[:_SHOWN]))
        listed += f" and {len(arrays) - _SHOWN} more" if len(arrays) > _SHOWN else ""
        if not arrays:
            raise _FileError(f"the file {name} must hold an array: got none")
        rule = "name one of the arrays of a file" + (" with several" if self.array is None else "")
        raise _FileError(f"`array` must {rule}: got {self.array!r} for {name} with {listed}")

    def _map(self, tensor: Tensor, name: str) -> Tensor:
        """Returns the features as (d, h, w), without prefix tokens; raises ``ValueError``."""
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype not in FEATURE_DTYPES:
            raise _FileError(f"the features in {name} must be floats: got {kind}")
        shape = tuple(tensor.shape)
        if tensor.ndim in (3, 4) and len(tensor) == 1:
            tensor = tensor[0]
        h, w = self.shape
        patches, prefix = h * w, self.prefix_tokens
        maps = []
        if tensor.ndim == 2 and len(tensor) == prefix + patches:
            maps.append(tensor[prefix:].T.reshape(-1, h, w))
        if tensor.ndim == 3 and prefix == 0:
            maps += [tensor.permute(2, 0, 1)] if tensor.shape[:2] == (h, w) else []
            maps += [tensor] if tensor.shape[1:] == (h, w) else []
        if len(maps) == 1 and maps[0].numel():
            return maps[0]
        tokens = f"{prefix} + {patches}" if prefix else f"{patches}"
        forms = f"({tokens}, d) or (1, {tokens}, d)"
        forms += "" if prefix else f", ({h}, {w}, d), (d, {h}, {w}) or (1, d, {h}, {w})"
        hint = "; it can be (h, w, d) and (d, h, w)" if len(maps) > 1 else ""
        more = len(tensor) - patches if tensor.ndim == 2 else 0
        if prefix == 0 and 0 < more <= _MOST_PREFIX:
            hint = f"; if tokens such as CLS come before the patches, pass --prefix-tokens {more}"
        raise _FileError(f"the features in {name} must be {forms}: got {shape}{hint}")


class _FileError(ValueError):
    """A file without usable features: a sentence with its name."""


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """Opens a file as a mapping from names to arrays, which are read when they are looked up."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        yield {"the array": np.load(path, mmap_mode="r", allow_pickle=False)}
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    elif suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            yield _Lazy(file)
    else:
        yield _torch_tensors(path)


class _Lazy(Mapping[str, Tensor]):
    """The tensors of an open safetensors file."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(content, Tensor):
        content = {"the tensor": content}
    if not isinstance(content, Mapping):
        raise _FileError(
            f"the file {path} must hold a tensor or a dictionary of tensors: got an object of the "
            f"type {type(content).__name__}"
        )
    tensors = {str(k): value for k, value in content.items() if isinstance(value, Tensor)}
    check_memory(tensors)
    return tensors


def _tensor(array: Any) -> Tensor:
    """Returns an array or a tensor as a tensor in memory, on the CPU and without gradients."""
    if isinstance(array, Tensor):
        return array.detach().clone()
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"its array has the dtype {array.dtype}, not float16, float32 or float64")
    # The copy reads a memory map; torch takes neither foreign byte orders nor read-only memory.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _why(error: Exception) -> str:
    """Says in a few words why a file cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    # numpy and torch refuse objects, which could be code, and take other files for objects.
    if "weights_only" in text or "allow_pickle" in text or "Python objects" in text:
        return "it is damaged, or has objects, which are not loaded"
    return reason(error)
