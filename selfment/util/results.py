"""Finds out from the records in a folder which of its files are results of selfment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator

from .files import check_file
from .lines import Record, without_checksum

_FILE = re.compile(r"(labels|predictions)(-rank\d+)?\.jsonl")
_TRAINING = {"settings.json", "steps.jsonl"}  # files of a run of `selfment train`
_FIELDS = (
    *("name", "mask", "overlay", "annotations", "boxes", "saliency", "fiedler"),
    *("mask_frames", "saliency_frames"),  # folders
)
_LINKS = "images/"  # where links to images are
_LONGEST = 1 << 20  # characters read of a line: a file of one long line is not read whole

#: The list of the links to images, of a data set for YOLO.
LINK_LIST = "images.txt"


def record_file(folder: str, names: Iterable[str]) -> str | None:
    """Returns the name of the file with records among the ``names`` in a folder, or None."""
    names = list(names)
    if _TRAINING.issubset(names):
        return "steps.jsonl"
    for name in sorted(filter(_FILE.fullmatch, names)):
        if next(_records(os.path.join(folder, name)), None) is not None:
            return name
    return None


def recorded_files(folder: str) -> dict[str, tuple[str, str]]:
    """Returns the results that the records in a folder name: files, and folders of frames.

    The keys are their relative paths. A value is ``"labels"`` or ``"predictions"``, and the name of
    the record's field; ``"link"`` for a link to an image.
    """
    results: dict[str, tuple[str, str]] = {}
    inputs = set()
    try:
        names = sorted(filter(_FILE.fullmatch, os.listdir(folder)))
    except OSError:
        return results
    for name in names:
        for record in _records(os.path.join(folder, name)):
            inputs.add(record.get("path"))
            for entry in (record.get("last"), record):
                fields = entry if isinstance(entry, dict) else {}
                for field in _FIELDS:
                    if isinstance(file := fields.get(field), str):
                        results[file] = name.partition(".")[0].partition("-")[0], field
    if results:
        real = os.path.realpath(folder)
        for link in listed_links(folder):
            if os.path.join(real, link) not in inputs:  # in place of a link, the image itself
                results[link] = "labels", "link"
    return results


def listed_links(folder: str) -> list[str]:
    """Returns the relative paths of the links to images in a folder's list; empty without one."""
    try:
        check_file(os.path.join(folder, LINK_LIST))
        with open(os.path.join(folder, LINK_LIST), encoding="utf-8") as file:
            names = [line.rstrip("\n").removeprefix("./") for line in file]
    except (OSError, ValueError):
        return []
    return [name for name in names if name.startswith(_LINKS) and ".." not in name.split("/")]


def _records(path: str) -> Iterator[Record]:
    """Yields the undamaged records of a file; none if it contains no records of selfment."""
    try:
        check_file(path)
        with open(path, encoding="utf-8", errors="replace") as file:
            while line := file.readline(_LONGEST):
                content = without_checksum(line.rstrip("\n"))
                if content is None:
                    continue
                record = json.loads(content)
                if isinstance(record, dict) and "image" in record and "settings" in record:
                    yield record
    except (OSError, ValueError, RecursionError):
        return
