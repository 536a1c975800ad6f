"""The operations of a store: a few on files, the same on every file system."""

from __future__ import annotations

import errno
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..util.files import printable, reason
from .rows import SourceFile
from .urls import CONTAINERS, Url

BUFFER = 8 << 20  # bytes of one request, so that its delay counts little
#: An object appears there when it has been written; elsewhere while it is being written.
WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "memory")
_REQUESTS = 16  # at the same time
T = TypeVar("T")


class Store(ABC):
    """A folder on a file system, in which files are named by relative paths with ``/``.

    A file that is written appears as a whole or not at all. The methods raise ``OSError`` with the
    name of the file. A store can be pickled.
    """

    text: str  #: the absolute path or the URL, for messages and records: without credentials
    uri: str  #: the absolute path or the URL that :func:`open_store` takes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    def text_of(self, name: str) -> str:
        """Returns the absolute path or URL of a file, for messages and records."""
        return f"{self.text.rstrip('/')}/{name}" if name else self.text

    @abstractmethod
    def open(self, name: str, buffer: int = BUFFER) -> BinaryIO:
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

    @abstractmethod
    def check_writable(self, argument: str) -> None:
        """Raises ``ValueError`` if nothing can be written here; ``argument``: its name, for errors.

        Other file systems than folders and buckets are asked when something is written.
        """

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


class RemoteStore(Store):
    """A folder that a URL names; its file system is a library's."""

    def __init__(self, argument: str, url: Url) -> None:
        """``argument``: its name, for errors."""
        self._argument = argument
        self._url = url
        self.text = url.public
        self.uri = url.uri
        try:
            self._system, self._root = self._open_system(url)
        except ImportError:
            raise
        except Exception as error:  # whatever the file systems of fsspec raise
            raise ValueError(
                f"`{argument}` must be a URL that can be opened: got {self.text!r} "
                f"({url.without_secrets(reason(error))})"
            ) from None  # the first error may show the credentials

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._argument, self._url)

    @abstractmethod
    def _open_system(self, url: Url) -> tuple[Any, str]:
        """Returns the file system, and the path of the URL on it."""

    def write(self, name: str, data: bytes, *, durable: bool = False) -> None:
        """Writes a file in one step."""
        with named(self, name):
            self._put(name, lambda path: self._write(path, data))

    def upload(self, name: str, local: Path) -> None:
        """Copies a file of this machine in one step."""
        with named(self, name):
            self._put(name, lambda path: self._upload(path, local))

    def check_writable(self, argument: str) -> None:
        """Writes an object, reads it and removes it, so that a run does not compute in vain.

        Raises ``ValueError`` if the bucket does not exist, its server does not answer or allow
        that, or something else is read.
        """
        if self._url.scheme not in CONTAINERS:
            return
        name = f".selfment/{uuid.uuid4().hex}.tmp"
        written = name.encode()
        with answering(argument, self), named(self, ""):
            exists = self._exists(self._root.partition("/")[0])
            if exists:
                self.write(name, written)
                read = self.read(name)
                self.remove([name])
        if not exists:
            raise ValueError(f"`{argument}` must be in a bucket that exists: got {self.text!r}")
        if read != written:  # moto stores the encoding of a request without a signature
            raise ValueError(
                f"`{argument}` must be on a server that stores what is written: got {self.text!r}, "
                f"where {len(written)} bytes became {len(read)}"
            )

    def without_secrets(self, message: str) -> str:
        """Returns a message without the credentials and the query of the URL."""
        return self._url.without_secrets(message)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _put(self, name: str, write: Callable[[str], None]) -> None:
        """Calls ``write`` with a path where a file may be incomplete, and moves it if needed."""
        path = self._path(name)
        if self._url.scheme in WHOLE:
            write(path)
            return
        folder, _, _ = path.rpartition("/")
        temporary = f"{folder}/.{uuid.uuid4().hex}.tmp"
        self._make_folder(folder)
        try:
            write(temporary)
            self._move(temporary, path)
        except BaseException:
            with suppress(Exception):  # the first error says why
                self._delete(temporary)
            raise

    def _remove(self, name: str) -> None:
        with named(self, name), suppress(FileNotFoundError):
            self._delete(self._path(name))

    @abstractmethod
    def _exists(self, path: str) -> bool: ...

    @abstractmethod
    def _write(self, path: str, data: bytes) -> None: ...

    @abstractmethod
    def _upload(self, path: str, local: Path) -> None: ...

    @abstractmethod
    def _make_folder(self, path: str) -> None: ...

    @abstractmethod
    def _move(self, path: str, target: str) -> None: ...

    @abstractmethod
    def _delete(self, path: str) -> None: ...


@contextmanager
def answering(argument: str, store: Store) -> Iterator[None]:
    """Raises errors of a remote store as ``ValueError``; ``argument``: its name, for errors.

    A missing file is no such error.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if not isinstance(store, RemoteStore):
            raise
        server = os.environ.get("AWS_ENDPOINT_URL", "") if store.uri.startswith("s3:") else ""
        at = f" at AWS_ENDPOINT_URL={server}" if server else ""
        raise ValueError(
            f"`{argument}` must be on a server that answers: got {store.text!r}{at} "
            f"({error.strerror or error})"
        ) from None


def _at_once(call: Callable[[str], T], names: Sequence[str]) -> list[T]:
    """Returns ``call(name)`` for each name; several requests are under way at the same time."""
    if len(names) < 2:
        return [call(name) for name in names]
    with ThreadPoolExecutor(min(_REQUESTS, len(names))) as pool:
        return list(pool.map(call, names))


@contextmanager
def named(store: Store, name: str) -> Iterator[None]:
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
    if isinstance(store, RemoteStore):
        message = store.without_secrets(message)
    return OSError(getattr(error, "errno", None) or errno.EIO, message, store.text_of(name))
