"""Stores on the file systems of fsspec, such as Hugging Face's hub, adlfs and HTTP servers."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..util.extras import load_extra
from ..util.files import reason
from .arrow_store import SCHEMES
from .rows import SourceFile
from .store import BUFFER, RemoteStore, named
from .urls import Url

_HTTP = ("http", "https")
_PATIENCE = 60.0  # seconds without an answer
_MISSING = (404, 410)  # statuses
#: Where file systems have the time of change, in this order.
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created")
#: Where those without a time have what tells two contents apart.
_TAGS = ("ETag", "etag", "blob_id", "Content-MD5", "Digest")


class FsspecStore(RemoteStore):
    """A folder on a file system of fsspec."""

    def _open_system(self, url: Url) -> tuple[Any, str]:
        if url.query:
            raise ValueError(f"a query is for {', '.join(SCHEMES)}")
        fsspec = load_extra("fsspec.core", "fsspec", "shards", f"a {url.scheme} URL")
        options = {}
        if url.scheme in _HTTP:  # by default, a file must have been read after five minutes
            http = load_extra("aiohttp", "aiohttp", "shards", f"a {url.scheme} URL")
            timeout = http.ClientTimeout(total=None, sock_connect=_PATIENCE, sock_read=_PATIENCE)
            options["client_kwargs"] = {"timeout": timeout}
        system, root = fsspec.url_to_fs(url.uri, **options)
        return system, str(root).rstrip("/")

    def open(self, name: str, buffer: int = BUFFER) -> BinaryIO:
        """Opens a file for reading."""
        with named(self, name):
            if self._url.scheme in _HTTP:
                raw: Any = _HttpFile(self._system, self._path(name), buffer)
                return io.BufferedReader(raw, buffer)
            file: BinaryIO = self._system.open(self._path(name), "rb", block_size=buffer)
            return file

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with named(self, name):
            content: bytes = self._system.cat_file(self._path(name))
            return content

    def check_writable(self, argument: str) -> None:
        """Raises ``ValueError`` for HTTP, and as that of other stores."""
        if self._url.scheme in _HTTP:
            raise ValueError(
                f"`{argument}` must be on a file system that can be written: got {self.text!r}"
            )
        super().check_writable(argument)

    def list(self, folder: str = "", *, recursive: bool = True) -> Sequence[SourceFile]:
        """Returns the files under a folder."""
        files = [
            SourceFile(self.text_of(name), name, *_stamp(info))
            for name, info in self._entries(folder, recursive)
            if info["type"] == "file"
        ]
        return sorted(files, key=lambda file: file.name)

    def folders(self, folder: str = "") -> Sequence[str]:
        """Returns the names of the folders in one."""
        return sorted(
            name for name, info in self._entries(folder, False) if info["type"] == "directory"
        )

    def is_folder(self, name: str) -> bool:
        """Returns whether there is a folder with this name; on an HTTP server there is none."""
        if self._url.scheme in _HTTP:  # fsspec would load the file
            return False
        self._system.invalidate_cache()
        with named(self, name):
            return bool(self._system.isdir(self._path(name)))

    def _entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if self._url.scheme in _HTTP:
            raise self._no_folder(folder)
        path = self._path(folder)
        self._system.invalidate_cache()
        with named(self, folder), suppress(FileNotFoundError, NotADirectoryError):
            if recursive:
                infos = list(self._system.find(path, detail=True).values())
            else:
                infos = self._system.ls(path, detail=True)
            root = self._root.strip("/")
            for info in infos:
                name = info["name"].strip("/").removeprefix(root).lstrip("/")
                if name != folder:
                    yield name, info

    def _stat(self, name: str) -> tuple[int, int] | None:
        self._system.invalidate_cache()
        with named(self, name):
            try:
                info = self._system.info(self._path(name))
            except (FileNotFoundError, NotADirectoryError) as error:
                cause = error.__cause__  # of HTTP, where each error is raised as this one
                if cause is None or getattr(cause, "status", None) in _MISSING:
                    return None
                raise OSError(reason(cause)) from None
        if self._url.scheme in _HTTP and info.get("mimetype") == "text/html":
            raise self._no_folder(name)
        return _stamp(info) if info["type"] == "file" else None

    def _no_folder(self, name: str) -> ValueError:
        """The error for a list of files, or a page, on an HTTP server."""
        return ValueError(
            f"`{self._argument}` must name files one by one, or by braces, on an HTTP server: "
            f"got {self.text_of(name)!r}"
        )

    def _exists(self, path: str) -> bool:
        return bool(self._system.exists(path))

    def _write(self, path: str, data: bytes) -> None:
        self._system.pipe_file(path, data)

    def _upload(self, path: str, local: Path) -> None:
        self._system.put_file(os.fspath(local), path)

    def _make_folder(self, path: str) -> None:
        self._system.makedirs(path, exist_ok=True)

    def _move(self, path: str, target: str) -> None:
        self._system.mv(path, target)

    def _delete(self, path: str) -> None:
        self._system.rm_file(path)


class _HttpFile(io.RawIOBase):
    """A file on an HTTP server: one stream, and requests of ranges after the first seek."""

    def __init__(self, system: Any, path: str, buffer: int) -> None:
        """``buffer``: bytes of a request."""
        super().__init__()
        self._system = system
        self._path = path
        self._buffer = buffer
        self._size: int | None = system.info(path).get("size")
        self._file = system.open(path, block_size=0)
        self._position = 0
        self._is_stream = True

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._size is not None

    def readinto(self, target: Any) -> int:
        data = self._file.read(len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size or 0}
        position = start[whence] + offset
        if position == self._position:
            return position
        if self._is_stream:
            self._file.close()
            self._file = self._system.open(self._path, block_size=self._buffer)
            self._is_stream = False
        self._position = self._file.seek(position)
        return position

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _stamp(info: Mapping[str, Any]) -> tuple[int, int]:
    """Returns a file's bytes and time of change in ns.

    Where a file system has no times, a number stands for the tag of the content.
    """
    size = info.get("size") or 0
    for value in map(info.get, _TIMES):
        if isinstance(value, str):
            with suppress(ValueError):
                value = _parsed(value)
        if isinstance(value, datetime):
            zoned = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            return size, int(zoned.timestamp() * 10**6) * 1000
        if isinstance(value, int | float) and value:
            return size, int(value * 10**6) * 1000
    tag = next((str(value) for value in map(info.get, _TAGS) if value), None)
    if tag is None:
        return size, 0
    return size, int.from_bytes(hashlib.sha256(tag.encode()).digest()[:7], "big")


def _parsed(text: str) -> datetime:
    """Parses a time as HTTP or ISO 8601 writes it; raises ``ValueError``."""
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(text)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
