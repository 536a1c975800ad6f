"""``labels.jsonl``: one JSON object per image, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

Record = dict[str, Any]


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets ``write`` fill a temporary file beside ``path``, then moves it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Records:
    """The records of a folder of labels, by source image.

    Each is appended and flushed when it is added, so that a run that is killed loses nothing;
    :meth:`close` rewrites the file with one line per image.
    """

    def __init__(self, path: Path) -> None:
        """Reads ``path`` if it exists and locks it; a last line that was cut off is dropped.

        Raises ``ValueError`` where another run holds it or it is not a file of records.
        """
        self.path = path
        self._records: dict[str, Record] = {}
        self._owners: dict[str, str] = {}
        self._file = path.open("a", encoding="utf-8")
        _lock(self._file, path)
        text = path.read_text(encoding="utf-8", errors="replace")
        *lines, rest = text.split("\n")
        for number, line in enumerate(lines, 1):
            record = _parsed(line)
            if record is not None:
                self._keep(record["image"], record)
            elif line.strip() and not line.startswith('{"image": '):
                # Not even a record that a killed run cut off: this is another's file.
                self._file.close()
                raise ValueError(
                    f"`out` must hold no file {path.name} of another kind: line {number} of {path} "
                    "is not a record of selfment"
                )
        last = _parsed(rest)
        if last is not None:
            self._keep(last["image"], last)
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def get(self, image: str) -> Record:
        """The latest record of a source image; empty if there is none."""
        return self._records.get(image, {})

    def owns(self, mask: str) -> bool:
        """Whether ``mask`` belongs to a source image."""
        return mask in self._owners

    def claim(self, mask: str, image: str) -> str:
        """The source image that owns ``mask``: the one that did, or now ``image``."""
        return self._owners.setdefault(mask, image)

    def add(self, record: Record) -> None:
        """Keeps and appends one record."""
        self._keep(record["image"], record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Rewrites the file atomically with one line per image, in the order of first labelling."""
        text = "".join(f"{json.dumps(record)}\n" for record in self._records.values())
        write_atomically(self.path, lambda file: file.write(text.encode()))
        self._file.close()

    def _keep(self, image: str, record: Record) -> None:
        if record.get("mask"):
            self._owners[record["mask"]] = image
        self._records[image] = record


def _lock(file: IO[str], path: Path) -> None:
    """Keeps other runs from ``path`` until the file is closed, where the system has such locks."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"`out` must be used by one run at a time: another holds {path}") from None


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("image"), str)
    return record if whole else None
