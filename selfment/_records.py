"""Records: a file with one JSON object per image; files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO, Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

Record = dict[str, Any]

_PATIENCE = 60.0  # seconds that a process of many waits for one that merges the records


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside ``path``, moved there in one step unless the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then moves it there in one step."""
    with atomic_file(path) as file:
        write(file)


class Records:
    """The records of a folder of results, by source image.

    Each is appended and flushed when it is added, so that a run that is killed loses nothing;
    :meth:`close` rewrites the file with one line per image. In memory they are lines of text, a
    fifth of what dictionaries take.

    The processes of a sharded run append to files of their own, ``labels-rank0.jsonl`` beside
    ``labels.jsonl``. Every run reads all of them; the last process to end, or the next run that is
    not sharded, merges them into the one file.
    """

    def __init__(self, path: Path, key: str = "mask", shard: tuple[int, int] = (0, 1)) -> None:
        """Reads ``path`` if it exists and locks it; a last line that was cut off is dropped.

        ``key``: the field that names the file made of an image. ``shard``: rank and number of the
        processes that share the folder. Raises ``ValueError`` where another run holds the file or
        it is not a file of records.
        """
        rank, world = shard
        self.path = path
        self._key = key
        self._lines: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        # Shared among the processes of one run, so that no other run starts meanwhile.
        self._main = _opened(path, shared=world > 1)
        self._file = self._main
        try:
            if world > 1:
                own = path.with_name(f"{path.stem}-rank{rank}{path.suffix}")
                self._file = _opened(own, shared=False)
            self._read_all()
            _end_line(self._file)
        except BaseException:
            self._release()
            raise

    def get(self, image: str) -> Record:
        """The latest record of a source image; empty if there is none."""
        line = self._lines.get(image)
        record: Record = {} if line is None else json.loads(line)
        return record

    def owns(self, name: str) -> bool:
        """Whether the file ``name`` belongs to a source image."""
        return name in self._owners

    def claim(self, name: str, image: str) -> str:
        """The source image that owns the file ``name``: the one that did, or now ``image``."""
        return self._owners.setdefault(name, image)

    def add(self, record: Record) -> None:
        """Keeps and appends one record, with the time in seconds since 1970.

        It is later than the record that it replaces, whatever the clocks of several machines say.
        """
        now = max(time.time(), self.get(record["image"]).get("time", 0) + 0.001)
        record = {**record, "time": round(now, 3)}
        line = json.dumps(record)
        self._keep(record, line)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self, finish: Callable[[Iterable[Record]], object] = list) -> None:
        """Calls ``finish`` with the records, then rewrites the file with one line per image.

        ``finish`` may add records. The file is written atomically. A process of a sharded run does
        so only if it is the last, with the lines of all.
        """
        try:
            if self._file is not self._main:
                if not _last(self._main):
                    return
                self._read_all()  # what the others have added
            try:
                finish(json.loads(line) for line in self._lines.values())
            finally:
                self._merge()
        finally:
            self._release()

    def _merge(self) -> None:
        with atomic_file(self.path) as file:
            file.writelines(line.encode() + b"\n" for line in self._lines.values())
        for part in self._parts():
            part.unlink()

    def _release(self) -> None:
        self._file.close()
        self._main.close()

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}-rank*{self.path.suffix}"))

    def _read_all(self) -> None:
        for path in (self.path, *self._parts()):
            latest: dict[str, str] = {}
            for record, line in _read(path):
                latest[record["image"]] = line
                self._own(record)
            # Within a file the last line is the latest; between files the time says.
            for image, line in latest.items():
                other = self._lines.get(image)
                if other is None or _time(line) >= _time(other):
                    self._lines[image] = line

    def _keep(self, record: Record, line: str) -> None:
        self._own(record)
        self._lines[record["image"]] = line

    def _own(self, record: Record) -> None:
        if record.get(self._key):
            self._owners[record[self._key]] = record["image"]


def lock(file: IO[str], path: Path, *, shared: bool = False) -> None:
    """Keeps other runs from ``path`` until the file is closed, where the system has such locks.

    ``shared``: only those that do not share it. Raises ``ValueError`` where another run holds it.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"`out` must be used by one run at a time: another holds {path}") from None


def _opened(path: Path, *, shared: bool) -> IO[str]:
    """The file, made if it is missing, for appending, and locked."""
    end = time.monotonic() + (_PATIENCE if shared else 0)
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            lock(file, path, shared=shared)
        except ValueError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
            continue
        # The run that held it may have put another file in its place.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _last(main: IO[str]) -> bool:
    """Whether no other process shares the locked file; locks it against all others then."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(main, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Iterator[tuple[Record, str]]:
    """The records of a file and their lines, less a last one that is cut off.

    Raises ``ValueError``.
    """
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, text in enumerate(file, 1):
            line = text.rstrip("\n")
            record = _parsed(line)
            if record is not None:
                yield record, line
            elif text.endswith("\n") and line.strip() and not line.startswith('{"image": '):
                # Not even a record that a killed run cut off: this is another's file.
                raise ValueError(
                    f"`out` must hold no file {path.name} of another kind: line {number} of {path} "
                    "is not a record of selfment"
                )


def _time(line: str) -> float:
    seconds: float = json.loads(line).get("time", 0)
    return seconds


def _end_line(file: IO[str]) -> None:
    """Ends a line that was cut off, so that the next record begins one."""
    with open(file.fileno(), "rb", closefd=False) as data:
        if data.seek(0, os.SEEK_END):
            data.seek(-1, os.SEEK_END)
            if data.read() != b"\n":
                file.write("\n")


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("image"), str)
    return record if whole else None
