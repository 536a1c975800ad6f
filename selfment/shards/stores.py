"""Stores: files on this machine and on object stores, by the same few operations.

File systems are PyArrow's; protocols that it does not know are fsspec's. A URL is written as
``aws s3`` and fsspec write it: names are not percent-encoded. Options of PyArrow's may follow as a
query, ``s3://bucket/folder?endpoint_override=localhost:9000&scheme=http``.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..util.files import check_file, lock, not_writable, write_atomically
from . import arrow_store
from .arrow_store import ArrowStore
from .fsspec_store import FsspecStore
from .rows import SourceFile
from .store import BUFFER, Store, named
from .urls import LOCAL, Url


class LocalStore(Store):
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self.text = self.uri = os.path.abspath(path)

    def __reduce__(self) -> tuple[object, ...]:
        return LocalStore, (self.uri,)

    def open(self, name: str, buffer: int = BUFFER) -> BinaryIO:
        """Opens a file for reading; pipes, sockets and devices are refused."""
        with named(self, name):
            check_file(self.text_of(name))
            return open(self.text_of(name), "rb", buffering=buffer)

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Writes a file in one step."""
        with named(self, name):
            write_atomically(self._path(name), lambda file: file.write(data), durable=durable)

    def upload(self, name: str, local: Path) -> None:
        """Copies a file in one step."""
        with named(self, name), local.open("rb") as source:
            write_atomically(
                self._path(name), lambda file: shutil.copyfileobj(source, file), durable=True
            )

    def check_writable(self, argument: str) -> None:
        """Makes the folder; raises ``ValueError`` if it cannot be made or written."""
        try:
            os.makedirs(self.text, exist_ok=True)
            if not os.access(self.text, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise not_writable(argument, "folder", self.text, error) from error

    def locked(self, name: str) -> AbstractContextManager[object]:
        """Locks a file until the block ends."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        lock(file, path)
        return file

    def list(self, folder: str = "", *, recursive: bool = True) -> Sequence[SourceFile]:
        """Returns the files under a folder; links to folders are not followed."""
        files = []
        for parent, folders, names in os.walk(self._path(folder), onerror=_unless_missing):
            if not recursive:
                folders.clear()
            for name in names:
                path = os.path.join(parent, name)
                relative = path[len(self.text) :].lstrip("/")
                found = self._stat(relative)
                if found or os.path.lexists(path):  # pipes and broken links fail when they are read
                    files.append(SourceFile(path, relative, *(found or (0, 0))))
        return sorted(files, key=lambda file: file.name)

    def folders(self, folder: str = "") -> Sequence[str]:
        """Returns the names of the folders, and of the links to folders, in one."""
        try:
            with os.scandir(self._path(folder)) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [f"{folder}/{name}".lstrip("/") for name in names]

    def is_folder(self, name: str) -> bool:
        """Returns whether there is a folder, or a link to one, with this name."""
        return self._path(name).is_dir()

    def _path(self, name: str) -> Path:
        return Path(self.text_of(name))

    def _stat(self, name: str) -> tuple[int, int] | None:
        try:
            found = os.stat(self.text_of(name))
        except OSError as error:
            _unless_missing(error)
            return None
        return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

    def _remove(self, name: str) -> None:
        path = self._path(name)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder that another process has removed, or that is not empty
            while (path := path.parent) != Path(self.text):
                path.rmdir()


def open_store(argument: str, text: str | os.PathLike[str]) -> Store:
    """Opens a folder by its path or URL; ``argument``: its name, for errors.

    Raises ``ValueError`` for an empty text and for a URL that cannot be opened, and ``ImportError``
    if PyArrow is needed and missing.
    """
    text = os.fspath(text)
    if not text:
        raise ValueError(f"`{argument}` must be a path or a URL: got {text!r}")
    url = Url.parse(argument, text)
    if url is None:
        return LocalStore(text)
    if url.scheme in LOCAL:
        return LocalStore(f"/{url.path}")
    url = replace(url, path=url.path.rstrip("/"))
    if url.scheme in arrow_store.SCHEMES:
        return ArrowStore(argument, url)
    return FsspecStore(argument, url)


def _unless_missing(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise error
