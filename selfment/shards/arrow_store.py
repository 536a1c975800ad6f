"""Stores on the file systems of PyArrow: S3, Google Cloud Storage, Azure and HDFS."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..util.extras import load_extra
from .rows import SourceFile
from .store import BUFFER, RemoteStore, named
from .urls import Url

_FROM_SLASH = ("hdfs", "viewfs")  # whose paths begin with a slash
_AZURE = ("abfs", "abfss")
SCHEMES = ("s3", "gs", *_AZURE, *_FROM_SLASH)


class ArrowStore(RemoteStore):
    """A folder on a file system of PyArrow."""

    def _open_system(self, url: Url) -> tuple[Any, str]:
        self._arrow = load_extra("pyarrow.fs", "PyArrow", "shards", f"`{self._argument}` as a URL")
        if url.scheme in _AZURE and ":" in url.authority.rpartition("@")[0]:
            raise ValueError(  # PyArrow would ignore it
                "an account key is for az:// and the environment; a shared access signature may be "
                "the query of abfs://"
            )
        # It would decode the path.
        system, root = self._arrow.FileSystem.from_uri(replace(url, path="").uri)
        if root or url.scheme in _FROM_SLASH:
            root = f"{root.rstrip('/')}/"
        return system, f"{root}{url.path}".rstrip("/")

    def open(self, name: str, buffer: int = BUFFER) -> BinaryIO:
        """Opens a file for reading."""
        with named(self, name):
            return io.BufferedReader(self._system.open_input_file(self._path(name)), buffer)

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with named(self, name), self._system.open_input_file(self._path(name)) as file:
            content: bytes = file.read()
            return content

    def list(self, folder: str = "", *, recursive: bool = True) -> Sequence[SourceFile]:
        """Returns the files under a folder."""
        files = [
            SourceFile(self.text_of(name), name, info.size or 0, info.mtime_ns or 0)
            for name, info in self._entries(folder, recursive)
            if info.type == self._arrow.FileType.File
        ]
        return sorted(files, key=lambda file: file.name)

    def folders(self, folder: str = "") -> Sequence[str]:
        """Returns the names of the folders in one."""
        if self._url.scheme == "gs":  # PyArrow lists files only
            start = f"{folder}/" if folder else ""
            inside = (name[len(start) :] for name, _ in self._entries(folder, True))
            return sorted({start + path.partition("/")[0] for path in inside if "/" in path})
        return sorted(
            name
            for name, info in self._entries(folder, False)
            if info.type == self._arrow.FileType.Directory
        )

    def is_folder(self, name: str) -> bool:
        """Returns whether there is a folder, or an object below this name."""
        kind = self._info(name).type
        return bool(kind == self._arrow.FileType.Directory)

    def _entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, Any]]:
        with named(self, folder):
            found = self._system.get_file_info(
                self._arrow.FileSelector(
                    self._path(folder), recursive=recursive, allow_not_found=True
                )
            )
        root = self._root.strip("/")
        for info in found:
            yield info.path.strip("/").removeprefix(root).lstrip("/"), info

    def _info(self, name: str) -> Any:
        with named(self, name):
            return self._system.get_file_info(self._path(name))

    def _stat(self, name: str) -> tuple[int, int] | None:
        info = self._info(name)
        is_file = info.type == self._arrow.FileType.File
        return (info.size or 0, info.mtime_ns or 0) if is_file else None

    def _path(self, name: str) -> str:
        path = super()._path(name)
        return path.lstrip("/") if self._url.scheme in _AZURE else path  # a URL may be of a host

    def _exists(self, path: str) -> bool:
        return bool(self._system.get_file_info(path).type != self._arrow.FileType.NotFound)

    def _write(self, path: str, data: Any) -> None:
        """Writes all in one call: a stream that was left open would end as part of an object."""
        stream = self._system.open_output_stream(path)
        stream.write(data)
        stream.close()

    def _upload(self, path: str, local: Path) -> None:
        arrow = load_extra("pyarrow", "PyArrow", "shards", "a store")
        if local.stat().st_size == 0:  # which cannot be mapped
            self._write(path, b"")
            return
        with arrow.memory_map(os.fspath(local)) as file:
            self._write(path, file.read_buffer())

    def _make_folder(self, path: str) -> None:
        self._system.create_dir(path, recursive=True)

    def _move(self, path: str, target: str) -> None:
        self._system.move(path, target)

    def _delete(self, path: str) -> None:
        self._system.delete_file(path)
