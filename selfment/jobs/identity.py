"""Which image of the records an input is, wherever it lies now."""

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
from .job import Job
from .records import Records


def identify(
    entries: Sequence[ImageEntry], records: Records, real: RealPaths
) -> Iterator[tuple[Job, str]]:
    """A job for each entry, as yet without a name, and a tag that tells its image from others.

    An image is what the records call by its relative name, if it lies where it did, or has the
    same content, or lies in a folder from which another image was found again: that folder has
    moved, and the image has changed. Otherwise it is what the records say lay at this very place,
    under another name, or an image of the same content that has been told apart before. What is
    left is new: where its name is that of another image, with a tag of its content.
    """
    jobs = [Job("", "", path) for path in map(real, _absolute(entries))]
    used: set[str] = set()
    moved: set[tuple[str, str]] = set()
    left = []
    for job, entry in zip(jobs, entries, strict=True):
        with suppress(OSError):
            job.stat()
        record = records.get(entry.name)
        here = record and record.get("path") == job.path
        if entry.name not in used and (here or (record and job.is_of(record))):
            job.image, job.twin = entry.name, record.get("twin")
            used.add(entry.name)
            moved.add((_root(record.get("path"), entry.name), _root(job.path, entry.name)))
        else:
            left.append((job, entry))
    if left:
        known = _Known(records)
        for job, entry in left:
            job.image = known.find(job, entry.name, moved, used)
            if not job.image:
                job.image, job.twin = _twin(job, entry.name, records, used), entry.name
            else:
                job.twin = records.get(job.image).get("twin")
            used.add(job.image)
    for job in jobs:
        yield job, _tag(job)


def names_in_one_folder(records: Iterable[Record]) -> dict[str, str]:
    """A relative name for each image, such that the images exist in one folder under these names.

    This is the common parent of the folders that the names in the records are relative to. So an
    image has the same name whether it was labelled alone, in a part of a folder or in the whole,
    and images of two folders are told apart by the folders' names.

    Args:
        records: Of images that exist, each with "image", "path" and, for an image whose name the
            records use for another one, "twin".
    """
    places = [(r["image"], r["path"], r.get("twin") or r["image"]) for r in records]
    roots = dict.fromkeys(_root(path, name) for _, path, name in places)
    roots.pop("", None)
    files = {}
    for image, path, name in places:
        files[image] = path
        if not _root(path, name):  # a part of the name is a link to another folder
            under = [f"{root}/{name}" for root in roots]
            files[image] = next(filter(os.path.exists, under), path)
            if files[image] == path:
                roots[os.path.dirname(path)] = None
    parent = os.path.commonpath(roots) if roots else ""
    return {image: file[len(parent) :].lstrip("/") for image, file in files.items()}


def _absolute(entries: Iterable[ImageEntry]) -> Iterator[str]:
    return (os.path.abspath(entry.path) for entry in entries)


class _Known:
    """The images of the records by what else than their names tells of them."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._by_path: dict[str, str] = {}
        self._twins: defaultdict[str, list[str]] = defaultdict(list)
        for image, path, twin in records.places():
            self._by_path[path] = image
            if twin is not None:
                self._twins[twin].append(image)

    def find(self, job: Job, name: str, moved: set[tuple[str, str]], used: set[str]) -> str:
        """The image that a job is of; empty where the name is that of another image."""
        image = self._by_path.get(job.path)
        if image is not None and image not in used:
            return image
        twins = [image for image in self._twins.get(name, ()) if image not in used]
        for image in twins:
            if job.is_of(self._records.get(image)):
                return image
        record = self._records.get(name)
        if name not in used and (not record or not self._records.has_files(record)):
            return name
        place = _root(job.path, name)
        for image in (name, *twins):
            before = _root(self._records.get(image).get("path"), name)
            if image not in used and (before, place) in moved:
                return image
        return ""


def _root(path: str | None, name: str) -> str:
    """The folder that a relative name is of; empty where the path does not end in the name."""
    return path[: -len(name) - 1] if path and path.endswith(f"/{name}") else ""


def _twin(job: Job, name: str, records: Records, used: set[str]) -> str:
    """A name for another image than that which the records call by this name."""
    digest = job.digest() or hashlib.sha256(os.fsencode(job.path)).hexdigest()
    path = PurePosixPath(name)
    for length in range(8, len(digest) + 1):
        image = str(path.with_name(f"{path.stem}-{digest[:length]}{path.suffix}"))
        if image not in used and not records.get(image):
            break
    return image


def _tag(job: Job) -> str:
    """What tells the files of an image from those of another: the same wherever it lies."""
    if job.twin is not None:
        return Path(job.image).stem.rpartition("-")[2]
    return hashlib.sha256(os.fsencode(job.image)).hexdigest()[:8]
