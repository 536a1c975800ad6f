"""Files: atomic writes, locks, checksums, and sentences that say what went wrong."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
PAGES = (".html", ".htm")  #: endings of a page's file
_FULL = {errno.ENOSPC, errno.EDQUOT}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: C:/ is none
_LOCK_DELAY = 60.0  # seconds: a temporary file that is younger may not have been locked yet


def output_path(argument: str, path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a file or folder to write; ``argument``: its name, for errors.

    Raises ``ValueError`` for an empty text and for a URL, which would become a folder named
    "s3:", say.
    """
    text = os.fspath(path)
    if not text or _URL.match(text):
        raise ValueError(f"`{argument}` must be a path on this machine: got {text!r}")
    return Path(text).absolute()


def output_folder(argument: str, path: str | os.PathLike[str]) -> Path:
    """Returns what :func:`output_path` does, and makes the folder.

    Raises ``ValueError`` if it cannot be made.
    """
    folder = output_path(argument, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(argument, "folder", path, error) from error
    return folder


def not_writable(
    argument: str, kind: str, path: str | os.PathLike[str], error: OSError
) -> ValueError:
    """Returns the error of an output that cannot be written; ``kind``: "file" or "folder"."""
    why = error.strerror or error
    return ValueError(
        f"`{argument}` must be a {kind} that can be written: got {os.fspath(path)!r} ({why})"
    )


def output_file(argument: str, path: str | os.PathLike[str], suffixes: Sequence[str] = ()) -> Path:
    """Returns what :func:`output_path` does, if the file can be written.

    Raises ``ValueError`` for a folder, too, for a device, and if no file can be made beside it.
    ``suffixes``: the endings that the name may have, so that no file of another kind is replaced;
    none allow all.
    """
    file = output_path(argument, path)
    if file.is_dir():
        raise ValueError(f"`{argument}` must be a file, not a folder: got {os.fspath(path)!r}")
    if suffixes and file.suffix.lower() not in suffixes:
        endings = " or ".join(suffixes)
        raise ValueError(f"`{argument}` must be a file {endings}: got {os.fspath(path)!r}")
    folder = next(parent for parent in file.parents if parent.exists())
    try:
        with suppress(FileNotFoundError):
            check_file(file)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise not_writable(argument, "file", path, error) from error
    return file


@contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside ``path`` and moves it there unless the block raises.

    ``durable``: flush it to the disk before it is moved, so that even after a power failure
    ``path`` is the old file or the new one. Needed for files that are not checked when they are
    read, or that take long to make again: records, heads, checkpoints, reports. Not needed for a
    result in the records, which is made again if it is empty, or for a cached tensor, which has a
    checksum. Raises ``OSError``, also if ``path`` is a pipe, a socket or a device.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        check_file(path)  # the move would replace a device instead of writing to it
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    lock_file = None
    try:
        with temporary.open("xb") as file:
            lock_file = os.dup(file.fileno())  # keeps the lock until the file is moved
            with suppress(OSError):  # not every file system has locks: see remove_abandoned
                fcntl.flock(lock_file, fcntl.LOCK_SH)
            yield file
            if durable:
                file.flush()
                os.fsync(lock_file)
        os.replace(temporary, path)
    except BaseException as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        # torch.save replaces the error of the disk by one about its own position in the file.
        disk = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(disk, OSError) and disk.errno in _FULL and disk.filename is None:
            raise _full(disk, path, written) from error
        raise
    finally:
        if lock_file is not None:
            os.close(lock_file)
    if durable:
        # The name is flushed with the folder, if the folder and the file system allow it.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


@contextmanager
def atomic_folder(path: Path, clear: Callable[[Path], object]) -> Iterator[Path]:
    """Makes a temporary folder beside ``path`` and moves it there unless the block raises.

    ``clear``: removes the folder that is there by then, called with ``path`` before the move. It
    raises ``OSError`` for one that must stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    lock_file = os.open(temporary, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system has locks: see remove_abandoned
            fcntl.flock(lock_file, fcntl.LOCK_SH)
        yield temporary
        if path.exists():
            clear(path)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock_file)


def _full(error: OSError, path: Path, written: int) -> OSError:
    """Returns the error of a full disk, with the name of the file and what it takes."""
    free = shutil.disk_usage(path.parent).free
    room = f"it had {written:,} bytes and needs more, {free:,} are free without it"
    return OSError(error.errno, f"{error.strerror} ({room})", str(path))


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False
) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then moves it there in one step.

    ``durable``: see :func:`atomic_file`.
    """
    with atomic_file(path, durable=durable) as file:
        write(file)


def link_atomically(path: Path, target: str, *, replace: bool) -> bool:
    """Makes ``path`` a symbolic link to a file, or a copy of it where links are refused.

    A link or copy that is up to date stays. ``replace``: replace another file; otherwise it stays,
    and False is returned. Raises ``OSError``.
    """
    if path.is_symlink():
        if os.readlink(path) == target:
            return True
    elif path.exists() and _stamp(path) == _stamp(target):
        return True
    if os.path.lexists(path) and not replace:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            os.symlink(target, temporary)
        except OSError:
            shutil.copy2(target, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def remove_abandoned(folder: Path) -> None:
    """Removes the temporary files and folders of killed processes under ``folder``.

    A process locks what it writes; when it is killed, the system releases the locks. On a file
    system without locks nothing is removed. Symbolic links are not followed.
    """
    for parent, folders, names in os.walk(folder):
        abandoned = list(filter(_TEMPORARY.fullmatch, folders))
        folders[:] = [name for name in folders if name not in abandoned]
        for name in (*abandoned, *filter(_TEMPORARY.fullmatch, names)):
            path = os.path.join(parent, name)
            try:
                check_file(path)
                if time.time() - os.stat(path).st_mtime < _LOCK_DELAY:
                    continue
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if name in abandoned and not os.path.islink(path):
                        shutil.rmtree(path)
                    else:
                        os.unlink(path)
                finally:
                    os.close(descriptor)
            except OSError:  # its process is still writing, or this one lacks the rights
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
    """One line that says what went wrong, with the name of the file in an ``OSError``."""
    if isinstance(error, OSError) and error.strerror:
        # If there are two names, the second is the target of a move.
        name = error.filename2 or error.filename
        return error.strerror if name is None else f"{error.strerror}: {os.fspath(name)}"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """``text`` on one line, with escapes for characters that a terminal obeys or cannot show."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nfc(name: str) -> str:
    """The name with composed letters: file systems differ in how they write an umlaut."""
    return unicodedata.normalize("NFC", name)


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises ``OSError`` for a pipe, a socket or a device: to read one could wait for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file; raises ``OSError``."""
    check_file(path)
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class RealPaths:
    """Resolves the symbolic links in the folders of paths; each folder is looked up once.

    A link that is itself the last part stays: a new file would replace the link, not its target.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The path with its folder resolved."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)
