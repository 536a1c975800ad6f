"""A folder of tensors: each in a file with a checksum, written whole or not at all."""

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
_RESERVE = 256 << 20  # bytes of the disk that the cache leaves for checkpoints and heads


def key_of(**parts: Any) -> str:
    """The key of a tensor that depends on these JSON values alone."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _checksum(key: str, tensor: Tensor) -> str:
    """CRC-32 of the key, dtype, shape and bytes of a contiguous tensor on the CPU."""
    start = zlib.crc32(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
    data: Any = tensor.flatten().view(torch.uint8).numpy()
    return f"{zlib.crc32(data, start):08x}"


class TensorCache:
    """Tensors by key, as many as fit in a limit of bytes and on the disk."""

    def __init__(self, folder: Path, limit: int | None = None, users: int = 1) -> None:
        """``limit``: bytes that the folder may take, shared by ``users`` processes; None: no limit.

        A folder that cannot be written is only read. Raises ``ValueError`` if there is no folder
        and none can be made.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"`cache` must be a folder: got {os.fspath(folder)!r} ({error.strerror or error})"
            ) from error
        self._lock = Lock()
        self._said_full = False
        self._damaged: set[Path] = set()
        self._left: int | None = None
        if limit is not None:
            here = sum(file.stat().st_size for file in folder.glob(f"*/*{_SUFFIX}"))
            self._left = max(0, limit - here) // users

    def get(self, key: str) -> Tensor | None:
        """The tensor of this key, memory-mapped; None without one, and for a damaged file.

        The checksum of key and content is computed each time. Damage is reported once.
        """
        from safetensors import safe_open

        path = self._path(key)
        try:
            check_file(path)
            with safe_open(path, "pt") as file:
                crc32 = (file.metadata() or {}).get("crc32")
                tensor: Tensor = file.get_tensor("tensor")
            if crc32 == _checksum(key, tensor):
                return tensor
        except FileNotFoundError:
            return None
        except Exception:  # raised by safetensors, torch or the file system for a damaged file
            pass
        self._report_damage(path)
        return None

    def put(self, key: str, tensor: Tensor) -> bool:
        """Stores the tensor; returns False, and says so once, if limit or disk do not allow it."""
        from safetensors.torch import save

        tensor = tensor.contiguous().cpu()
        data = save({"tensor": tensor}, {"crc32": _checksum(key, tensor)})
        try:
            self._reserve(len(data))
            write_atomically(self._path(key), lambda file: file.write(data))
        except OSError as error:
            with self._lock:
                said, self._said_full = self._said_full, True
            if not said:
                reason = error.strerror or error
                print(f"cache: not all is kept in {self.folder} ({reason})", file=sys.stderr)
            return False
        return True

    def _report_damage(self, path: Path) -> None:
        with self._lock:
            said = path in self._damaged
            self._damaged.add(path)
        if not said:
            print(f"cache: {path} is damaged, and computed again", file=sys.stderr)

    def _reserve(self, size: int) -> None:
        """Counts ``size`` bytes against the limit; raises ``OSError`` if they do not fit."""
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
