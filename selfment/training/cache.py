"""A folder of tensors: a file each, written whole or not at all, memory-mapped, with a checksum."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import zlib
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..util.files import check_file, write_atomically

_SUFFIX = ".safetensors"
_RESERVE = 256 << 20  # bytes of a disk that are left for what must be written


def key_of(**parts: Any) -> str:
    """A name for what depends on these JSON values and nothing else."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _checksum(key: str, tensor: Tensor) -> str:
    """CRC-32 of the key, dtype, shape and bytes of a contiguous tensor on the CPU."""
    start = zlib.crc32(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
    data: Any = tensor.flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(data, start):08x}"


class TensorCache:
    """Tensors by key, as many as a limit of bytes and the disk allow."""

    def __init__(self, folder: Path, limit: int | None = None, users: int = 1) -> None:
        """``limit``: bytes that the folder may take, shared by ``users``; None: no limit.

        A folder that cannot be written is read only. Raises ``ValueError`` where there is none and
        none can be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`cache` must be a folder: got {os.fspath(folder)!r} ({error.strerror or error})"
            ) from error
        self._lock = Lock()
        self._told = False
        self._damaged: set[Path] = set()
        self._left: int | None = None
        if limit is not None:
            here = sum(file.stat().st_size for file in folder.glob(f"*/*{_SUFFIX}"))
            self._left = max(0, limit - here) // users

    def get(self, key: str) -> Tensor | None:
        """The tensor, memory-mapped; None where there is none, or a damaged one, which is reported.

        What is read is what was kept under this key: its checksum is computed each time.
        """
        from safetensors import safe_open

        path = self._path(key)
        try:
            check_file(path)
            with safe_open(path, "pt") as file:
                kept = (file.metadata() or {}).get("crc32")
                tensor: Tensor = file.get_tensor("tensor")
            if kept == _checksum(key, tensor):
                return tensor
        except FileNotFoundError:
            return None
        except Exception:  # of the safetensors library, of torch and of the file system
            kept = None
        self._report(path)
        return None

    def put(self, key: str, tensor: Tensor) -> bool:
        """Keeps the tensor; False where limit or disk do not allow it, which is said once."""
        from safetensors.torch import save

        tensor = tensor.contiguous().cpu()
        data = save({"tensor": tensor}, {"crc32": _checksum(key, tensor)})
        try:
            self._reserve(len(data))
            write_atomically(self._path(key), lambda file: file.write(data))
        except OSError as error:
            with self._lock:
                told, self._told = self._told, True
            if not told:
                reason = error.strerror or error
                print(f"cache: not all is kept in {self.folder} ({reason})", file=sys.stderr)
            return False
        return True

    def _report(self, path: Path) -> None:
        with self._lock:
            told = path in self._damaged
            self._damaged.add(path)
        if not told:
            print(f"cache: {path} is damaged, and computed again", file=sys.stderr)

    def _reserve(self, size: int) -> None:
        """Raises ``OSError`` where there is no room for so many bytes."""
        if shutil.disk_usage(self.folder).free < size + _RESERVE:
            raise OSError("the disk is nearly full")
        with self._lock:
            if self._left is None:
                return
            if size > self._left:
                raise OSError("its limit is reached")
            self._left -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"
