"""Which image of the records an input file is, wherever the file lies now."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ..images.load import ImageEntry
from ..util.files import RealPaths
from ..util.lines import Record
from .records import Records
from .task import Task


def identify(
    entries: Sequence[ImageEntry], records: Records, real_path: RealPaths
) -> Iterator[tuple[Task, str]]:
    """A task without file names for each entry, and a tag that tells its image from others.

    An entry is the image that the records call by its relative name if it lies at the recorded path
    or has the recorded content. It is also that image, but changed, if it lies where the whole
    recorded folder has moved to, in which another image was recognised by its content.

    Otherwise it is the image whose recorded path it has, under another name, or one with the same
    content among those whose name another image uses. If none fits, the image is new; if another
    image has its name in the records, it is called by that name with a tag of its content.
    """
    tasks = [Task("", path) for path in map(real_path, _absolute(entries))]
    for task, entry in zip(tasks, entries, strict=True):
        task.features = None if entry.features is None else os.fspath(entry.features)
    used: set[str] = set()
    moves: set[tuple[str, str]] = set()  # recorded folders, and where they are now
    left = []
    for task, entry in zip(tasks, entries, strict=True):
        with suppress(OSError):
            task.read_stat()
        record = records.get(entry.name)
        is_at_path = record and record.get("path") == task.path
        if entry.name not in used and (is_at_path or (record and task.matches(record))):
            task.image, task.twin = entry.name, record.get("twin")
            used.add(entry.name)
            moves.add(
                (_base_folder(record.get("path"), entry.name), _base_folder(task.path, entry.name))
            )
        else:
            left.append((task, entry))
    if left:
        matcher = _Matcher(records, moves, used)
        for task, entry in left:
            task.image = matcher.match(task, entry.name)
            if not task.image:
                task.image, task.twin = _unused_name(task, entry.name, records, used), entry.name
            else:
                task.twin = records.get(task.image).get("twin")
            used.add(task.image)
    for task in tasks:
        yield task, _tag(task)


def names_in_one_folder(records: Iterable[Record]) -> dict[str, str]:
    """A relative name for each image, such that the images exist in one folder under these names.

    The folder is the common parent of the folders that the names in the records are relative to.
    So an image has the same name whether it was labelled alone, with a part of a folder or with the
    whole, and images of two folders are told apart by the folders' names. ``records``: of images
    that exist, each with "image", "path" and, if another image has its name in the records, "twin".
    """
    locations = [(r["image"], r["path"], r.get("twin") or r["image"]) for r in records]
    bases = dict.fromkeys(_base_folder(path, name) for _, path, name in locations)
    bases.pop("", None)
    files = {}
    for image, path, name in locations:
        files[image] = path
        if not _base_folder(path, name):  # a part of the name is a link to another folder
            candidates = [f"{base}/{name}" for base in bases]
            files[image] = next(filter(os.path.exists, candidates), path)
            if files[image] == path:
                bases[os.path.dirname(path)] = None
    parent = os.path.commonpath(bases) if bases else ""
    return {image: file[len(parent) :].lstrip("/") for image, file in files.items()}


def _absolute(entries: Iterable[ImageEntry]) -> Iterator[str]:
    return (os.path.abspath(entry.path) for entry in entries)


class _Matcher:
    """Recognises images of the records by more than their name and content."""

    def __init__(self, records: Records, moves: set[tuple[str, str]], used: set[str]) -> None:
        """``moves``: pairs of a recorded folder and where it is now; ``used``: matched images."""
        self._records = records
        self._moves = moves
        self._used = used
        self._by_path: dict[str, str] = {}
        self._twins: defaultdict[str, list[str]] = defaultdict(list)  # by the name they share
        for image, path, twin in records.locations():
            self._by_path[path] = image
            if twin is not None:
                self._twins[twin].append(image)

    def match(self, task: Task, name: str) -> str:
        """The image of a task with this relative name; empty if another image has the name."""
        image = self._by_path.get(task.path)
        if image is not None and image not in self._used:
            return image
        twins = [image for image in self._twins.get(name, ()) if image not in self._used]
        for image in twins:
            if task.matches(self._records.get(image)):
                return image
        record = self._records.get(name)
        if name not in self._used and (not record or not self._records.names_a_file(record)):
            return name
        base = _base_folder(task.path, name)
        for image in (name, *twins):
            recorded_base = _base_folder(self._records.get(image).get("path"), name)
            if image not in self._used and (recorded_base, base) in self._moves:
                return image
        return ""


def _base_folder(path: str | None, name: str) -> str:
    """The folder that a relative name starts from; empty if the path does not end in the name."""
    return path[: -len(name) - 1] if path and path.endswith(f"/{name}") else ""


def _unused_name(task: Task, name: str, records: Records, used: set[str]) -> str:
    """A relative name with a tag of the content, which no image of the records has."""
    digest = task.compute_checksum() or hashlib.sha256(os.fsencode(task.path)).hexdigest()
    path = PurePosixPath(name)
    for length in range(8, len(digest) + 1):
        image = str(path.with_name(f"{path.stem}-{digest[:length]}{path.suffix}"))
        if image not in used and not records.get(image):
            break
    return image


def _tag(task: Task) -> str:
    """A text that tells the output files of an image from others', wherever the image lies."""
    if task.twin is not None:
        return Path(task.image).stem.rpartition("-")[2]
    return hashlib.sha256(os.fsencode(task.image)).hexdigest()[:8]
