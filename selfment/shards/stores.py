"""Stores: files on this machine and on object stores, by the same few operations.

File systems are PyArrow's; protocols that it does not know are fsspec's. A URL is written as
``aws s3`` and fsspec write it: names are not percent-encoded. Options of PyArrow's may follow as a
query, ``s3://bucket/folder?endpoint_override=localhost:9000&scheme=http``.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..util.extras import load_extra
from ..util.files import check_file, lock, printable, reason, write_atomically
from .rows import SourceFile
from .urls import BUCKETS, LOCAL, Url

_BUFFER = 8 << 20  # bytes of one request, so that its delay counts little
_REQUESTS = 16  # at the same time
_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
#: An object appears there when its stream is closed; elsewhere while it is being written.
_WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "memory")
T = TypeVar("T")


class Store(ABC):
    """A folder on a file system, in which files are named by relative paths with ``/``.

    A file that is written appears as a whole or not at all. The methods raise ``OSError`` with the
    name of the file. A store can be pickled.
    """

    text: str  #: the absolute path or the URL, for messages and records: without credentials
    uri: str  #: the absolute path or the URL that :func:`open_store` takes

    def __reduce__(self) -> tuple[object, ...]:
        return open_store, ("store", self.uri)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def text_of(self, name: str) -> str:
        """Returns the absolute path or URL of a file, for messages and records."""
        return f"{self.text.rstrip('/')}/{name}" if name else self.text

    @abstractmethod
    def open(self, name: str, buffer: int = _BUFFER) -> BinaryIO:
        """Opens a file for reading by requests of ``buffer`` bytes; seeks if its system can."""

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with self.open(name) as file:
            return file.read()

    @abstractmethod
    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Writes a file in one step, and the folders above it.

        ``durable``: see :func:`selfment.util.files.atomic_file`; object stores always are.
        """

    @abstractmethod
    def upload(self, name: str, local: Path) -> None:
        """Copies a file of this machine to the store in one step; the copy is durable."""

    @abstractmethod
    def list(self, folder: str = "", *, recursive: bool = True) -> Sequence[SourceFile]:
        """Returns the files under a folder, by name; none if there is no such folder.

        Their names are relative to the store. ``recursive``: also those in its folders.
        """

    @abstractmethod
    def folders(self, folder: str = "") -> Sequence[str]:
        """Returns the names, relative to the store, of the folders that are directly in one."""

    @abstractmethod
    def is_folder(self, name: str) -> bool:
        """Returns whether there is a folder with this name."""

    def stat(self, names: Sequence[str]) -> Sequence[tuple[int, int] | None]:
        """Returns (bytes, time of change in ns) of each file, or None where there is none."""
        return _at_once(self._stat, names)

    def remove(self, names: Sequence[str]) -> None:
        """Removes files; those that do not exist are ignored."""
        _at_once(self._remove, names)

    def check_writable(self, argument: str) -> None:
        """Raises ``ValueError`` if nothing can be written here; ``argument``: its name, for errors.

        Raises ``OSError`` if an object store does not answer.
        """
        del argument  # other file systems are asked when something is written

    def locked(self, name: str) -> AbstractContextManager[object]:
        """Keeps other runs out of this folder, where its file system has locks.

        ``name``: of the file that is locked. Raises ``ValueError`` if another run has locked it.
        """
        del name
        return nullcontext()

    @abstractmethod
    def _stat(self, name: str) -> tuple[int, int] | None: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class LocalStore(Store):
    """A folder on this machine."""

    def __init__(self, path: str) -> None:
        self.text = self.uri = os.path.abspath(path)

    def open(self, name: str, buffer: int = _BUFFER) -> BinaryIO:
        """Opens a file for reading; pipes, sockets and devices are refused."""
        with _named(self, name):
            check_file(self.text_of(name))
            return open(self.text_of(name), "rb", buffering=buffer)

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Writes a file in one step."""
        with _named(self, name):
            write_atomically(self._path(name), lambda file: file.write(data), durable=durable)

    def upload(self, name: str, local: Path) -> None:
        """Copies a file in one step."""
        with _named(self, name), local.open("rb") as source:
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
            raise ValueError(
                f"`{argument}` must be a folder that can be written: got {self.text!r} "
                f"({error.strerror or error})"
            ) from error

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


class ArrowStore(Store):
    """A folder on a file system of PyArrow or fsspec."""

    def __init__(self, argument: str, url: Url) -> None:
        """``argument``: its name, for errors."""
        self._arrow = load_extra("pyarrow.fs", "PyArrow", "shards", f"`{argument}` as a URL")
        self._url = url
        self.text = url.public
        self.uri = url.uri
        try:
            self._system, self._root = self._open_system()
        except Exception as error:  # whatever the file systems of fsspec raise
            raise ValueError(
                f"`{argument}` must be a URL that can be opened: got {self.text!r} "
                f"({url.without_secrets(reason(error))})"
            ) from None  # the first error may show the credentials

    def _open_system(self) -> tuple[Any, str]:
        """Returns the file system, and the path of the URL on it."""
        if self._url.scheme in _ARROW:  # which would decode the path
            system, root = self._arrow.FileSystem.from_uri(replace(self._url, path="").uri)
            return system, f"{root.rstrip('/')}/{self._url.path}".rstrip("/")
        if self._url.query:
            raise ValueError(f"a query is for {', '.join(_ARROW)}")
        fsspec = load_extra("fsspec.core", "fsspec", "shards", f"a {self._url.scheme} URL")
        system, root = fsspec.url_to_fs(self._url.uri)
        return self._arrow.PyFileSystem(self._arrow.FSSpecHandler(system)), root

    def open(self, name: str, buffer: int = _BUFFER) -> BinaryIO:
        """Opens a file for reading."""
        with _named(self, name):
            return io.BufferedReader(self._system.open_input_file(self._path(name)), buffer)

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with _named(self, name), self._system.open_input_file(self._path(name)) as file:
            content: bytes = file.read()
            return content

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Writes an object in one step."""
        with _named(self, name):
            self._write(name, data)

    def upload(self, name: str, local: Path) -> None:
        """Copies a file of this machine to an object in one step."""
        arrow = load_extra("pyarrow", "PyArrow", "shards", "a store")
        with _named(self, name):
            if local.stat().st_size == 0:  # which cannot be mapped
                self._write(name, b"")
                return
            with arrow.memory_map(os.fspath(local)) as file:
                self._write(name, file.read_buffer())

    def _write(self, name: str, data: Any) -> None:
        """Writes all in one call: a stream that was left open would end as part of an object."""
        path = self._path(name)
        whole = self._url.scheme in _WHOLE
        folder, _, _ = path.rpartition("/")
        temporary = path if whole else f"{folder}/.{uuid.uuid4().hex}.tmp"
        if not whole:
            self._system.create_dir(folder, recursive=True)
        try:
            stream = self._system.open_output_stream(temporary)
            stream.write(data)
            stream.close()
            if not whole:
                self._system.move(temporary, path)
        except BaseException:
            if not whole:
                with suppress(Exception):  # the first error says why
                    self._system.delete_file(temporary)
            raise

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
        return sorted(
            name
            for name, info in self._entries(folder, False)
            if info.type == self._arrow.FileType.Directory
        )

    def check_writable(self, argument: str) -> None:
        """Raises ``ValueError`` if the bucket does not exist."""
        if self._url.scheme not in BUCKETS:
            return
        with _named(self, ""):
            info = self._system.get_file_info(self._root.partition("/")[0])
        if info.type == self._arrow.FileType.NotFound:
            raise ValueError(f"`{argument}` must be in a bucket that exists: got {self.text!r}")

    def is_folder(self, name: str) -> bool:
        """Returns whether there is a folder, or an object below this name."""
        kind = self._info(name).type
        return bool(kind == self._arrow.FileType.Directory)

    def _entries(self, folder: str, recursive: bool) -> Iterator[tuple[str, Any]]:
        with _named(self, folder):
            found = self._system.get_file_info(
                self._arrow.FileSelector(
                    self._path(folder), recursive=recursive, allow_not_found=True
                )
            )
        root = self._root.strip("/")
        for info in found:
            yield info.path.strip("/").removeprefix(root).lstrip("/"), info

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _info(self, name: str) -> Any:
        with _named(self, name):
            return self._system.get_file_info(self._path(name))

    def _stat(self, name: str) -> tuple[int, int] | None:
        info = self._info(name)
        is_file = info.type == self._arrow.FileType.File
        return (info.size or 0, info.mtime_ns or 0) if is_file else None

    def _remove(self, name: str) -> None:
        with _named(self, name), suppress(FileNotFoundError):
            self._system.delete_file(self._path(name))

    def without_secrets(self, message: str) -> str:
        """Returns a message without the credentials and the query of the URL."""
        return self._url.without_secrets(message)


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
    return ArrowStore(argument, replace(url, path=url.path.rstrip("/")))


def _at_once(call: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Returns ``call(name)`` for each name; several requests are under way at the same time."""
    if len(names) < 2:
        return [call(name) for name in names]
    with ThreadPoolExecutor(min(_REQUESTS, len(names))) as pool:
        return list(pool.map(call, names))


def _unless_missing(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        raise error


@contextmanager
def _named(store: Store, name: str) -> Iterator[None]:
    """Raises errors of the block as ``OSError`` with the file's name and without credentials."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such file", store.text_of(name)) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise _clean(store, name, error) from None
    except ImportError:
        raise
    except Exception as error:  # whatever the file systems of fsspec raise
        raise _clean(store, name, error) from None


def _clean(store: Store, name: str, error: Exception) -> OSError:
    message = printable(reason(error))
    if isinstance(store, ArrowStore):
        message = store.without_secrets(message)
    return OSError(getattr(error, "errno", None) or errno.EIO, message, store.text_of(name))
