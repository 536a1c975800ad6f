"""Records: a file with one JSON object per image, each line with its checksum."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from ..util.files import atomic_file
from ..util.lines import Record, sealed, unsealed

_PATIENCE = 60.0  # seconds that a process of many waits for one that merges the records


class Records:
    """The records of a folder of results, by source image.

    Each is appended and flushed when it is added, so that a run that is killed loses nothing;
    :meth:`close` rewrites the file with one line per image, unless it has these already. In memory
    they are lines of text, a fifth of what dictionaries take. A line ends with its own checksum.
    One whose checksum is wrong or missing is reported on stderr and counts for nothing, and neither
    do earlier ones of its image: the image is done again, under the same name.

    The processes of a sharded run append to files of their own, ``labels-rank0.jsonl`` beside
    ``labels.jsonl``. Every run reads all of them; the last process to end, or the next run that is
    not sharded, merges them into the one file.
    """

    def __init__(self, path: Path, key: str = "mask", shard: tuple[int, int] = (0, 1)) -> None:
        """Reads ``path`` if it exists and locks it; a line that was cut off is dropped.

        ``key``: the field that names the file made of an image. ``shard``: rank and number of the
        processes that share the folder. Raises ``ValueError`` where another run holds the file or
        it is not a file of records.
        """
        rank, world = shard
        self.path = path
        self._key = key
        self._tells = rank == 0  # of damaged lines, at the first reading
        self._lines: dict[str, str] = {}  # less the checksums
        self._owners: dict[str, str] = {}
        self._damaged: dict[str, tuple[str, str]] = {}  # by image: the name, if known, and the line
        #: Whether the file lacks a record, or has more than the latest: where a run was killed, too
        self.changed = False
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

    def places(self) -> Iterator[tuple[str, str, str | None]]:
        """Each image with the path where it lay, and the name that it shares with another."""
        for image, line in self._lines.items():
            record = json.loads(line)
            if record.get("path"):
                yield image, record["path"], record.get("twin")

    def has_files(self, record: Record) -> bool:
        """Whether files of the folder belong to the image of a record."""
        return bool(record.get(self._key))

    def owns(self, name: str, image: str) -> bool:
        """Whether the file ``name`` belongs to any source image.

        A damaged record counts if it gives the name to ``image``; no path is taken from it.
        """
        return name in self._owners or self._damaged.get(image, ("", ""))[0] == name

    def mentions(self, image: str, file: str) -> bool:
        """Whether the damaged record of a source image has a field that is ``file``."""
        return f": {json.dumps(file)}" in self._damaged.get(image, ("", ""))[1]

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
        self.changed = True
        self._own(record)
        self._lines[record["image"]] = line
        self._damaged.pop(record["image"], None)
        try:
            self._file.write(sealed(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise _named(error, self.path) from error

    def close(self, finish: Callable[[Iterable[Record]], object] = list) -> None:
        """Calls ``finish`` with the records, then rewrites the file with one line per image.

        ``finish`` may add records. The file is written atomically, and not at all where nothing
        has :attr:`changed`, or where ``finish`` raises: what it composes is then not yet of these
        records, and the next run sees that. A process of a sharded run does so only if it is the
        last, with the lines of all.
        """
        try:
            if self._file is not self._main:
                if not _last(self._main):
                    return
                self._read_all()  # what the others have added
            finish(json.loads(line) for line in self._lines.values())
            if self.changed:
                self._merge()
            for part in self._parts():
                part.unlink()
        finally:
            self._release()

    def _merge(self) -> None:
        try:
            with atomic_file(self.path, durable=True) as file:
                file.writelines(f"{sealed(line)}\n".encode() for line in self._lines.values())
                # Of images that no run has been asked for since.
                file.writelines(f"{line}\n".encode() for _, line in self._damaged.values())
        except OSError as error:
            raise _named(error, self.path) from error

    def _release(self) -> None:
        try:
            self._file.close()  # which writes what a full disk has not taken, if it can
        except OSError as error:
            raise _named(error, self.path) from error
        finally:
            self._main.close()

    def _parts(self) -> list[Path]:
        name = re.compile(rf"{re.escape(self.path.stem)}-rank\d+{re.escape(self.path.suffix)}")
        files = self.path.parent.glob(f"{self.path.stem}-rank*{self.path.suffix}")
        return sorted(file for file in files if name.fullmatch(file.name))

    def _read_all(self) -> None:
        count = 0
        for path in (self.path, *self._parts()):
            latest: dict[str, str] = {}
            for line, image, record in _read(path, self._key, self._tells):
                count += 1
                self.changed = self.changed or path != self.path
                if record is not None:
                    latest[image] = line
                    self._damaged.pop(image, None)
                    self._own(record)
                elif image:
                    latest.pop(image, None)
                    self._lines.pop(image, None)
                    self._damaged[image] = _name(line, self._key), line
            # Within a file the last line is the latest; between files the time says.
            for image, line in latest.items():
                other = self._lines.get(image)
                if other in (None, line) or _time(line) >= _time(other):
                    self._lines[image] = line
        for image in self._lines:
            self._damaged.pop(image, None)
        # With one line for each image nothing is in the file that would not be written again.
        self.changed = self.changed or count != len(self._lines) + len(self._damaged)
        self._tells = False

    def _own(self, record: Record) -> None:
        for name in (record.get(self._key), record.get("boxes")):
            if name:
                self._owners[name] = record["image"]


def lock(file: IO[str], path: Path, *, shared: bool = False) -> None:
    """Keeps other runs from ``path`` until the file is closed, if the file system has such locks.

    ``shared``: only those that do not share it. Raises ``ValueError`` where another run holds it.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"`out` must be used by one run at a time: another holds {path}") from None
    except OSError:  # without locks
        pass


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
    """Whether no other process shares the locked file; locks it against all others then.

    Where the file system has no locks, no process is known to be the last.
    """
    try:
        fcntl.flock(main, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(path: Path, key: str, tells: bool) -> Iterator[tuple[str, str, Record | None]]:
    """Each line of a file, the image that it names, and the record.

    Of a whole record the line comes without its checksum. There is no record for a line that is
    damaged, and no image for one that names none, or that is the last and cut off. How many are
    damaged is reported on stderr if it ``tells``. Raises ``ValueError`` for a file of another kind.
    """
    strange, damaged, first, whole = 0, 0, 0, 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, text in enumerate(file, 1):
            line = text.rstrip("\n")
            content = unsealed(line)
            if content is not None and (record := _parsed(content, key)) is not None:
                whole += 1
                yield content, record["image"], record
                continue
            named = ""
            if text.endswith("\n") and line.strip():
                damaged += 1
                first = first or number
                if not line.startswith('{"image": ') or _is_foreign(line):
                    strange = strange or number
                named = _text(_IMAGE.match(line))
            yield line, named, None
    if strange and not whole:
        # Not even records that a killed run cut off: this is another's file.
        raise ValueError(
            f"`out` must hold no file {path.name} of another kind: line {strange} of {path} "
            "is not a record of selfment"
        )
    if damaged and tells:
        lines = "1 line is" if damaged == 1 else f"{damaged} lines are"
        print(
            f"{lines} damaged in {path}, the first is line {first}: what they say of images counts "
            "as not done",
            file=sys.stderr,
        )


def _is_foreign(line: str) -> bool:
    """Whether a line is whole JSON, but of no run: every record has settings."""
    try:
        return "settings" not in json.loads(line)
    except (ValueError, RecursionError, TypeError):
        return False


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


_IMAGE = re.compile(r'\{"image": ("(?:[^"\\]|\\.)*")')


def _name(line: str, key: str) -> str:
    """The name of the file in a damaged line; empty where there is none."""
    return _text(re.search(rf'"{key}": ("(?:[^"\\]|\\.)*")', line))


def _text(found: re.Match[str] | None) -> str:
    """The JSON string of a match's first group; empty where there is none."""
    try:
        return str(json.loads(found[1])) if found else ""
    except ValueError:
        return ""


def _parsed(line: str, key: str) -> Record | None:
    """The record of a line; None for one that is none, or names a file outside the folder."""
    try:
        record: Record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        return None
    if not isinstance(record.get("time", 0), int | float):
        return None
    name = record.get(key)
    if name is not None and (not isinstance(name, str) or _leads_outside(name)):
        return None
    return record


def _leads_outside(name: str) -> bool:
    return os.path.isabs(name) or ".." in name.split("/") or "\0" in name


def _named(error: OSError, path: Path) -> OSError:
    """The error of a file that was open, with its path."""
    return OSError(error.errno, error.strerror or str(error), os.fspath(path))
