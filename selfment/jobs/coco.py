"""COCO instance files: the annotations of one image, and the file composed of all images'.

Each labelled image has a JSON file of its own annotations, :func:`annotation_file`. At the end of a
run :func:`compose_annotations` writes ``annotations.json`` from those of the whole output folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..util.extras import load_extra
from ..util.files import atomic_file, printable
from ..util.lines import Record, without_checksum
from .exports import Instances, boxes
from .folder import OutputFolder, with_valid_file
from .identity import names_in_one_folder

COMPOSED_FILE = "annotations.json"
CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}

_HEAD = b'{"info": {"description": "Pseudo-labels of selfment"}, "annotations": ['
_TAIL = re.compile(rb', "sources": "([0-9a-f]{16})", "crc32": "([0-9a-f]{8})"\}\n')
_TAIL_LENGTH = len(', "sources": "0123456789abcdef", "crc32": "01234567"}\n')


def annotation_file(mask: str) -> str:
    """The name of the file of an image's annotations; ``mask``: that of its main output file."""
    return str("annotations" / PurePosixPath(mask).with_suffix(".json"))


def coco_record(instances: Instances, scores: Sequence[float]) -> Record:
    """Width, height and annotations of one image, as in COCO but without ids and category.

    ``scores``: one for each number from 1 on. An annotation has ``bbox`` (x, y, width, height in
    pixels), ``area``, ``segmentation`` (run lengths, compressed), ``score`` and ``iscrowd`` 0.
    Raises ``ImportError`` without pycocotools.
    """
    coder = load_coco_masks()
    height, width = instances.shape
    annotations = []
    for number, (x1, y1, x2, y2) in boxes(instances):
        mask = np.asfortranarray(instances == number, dtype=np.uint8)
        runs = coder.encode(mask)
        annotations.append(
            {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask.sum()),
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
                "score": float(scores[number - 1]),
                "iscrowd": 0,
            }
        )
    return {"width": width, "height": height, "annotations": annotations}


def read_record(file: Path) -> Record:
    """The :func:`coco_record` in a JSON file that ends with its checksum.

    Raises ``ValueError`` if the file is broken.
    """
    try:
        record = json.loads(without_checksum(file.read_bytes().decode(errors="replace")) or "")
        sides = {side: record[side] for side in ("width", "height")}
        return {**sides, "annotations": [dict(one) for one in record["annotations"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no annotations"
        raise ValueError(f"cannot read {file}: {reason}") from error


def compose_annotations(folder: OutputFolder, records: Iterable[Record]) -> None:
    """Writes ``annotations.json`` from the annotations of all images in an output folder.

    It is not written again if it is intact and has the same labels. An image whose annotations are
    broken counts as failed, and loses them in its record, so that the next run makes them again.
    """
    composed = folder.path / COMPOSED_FILE
    annotated, gone = _annotated(folder, records)
    names = names_in_one_folder(annotated)
    sources = [
        (names[record["image"]], _label_key(record), folder.path / record["annotations"])
        for record in annotated
    ]
    if not folder.records.changed and is_composed(composed, sources):
        return
    folder.remove_abandoned_files()
    broken = write_coco(composed, sources)
    if gone:
        images = "an image that is" if len(gone) == 1 else f"{len(gone):,} images that are"
        sentence = f"{composed.name} is without {images} gone, as {min(gone)}"
        print(printable(sentence), file=sys.stderr)
    for record in annotated:
        file = folder.path / record["annotations"]
        if file in broken:
            rest = f"{composed.name} is without it, and the next run makes it again"
            print(printable(f"{broken[file]}; {rest}"), file=sys.stderr)
            file.unlink(missing_ok=True)
            folder.records.add({**folder.records.get(record["image"]), "annotations": None})
            folder.failed += 1


def _annotated(folder: OutputFolder, records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records of images with annotations, in the order of the composed file.

    The second list has the images whose annotations are left out because their input is gone.
    """
    annotated, gone = [], []
    for each in records:
        record = with_valid_file(each, "annotations")
        name = record.get("name")
        if not name or record.get("annotations") != annotation_file(name):
            continue
        image = record["image"]
        if image not in folder.images and not os.path.exists(record.get("path") or ""):
            gone.append(image)
        elif (folder.path / record["annotations"]).is_file():
            annotated.append(record)
    # Images that share their name with an earlier one come last: the ids of the others stay.
    annotated.sort(key=lambda record: ("twin" in record, record["image"]))
    return annotated, gone


def _label_key(record: Record) -> str:
    """A text that changes with the label: the settings, and the size of the input file."""
    return f"{record.get('settings')} {record.get('bytes')}"


def write_coco(path: Path, sources: Iterable[tuple[str, str, Path]]) -> dict[Path, str]:
    """Composes a COCO instances file, atomically and one image at a time.

    ``sources``: for each image the ``file_name``, any text that changes with its label, and the
    JSON file of its :func:`coco_record`. Ids count from 1 in this order, so that the same sources
    give the same bytes. Returns the files that are broken and left out, each with a sentence. The
    file ends with a digest of the sources and a checksum, see :func:`is_composed`.
    """
    images: list[Record] = []
    composed = []
    broken = {}
    count = total = 0
    with atomic_file(path, durable=True) as file:

        def write(data: bytes) -> None:
            nonlocal total
            total = zlib.crc32(data, total)
            file.write(data)

        write(_HEAD)
        for name, label_key, source in sources:
            try:
                record = read_record(source)
            except ValueError as error:
                broken[source] = str(error)
                continue
            composed.append((name, label_key))
            annotations = record.pop("annotations")
            images.append({"id": len(images) + 1, "file_name": name, **record})
            for annotation in annotations:
                ids = {"id": count + 1, "image_id": len(images), "category_id": CATEGORY["id"]}
                write(b",\n" if count else b"\n")
                write(json.dumps({**ids, **annotation}).encode())
                count += 1
        rest = json.dumps({"licenses": [], "images": images, "categories": [CATEGORY]})
        write(f'\n], {rest[1:-1]}, "sources": "{_digest(composed)}"'.encode())
        file.write(f', "crc32": "{total:08x}"}}\n'.encode())
    return broken


def is_composed(path: Path, sources: Iterable[tuple[str, str, Path]]) -> bool:
    """True if the file is intact and :func:`write_coco` composed it from these sources.

    The sources are not read: their names and the texts that change with the labels must agree.
    """
    if not is_coco(path):
        return False
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_LENGTH))
        tail = _TAIL.fullmatch(file.read())
        if tail is None or tail[1].decode() != _digest((name, key) for name, key, _ in sources):
            return False
        file.seek(0)
        total, left = 0, size - _TAIL_LENGTH + tail.end(1) + 1
        while left > 0 and (data := file.read(min(left, 1 << 20))):
            total = zlib.crc32(data, total)
            left -= len(data)
    return total == int(tail[2], 16)


def _digest(sources: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps(source).encode())
    return digest.hexdigest()[:16]


def check_coco(path: Path) -> None:
    """Raises ``ValueError`` for a file that :func:`write_coco` has not written."""
    if path.exists() and not is_coco(path):
        raise ValueError(
            f"`out` must hold no file {path.name} of another kind: {path} is not of selfment"
        )


def is_coco(path: Path) -> bool:
    """True if :func:`write_coco` wrote the file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD


def load_coco_masks() -> Any:
    """The module of pycocotools that encodes masks; raises ``ImportError`` if it is missing."""
    return load_extra("pycocotools.mask", "pycocotools", "coco", "a COCO file")
