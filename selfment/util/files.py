"""Files: written whole or not at all, read without waiting, and sentences on what goes wrong."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_YOUNG = 60.0  # seconds for which a temporary file may not have been locked yet


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path``, moved there in one step unless the block raises.

    ``durable``: on the disk before it is moved, so that not even a power failure leaves anything
    but the old file or the new one. It is for what nothing checks when it is read, or what takes
    long to make again: records, heads, checkpoints, reports. A result that the records name is made
    again where it is empty, and a cached tensor where its checksum is wrong. Raises ``OSError``,
    also for a ``path`` that is a pipe, a socket or a device.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        check_file(path)  # a device would be replaced, not written
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    held = None
    try:
        with temporary.open("xb") as file:
            held = os.dup(file.fileno())  # keeps the lock until the file has its name
            with suppress(OSError):  # not every file system has locks: see remove_abandoned
                fcntl.flock(held, fcntl.LOCK_SH)
            yield file
            if durable:
                file.flush()
                os.fsync(held)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if held is not None:
            os.close(held)
    if durable:
        # Not every folder can be read, and some file systems keep names in another way.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False
) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then moves it there in one step.

    ``durable``: see :func:`atomic_file`.
    """
    with atomic_file(path, durable=durable) as file:
        write(file)


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files of killed processes under ``folder``.

    A process locks those that it writes, and the system takes the locks of a killed one. Where the
    file system has no such locks, nothing is removed. Links are not followed.
    """
    for parent, _, names in os.walk(folder):
        for name in filter(_TEMPORARY.fullmatch, names):
            path = os.path.join(parent, name)
            try:
                check_file(path)
                if time.time() - os.stat(path).st_mtime < _YOUNG:
                    continue
                with open(path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            except OSError:  # at work, or not ours to remove
                continue


def lock(file: IO[str], path: Path, *, shared: bool = False) -> None:
    """Locks a file of an output folder until it is closed, if the file system has locks.

    ``shared``: other processes may lock it too, if they share it. Raises ``ValueError`` and closes
    the file if another run has locked it.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"`out` must be used by one run at a time: another holds {path}") from None
    except OSError:  # a file system without locks
        pass


def reason(error: BaseException) -> str:
    """One line that says what went wrong, with the name of the file that it went wrong with."""
    if isinstance(error, OSError) and error.strerror:
        # The second name, where there are two, is that under which a file was to appear.
        name = error.filename2 or error.filename
        return error.strerror if name is None else f"{error.strerror}: {os.fspath(name)}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """``text`` on one line, with escapes for what a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises ``OSError`` for a pipe, a socket or a device: to read one could wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")


def content_of(path: Path) -> str:
    """The SHA-256 of a file; raises ``OSError``."""
    check_file(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class RealPaths:
    """Paths without the links on the way to them; each folder is looked up once.

    A link that is itself the last part stays: a result takes its place, not that of its target.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The same path with the real folder."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)
