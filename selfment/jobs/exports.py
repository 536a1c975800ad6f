"""What other tools read: COCO instances, YOLO boxes and label images, of one image's instances.

Instances are (H, W) integers, 0 for the background and 1 to K for the objects. A label without
objects of its own has one instance, its foreground.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import find_objects

from ..core import options as params
from ..util.extras import load_extra
from ..util.files import atomic_file
from ..util.lines import unsealed

FORMATS = ("png", "coco", "yolo")

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}

_HEAD = b'{"info": {"description": "Pseudo-labels of selfment"}, "annotations": ['
_TAIL = re.compile(rb', "sources": "([0-9a-f]{16})", "crc32": "([0-9a-f]{8})"\}\n')
_TAIL_LENGTH = len(', "sources": "0123456789abcdef", "crc32": "01234567"}\n')

Instances = npt.NDArray[np.uint16]
Record = dict[str, Any]


def as_instances(masks: Iterable[npt.NDArray[np.bool_]], size: tuple[int, int]) -> Instances:
    """(H, W) uint16 instances of (H, W) bool masks, at ``size`` (W, H).

    Where masks overlap the earlier one counts; one of which nothing is left gives no instance, but
    keeps its number. Raises ``ValueError`` for more than 65535 masks.
    """
    instances = np.zeros(size[::-1], dtype=np.uint16)
    for number, mask in enumerate(masks, 1):
        params.require("masks", number, "65535 at most", number <= 65535)
        instances[mask & (instances == 0)] = number
    return instances


def label_image(instances: Instances) -> Image.Image:
    """A grey image of the instances' numbers: 8 bits, or 16 where there are more than 255."""
    return Image.fromarray(instances.astype(np.uint8) if instances.max() <= 255 else instances)


def boxes(instances: Instances) -> list[tuple[int, tuple[int, int, int, int]]]:
    """The number and the box x1, y1, x2, y2 of each instance; x2 and y2 are exclusive."""
    return [
        (number, (columns.start, rows.start, columns.stop, rows.stop))
        for number, found in enumerate(find_objects(instances), 1)
        if found is not None
        for rows, columns in [found]
    ]


def yolo_lines(instances: Instances) -> str:
    """A line "0 cx cy w h" for each instance: class, centre and size as shares of the image's.

    Without instances the text is empty: an empty file marks an image without objects.
    """
    height, width = instances.shape
    return "".join(
        f"0 {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} "
        f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
        for _, (x1, y1, x2, y2) in boxes(instances)
    )


def coco_record(instances: Instances, scores: Sequence[float]) -> Record:
    """Width, height and annotations of an image: COCO's, less what only the whole set gives.

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
    """The :func:`coco_record` in a JSON file, which ends with its checksum.

    Raises ``ValueError`` for one that is broken.
    """
    try:
        record = json.loads(unsealed(file.read_bytes().decode(errors="replace")) or "")
        found = {side: record[side] for side in ("width", "height")}
        return {**found, "annotations": [dict(one) for one in record["annotations"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds no annotations"
        raise ValueError(f"cannot read {file}: {reason}") from error


def write_coco(path: Path, sources: Iterable[tuple[str, str, Path]]) -> dict[Path, str]:
    """Composes a COCO instances file, atomically and one image at a time.

    ``sources``: the ``file_name`` of each image, what its label is of (any text), and the JSON file
    of its :func:`coco_record`. Ids count from 1 in this order, so that the same sources give the
    same bytes. Returns the files that are broken, which are left out, each with a sentence. The
    file ends with what :func:`is_composed` looks for.
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
        for name, label, source in sources:
            try:
                found = read_record(source)
            except ValueError as error:
                broken[source] = str(error)
                continue
            composed.append((name, label))
            annotations = found.pop("annotations")
            images.append({"id": len(images) + 1, "file_name": name, **found})
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
    """Whether a whole file lies there that :func:`write_coco` has composed of these sources.

    The sources are not read: their names and what their labels are of must agree.
    """
    if not is_coco(path):
        return False
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_LENGTH))
        tail = _TAIL.fullmatch(file.read())
        if tail is None or tail[1].decode() != _digest((name, label) for name, label, _ in sources):
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
    """Raises ``ValueError`` where another's file lies, which :func:`write_coco` would replace."""
    if path.exists() and not is_coco(path):
        raise ValueError(
            f"`out` must hold no file {path.name} of another kind: {path} is not of selfment"
        )


def is_coco(path: Path) -> bool:
    """Whether a file of :func:`write_coco` lies there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD


def load_coco_masks() -> Any:
    """The masks of pycocotools; raises ``ImportError`` where it is missing."""
    return load_extra("pycocotools.mask", "pycocotools", "coco", "a COCO file")
