"""A data set that YOLO trains on: ``data.yaml``, ``images.txt``, ``images/`` and ``labels/``.

Programs look for the label of ``images/sub/a.jpg`` in ``labels/sub/a.txt``. So ``images/`` has a
link to each labelled photograph, under the name of its label. ``images.txt`` lists the links, and
``data.yaml`` names the list: photographs that failed, or that are gone, are not in the set. It is
composed at the end of a run from the records of the whole output folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ..util.files import RealPaths, link_atomically, printable, write_atomically
from ..util.lines import Record
from ..util.results import LINK_LIST, listed_links
from .folder import OutputFolder, with_valid_file

DATA_FILE = "data.yaml"

_HEAD = b"# Pseudo-labels of selfment; `selfment label` writes this file anew.\n"
_DATA = b"""\
train: images.txt
val: images.txt  # the same images: pseudo-labels have no truth to hold out
names:
  0: object
"""


def label_file(name: str) -> str:
    """Returns the name of the label of an image or mask; programs find the image by it.

    They replace the last folder ``images`` in the path of an image, so that a folder of that name
    below ``images/`` has another one here.
    """
    path = PurePosixPath(name).with_suffix(".txt")
    folders = ("images_" if part == "images" else part for part in path.parts[:-1])
    return str(PurePosixPath("labels", *folders, path.name))


def compose_data_set(folder: OutputFolder, records: Iterable[Record]) -> None:
    """Writes the links, their list and ``data.yaml`` of all labelled images in an output folder.

    Links of images that are no longer in the set are removed, and no other file is. An image whose
    name cannot be a line of the list is left out. So is one whose link would replace a file of
    another program; it counts as failed.
    """
    before = set(listed_links(str(folder.path)))
    real_path = RealPaths()
    photographs = set()
    links: list[str] = []
    gone: list[str] = []
    taken: list[str] = []
    unlisted: list[str] = []
    for record in records:
        photographs.add(record.get("path"))
        record = with_valid_file(record, "boxes")
        boxes, path = record.get("boxes"), record.get("path") or ""
        if not boxes or not (folder.path / boxes).is_file():
            continue
        link = _link_name(boxes, path)
        if not os.path.exists(path):
            gone.append(record["image"])
        elif not _can_be_listed(link):
            unlisted.append(record["image"])
        elif real_path(str(folder.path / link)) == path or link_atomically(
            folder.path / link, path, replace=link in before
        ):
            links.append(link)
        else:
            taken.append(link)
    for link in before.difference(links):
        file = folder.path / link
        if file.is_symlink() and real_path(str(file)) not in photographs:
            file.unlink()
    _write(folder.path / DATA_FILE, _HEAD + _DATA)
    _write(folder.path / LINK_LIST, "".join(f"./{link}\n" for link in sorted(links)).encode())
    folder.failed += len(taken)
    _report(gone, "an image that is gone, {}", "{count} images that are gone, as {}")
    rule = "with a line break, or not in UTF-8"
    _report(unlisted, f"{{}}: a name {rule}", f"{{count}} images with names {rule}, as {{}}")
    _report(taken, "an image: {} is of another program", "{count} images: {} is of another program")


def check_data_set(folder: Path) -> None:
    """Raises ``ValueError`` for files of the names of a data set that are of another program."""
    for name in (DATA_FILE, LINK_LIST):
        if (folder / name).exists() and not is_data_set(folder):
            raise ValueError(
                f"`out` must hold no file {name} of another kind: {folder / name} is not of "
                "selfment"
            )


def is_data_set(folder: Path) -> bool:
    """Returns whether :func:`compose_data_set` wrote the ``data.yaml`` in a folder."""
    file = folder / DATA_FILE
    if not file.is_file():
        return False
    with file.open("rb") as data:
        return data.read(len(_HEAD)) == _HEAD


def _link_name(boxes: str, path: str) -> str:
    """Returns the name of the link to an image, with the image's suffix."""
    name = PurePosixPath(boxes).relative_to("labels").with_suffix("")
    return f"images/{name}{PurePosixPath(path).suffix}"


def _can_be_listed(name: str) -> bool:
    """Returns whether a name can be a line of a text in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of a file's name that are no text
        return False
    return len(name.splitlines()) == 1


def _write(path: Path, data: bytes) -> None:
    """Writes a file unless it has this content already."""
    if not path.is_file() or path.read_bytes() != data:
        write_atomically(path, lambda file: file.write(data), durable=True)


def _report(names: list[str], one: str, several: str) -> None:
    if names:
        words = (one if len(names) == 1 else several).format(min(names), count=f"{len(names):,}")
        print(printable(f"{DATA_FILE} is without {words}"), file=sys.stderr)
