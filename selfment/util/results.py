"""What the records in a folder say of the files there: which of them are results, and of what."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator

from .files import check_file
from .lines import Record, unsealed

_FILE = re.compile(r"(labels|predictions)(-rank\d+)?\.jsonl")
_TRAINING = {"settings.json", "steps.jsonl"}  # of a run of `selfment train`
_FIELDS = ("name", "mask", "overlay", "annotations", "boxes", "saliency")
_LONGEST = 1 << 20  # characters of a line: a file of one long line is not read whole


def record_file(folder: str, names: Iterable[str]) -> str | None:
    """The name of a file with records of selfment, of those in a folder; None where none has."""
    names = list(names)
    if _TRAINING.issubset(names):
        return "steps.jsonl"
    for name in sorted(filter(_FILE.fullmatch, names)):
        if next(_records(os.path.join(folder, name)), None) is not None:
            return name
    return None


def recorded_files(folder: str) -> dict[str, tuple[str, str]]:
    """The results that the records in a folder name, by their relative paths.

    Of each, whether it is of ``"labels"`` or of ``"predictions"``, and the record's field.
    """
    found: dict[str, tuple[str, str]] = {}
    try:
        names = sorted(filter(_FILE.fullmatch, os.listdir(folder)))
    except OSError:
        return found
    for name in names:
        for record in _records(os.path.join(folder, name)):
            for one in (record.get("last"), record):
                fields = one if isinstance(one, dict) else {}
                for field in _FIELDS:
                    if isinstance(file := fields.get(field), str):
                        found[file] = name.partition(".")[0].partition("-")[0], field
    return found


def _records(path: str) -> Iterator[Record]:
    """The whole records of a file; nothing of a file of another kind, as one of captions."""
    try:
        check_file(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_LONGEST):
                content = unsealed(line.rstrip("\n"))
                if content is None:
                    continue
                record = json.loads(content)
                if isinstance(record, dict) and "image" in record and "settings" in record:
                    yield record
    except (OSError, ValueError, RecursionError):
        return
