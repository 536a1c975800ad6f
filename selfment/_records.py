"""``labels.jsonl``: one JSON object per image, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

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
        """Reads ``path`` if it exists; lines that are no records, cut off or not, are dropped."""
        self.path = path
        self._records: dict[str, Record] = {}
        self._owners: dict[str, str] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):
            record = _parsed(line)
            if record is not None:
                self._keep(record["image"], record)
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def get(self, image: str) -> Record:
        """The latest record of a source image; empty if there is none."""
        return self._records.get(image, {})

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
        self._file.close()
        text = "".join(f"{json.dumps(record)}\n" for record in self._records.values())
        write_atomically(self.path, lambda file: file.write(text.encode()))

    def _keep(self, image: str, record: Record) -> None:
        if record.get("mask"):
            self._owners[record["mask"]] = image
        self._records[image] = record


def _parsed(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("image"), str)
    return record if whole else None
