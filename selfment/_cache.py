"""A folder of tensors: one file each, written whole or not at all, read through memory maps."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ._records import write_atomically

_SUFFIX = ".safetensors"


def key_of(**parts: Any) -> str:
    """A name for what depends on these JSON values and nothing else."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def content_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class TensorCache:
    """Tensors by key, as many as a limit of bytes allows."""

    def __init__(self, folder: Path, limit: int | None = None, users: int = 1) -> None:
        """``limit``: bytes that the folder may take, shared by ``users``; None: no limit."""
        self.folder = folder
        self.left = None
        if limit is not None:
            here = sum(file.stat().st_size for file in folder.glob(f"*/*{_SUFFIX}"))
            self.left = max(0, limit - here) // users

    def get(self, key: str) -> Tensor | None:
        """The tensor, memory-mapped; None where there is none, or none that can be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(key), "pt") as file:
                tensor: Tensor = file.get_tensor("tensor")
        except (OSError, SafetensorError):
            return None
        return tensor

    def put(self, key: str, tensor: Tensor) -> bool:
        """Keeps the tensor; False where the limit does not allow it or the disk is full."""
        from safetensors.torch import save

        if self.left is not None and tensor.nbytes > self.left:
            return False
        data = save({"tensor": tensor.contiguous().cpu()})
        try:
            write_atomically(self._path(key), lambda file: file.write(data))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        if self.left is not None:
            self.left -= len(data)
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"
