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

from ..util.files import atomic_file, lock
from ..util.lines import Record, with_checksum, without_checksum

_LOCK_PATIENCE = 60.0  # seconds that a process of several waits for one that merges the records

_JSON_STRING = r'("(?:[^"\\]|\\.)*")'
_IMAGE = re.compile(rf'\{{"image": {_JSON_STRING}')


class StoredRecords:
    """The records of a folder of results, by image, read without a lock: a run may be adding more.

    In memory records are lines of text, which take a fifth of what dictionaries take.

    A line ends with its own checksum. A line whose checksum is wrong or missing is reported on
    stderr and ignored, and so are earlier lines of its image.

    The processes of a sharded run append to files of their own, ``labels-rank0.jsonl`` beside
    ``labels.jsonl``, which are all read.
    """

    def __init__(self, path: Path, key: str, reports_damage: bool = True) -> None:
        """Reads nothing yet, see :meth:`read`.

        ``path``: the file of a run that is not sharded. ``key``: the field that names the main
        output file of an image. ``reports_damage``: print the number of damaged lines on stderr.
        """
        self.path = path
        self._key = key
        self._reports_damage = reports_damage  # only when the files are read first
        self._lines: dict[str, str] = {}  # by image, without the checksums
        self._image_of_file: dict[str, str] = {}
        self._damaged: dict[str, tuple[str, str]] = {}  # by image: its file, if known, and the line
        #: True if the file on the disk does not have exactly one line for each record
        self.changed = False

    def get(self, image: str) -> Record:
        """The latest record of an image; empty if there is none."""
        line = self._lines.get(image)
        record: Record = {} if line is None else json.loads(line)
        return record

    def all(self) -> Iterator[Record]:
        """Yields the latest record of each image."""
        return (json.loads(line) for line in self._lines.values())

    def read(self) -> None:
        """Reads all files, or reads them again; raises ``OSError`` and ``ValueError``."""
        count = 0
        for path in (self.path, *self._rank_files()):
            latest: dict[str, str] = {}
            for line, image, record in _read_lines(path, self._key, self._reports_damage):
                count += 1
                self.changed = self.changed or path != self.path
                if record is not None:
                    latest[image] = line
                    self._damaged.pop(image, None)
                    self._reserve_files(record)
                elif image:
                    latest.pop(image, None)
                    self._lines.pop(image, None)
                    self._damaged[image] = _file_in_damaged(line, self._key), line
            # Within a file the last line is the latest; between files the time decides.
            for image, line in latest.items():
                other = self._lines.get(image)
                if other in (None, line) or _time(line) >= _time(other):
                    self._lines[image] = line
        for image in self._lines:
            self._damaged.pop(image, None)
        # If each line is of another image, a rewritten file would have the same lines.
        self.changed = self.changed or count != len(self._lines) + len(self._damaged)
        self._reports_damage = False

    def _rank_files(self) -> list[Path]:
        name = re.compile(rf"{re.escape(self.path.stem)}-rank\d+{re.escape(self.path.suffix)}")
        files = self.path.parent.glob(f"{self.path.stem}-rank*{self.path.suffix}")
        return sorted(file for file in files if name.fullmatch(file.name))

    def _reserve_files(self, record: Record) -> None:
        # Names of other files follow from that of the main one.
        for name in (record.get(self._key), record.get("boxes")):
            if name:
                self._image_of_file[name] = record["image"]


class Records(StoredRecords):
    """The records of a folder of results, locked, to add to.

    A record is appended and flushed when it is added, so that a run that is killed loses nothing;
    :meth:`close` rewrites the file with one line per image, unless it is like that already. The
    image of a damaged line is done again, under the same name.

    The last process of a sharded run to end merges the files of all into the one, or else the next
    run that is not sharded.
    """

    def __init__(self, path: Path, key: str = "mask", shard: tuple[int, int] = (0, 1)) -> None:
        """Reads ``path`` if it exists and locks it; a line that was cut off is dropped.

        ``key``: see :class:`StoredRecords`. ``shard``: the rank of this process and the number of
        processes that share the folder. Raises ``ValueError`` if another
        run has locked the file, or if it is not a file of records.
        """
        rank, world = shard
        super().__init__(path, key, reports_damage=rank == 0)
        # The processes of a sharded run share this lock, so that no other run starts meanwhile.
        self._main = _open_locked(path, shared=world > 1)
        self._file = self._main
        try:
            if world > 1:
                own = path.with_name(f"{path.stem}-rank{rank}{path.suffix}")
                self._file = _open_locked(own, shared=False)
            self.read()
            _end_last_line(self._file)
        except BaseException:
            self._release()
            raise

    def locations(self) -> Iterator[tuple[str, str, str | None]]:
        """Each image with its path, and the name that it shares with another image, if any."""
        for image, line in self._lines.items():
            record = json.loads(line)
            if record.get("path"):
                yield image, record["path"], record.get("twin")

    def names_a_file(self, record: Record) -> bool:
        """True if a record names the main output file of its image."""
        return bool(record.get(self._key))

    def is_recorded(self, file: str, image: str) -> bool:
        """True if a record names an output file, or if the damaged record of ``image`` does."""
        return file in self._image_of_file or self._damaged.get(image, ("", ""))[0] == file

    def is_in_damaged(self, file: str, image: str) -> bool:
        """True if any field of the damaged record of ``image`` is ``file``."""
        return f": {json.dumps(file)}" in self._damaged.get(image, ("", ""))[1]

    def reserve(self, file: str, image: str) -> bool:
        """Reserves an output file for an image; False if another image has it."""
        return self._image_of_file.setdefault(file, image) == image

    def add(self, record: Record) -> None:
        """Appends a record, with the time in seconds since 1970.

        The time is later than that of the record it replaces, even if the clocks of several
        machines differ.
        """
        now = max(time.time(), self.get(record["image"]).get("time", 0) + 0.001)
        record = {**record, "time": round(now, 3)}
        line = json.dumps(record)
        self.changed = True
        self._reserve_files(record)
        self._lines[record["image"]] = line
        self._damaged.pop(record["image"], None)
        try:
            self._file.write(with_checksum(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise _with_path(error, self.path) from error

    def close(self, compose: Callable[[Iterable[Record]], object] = list) -> None:
        """Calls ``compose`` with the records, then rewrites the file with one line per image.

        ``compose`` may add records. The file is written atomically. It is not written if nothing
        has :attr:`changed`, or if ``compose`` raises: the next run then sees that what it composes
        is not up to date. A process of a sharded run does all this only if it is the last, with the
        records of all.
        """
        try:
            if self._file is not self._main:
                if not _lock_if_last(self._main):
                    return
                self.read()  # what the others have added
            compose(self.all())
            if self.changed:
                self._merge()
            for file in self._rank_files():
                file.unlink()
        finally:
            self._release()

    def _merge(self) -> None:
        try:
            with atomic_file(self.path, durable=True) as file:
                file.writelines(
                    f"{with_checksum(line)}\n".encode() for line in self._lines.values()
                )
                # Damaged lines of images that have not been among the inputs since.
                file.writelines(f"{line}\n".encode() for _, line in self._damaged.values())
        except OSError as error:
            raise _with_path(error, self.path) from error

    def _release(self) -> None:
        try:
            self._file.close()  # writes what was left in the buffer when the disk was full
        except OSError as error:
            raise _with_path(error, self.path) from error
        finally:
            self._main.close()


def _open_locked(path: Path, *, shared: bool) -> IO[str]:
    """Opens a file for appending and locks it; makes it if it is missing."""
    end = time.monotonic() + (_LOCK_PATIENCE if shared else 0)
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            lock(file, path, shared=shared)
        except ValueError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
            continue
        # The run that had locked it may have put another file in its place.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _lock_if_last(main: IO[str]) -> bool:
    """Locks a shared file against all others; False if another process still shares it.

    On a file system without locks it is False, too: no process is known to be the last.
    """
    try:
        fcntl.flock(main, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read_lines(path: Path, key: str, reports: bool) -> Iterator[tuple[str, str, Record | None]]:
    """Reads each line of a file: the line, the image that it names, and the record.

    An intact line comes without its checksum. The record is None for a damaged line.
    The image is empty if a damaged line names none, or is the last line and cut off. ``reports``:
    print the number of damaged lines on stderr. Raises ``ValueError`` for a file of another kind.
    """
    foreign, damaged, first, intact = 0, 0, 0, 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, text in enumerate(file, 1):
            line = text.rstrip("\n")
            content = without_checksum(line)
            if content is not None and (record := _parse_record(content, key)) is not None:
                intact += 1
                yield content, record["image"], record
                continue
            image = ""
            if text.endswith("\n") and line.strip():
                damaged += 1
                first = first or number
                if not line.startswith('{"image": ') or _is_foreign(line):
                    foreign = foreign or number
                image = _first_string(_IMAGE.match(line))
            yield line, image, None
    if foreign and not intact:
        # There are not even records that a killed run cut off: it is the file of another program.
        raise ValueError(
            f"`out` must hold no file {path.name} of another kind: line {foreign} of {path} "
            "is not a record of selfment"
        )
    if damaged and reports:
        lines = "1 line is" if damaged == 1 else f"{damaged} lines are"
        print(
            f"{lines} damaged in {path}, the first is line {first}: what they say of images counts "
            "as not done",
            file=sys.stderr,
        )


def _is_foreign(line: str) -> bool:
    """True if a line is JSON, but no record: every record has settings."""
    try:
        return "settings" not in json.loads(line)
    except (ValueError, RecursionError, TypeError):
        return False


def _time(line: str) -> float:
    seconds: float = json.loads(line).get("time", 0)
    return seconds


def _end_last_line(file: IO[str]) -> None:
    """Ends a line that was cut off, so that the next record gets a line of its own."""
    with open(file.fileno(), "rb", closefd=False) as data:
        if data.seek(0, os.SEEK_END):
            data.seek(-1, os.SEEK_END)
            if data.read() != b"\n":
                file.write("\n")


def _file_in_damaged(line: str, key: str) -> str:
    """The name of the main output file in a damaged line; empty if there is none."""
    return _first_string(re.search(rf'"{key}": {_JSON_STRING}', line))


def _first_string(match: re.Match[str] | None) -> str:
    """The JSON string in the first group of a match; empty if there is none."""
    try:
        return str(json.loads(match[1])) if match else ""
    except ValueError:
        return ""


def _parse_record(line: str, key: str) -> Record | None:
    """The record in a line; None if it is no record, or names a file outside the folder."""
    try:
        record: Record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        return None
    if not isinstance(record.get("time", 0), int | float):
        return None
    name = record.get(key)
    if name is not None and (not isinstance(name, str) or _is_outside(name)):
        return None
    return record


def _is_outside(name: str) -> bool:
    """True if a relative name leads out of the folder."""
    return os.path.isabs(name) or ".." in name.split("/") or "\0" in name


def _with_path(error: OSError, path: Path) -> OSError:
    """The error of an open file, which has no path yet, with its path."""
    return OSError(error.errno, error.strerror or str(error), os.fspath(path))
