"""A page to look through labels: thumbnails with their masks, to accept and to reject.

The page is one file, made from the records of a folder of labels and from the files that they name.
The choice is made in the browser and stays there; it is saved from the page as text files with one
image a line, named as in the records.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from .. import __version__
from ..core import options as params
from ..images.draw import colour_levels
from ..images.load import ImageError, open_image
from ..images.suffixes import is_video
from ..images.thumbnails import SIDE, data_url, outline, read_thumbnail
from ..util.files import PAGES, output_file, printable, reason, write_atomically
from ..util.html import page
from ..util.lines import Record
from ..util.results import record_file
from ..util.words import count_of
from .records import StoredRecords

RECORDS = "labels.jsonl"
_THREADS = 8
_NUMBERS = ("confidence", "eigenvalue")  # fields of records that the page shows

#: An entry of the page's data, ready for JSON; ``review.js`` reads it.
Item = dict[str, Any]


@dataclass(frozen=True)
class ReportSummary:
    """Counts what a page shows."""

    path: Path  #: the page
    images: int  #: all images of the records
    failed: int  #: images without a label: they could not be read or labelled
    no_photo: int  #: labels without their photograph: it has moved, or cannot be read
    no_mask: int  #: labels without a mask to show
    no_vector: int  #: labels without a Fiedler vector to show
    videos: int  #: videos, which are listed but not shown
    bytes: int  #: the size of the page

    def __str__(self) -> str:
        """One line with the numbers of all that is missing."""
        missing = {
            "failed": self.failed,
            "without a photograph": self.no_photo,
            "without a mask": self.no_mask,
            "without a Fiedler vector": self.no_vector,
        }
        parts = "".join(f", {count} {what}" for what, count in missing.items() if count)
        if self.videos:
            parts += f", {count_of(self.videos, 'video')}, not shown"
        size = f"{self.bytes / 1e6:.1f} MB"
        return f"the labels of {count_of(self.images, 'image')} are in {self.path} ({size}){parts}"


def report_labels(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ReportSummary:
    """Writes a page of the labels in ``folder``, also while a run adds more.

    Args:
        folder: The output folder of ``label``.
        path: The HTML file, written whole or not at all; by default ``report.html`` in the folder.
        images: The folder of the photographs, where they no longer lie as the records say.
        progress: Show a bar on stderr.

    Raises:
        ValueError: ``folder`` has no labels, or ``images`` is no folder.
        OSError: The page cannot be written.
    """
    folder = Path(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    found = record_file(os.fspath(folder), (name for name in names if name.startswith("labels")))
    rule = f"the output folder of `selfment label` for images in folders, with its {RECORDS}"
    params.require("folder", os.fspath(folder), rule, found is not None)
    if images is not None:
        whose = "a folder that exists"
        params.require("images", os.fspath(images), whose, os.path.isdir(images))
    target = folder / "report.html" if path is None else output_file("path", path, PAGES)
    folder = folder.absolute()
    records = StoredRecords(folder / RECORDS, "name")
    records.read()
    ordered = sorted(records.all(), key=lambda record: str(record["image"]))
    make = partial(_item, folder=folder, images=None if images is None else Path(images))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        made = pool.map(make, ordered)
        bar = tqdm(made, total=len(ordered), unit="image", disable=not progress, file=sys.stderr)
        items = list(bar)
    counts = Counter(state for item in items for state in _states(item))
    # The choice belongs to the folder; the digest of each label tells if it is still the same.
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    body = _body(folder, len(items), list(_remarks(counts, len(items))))
    data = {"key": f"selfment-labels-{key}", "items": items}
    assets = [Path(__file__).with_name(name) for name in ("review.css", "review.js")]
    content = page(f"Labels: {printable(folder.name)}", body, data=data, assets=assets)
    write_atomically(target, lambda file: file.write(content), durable=True)
    return ReportSummary(
        target,
        len(items),
        counts["failed"],
        counts["no photo"],
        counts["no mask"],
        counts["no vector"],
        counts["video"],
        len(content),
    )


def _item(record: Record, folder: Path, images: Path | None) -> Item:
    """Returns what the page shows of one image."""
    name = str(record["image"])
    item: Item = {
        "name": name,
        "kind": "label",
        "notes": list(record.get("notes") or ()),
        "error": record.get("error"),
        "rejected": bool(record.get("rejected")),
        "foreground": record.get("foreground"),
        "objects": record.get("objects"),
        "listable": _is_listable(name),
        **{field: record.get(field) for field in _NUMBERS},
        **dict.fromkeys(("photo", "vector", "area", "digest")),
        "paths": [],
        "box": [SIDE, SIDE * 3 // 4],
    }
    photo = Path(record.get("path") or name)
    if images is not None:
        photo = images / str(record.get("twin") or name)
    if item["error"] is not None:
        item["kind"] = "failed"
    elif is_video(photo):
        item["kind"] = "video"
    if is_video(photo):
        return item
    try:
        thumbnail = read_thumbnail(photo)
        item["photo"], item["box"] = data_url(thumbnail), list(thumbnail.size)
        if os.path.getsize(photo) != record.get("bytes"):
            item["notes"].append("the photograph is not the file that was labelled")
    except (ImageError, OSError) as error:
        item["notes"] += [str(error)] if str(error) != item["error"] else []
    if item["kind"] == "label":
        _add_mask(item, record, folder)
        _add_vector(item, record, folder)
    return item


def _add_mask(item: Item, record: Record, folder: Path) -> None:
    """Adds the outline of each object, its area, and a digest of the label."""
    item["digest"] = f"{record.get('settings')}-{record.get('checksum')}"
    if not record.get("mask"):
        item["notes"].append("no mask was written")
        return
    file = folder / record["mask"]
    try:
        instances = _read_instances(file, several=item["objects"] is not None)
        item["digest"] = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        item["kind"], item["error"] = "failed", f"the mask cannot be read: {reason(error)}"
        return
    item["area"] = int(np.count_nonzero(instances))
    item["foreground"] = item["area"] / instances.size
    height, width = instances.shape
    if item["photo"] is None:
        shrink = min(1.0, SIDE / max(width, height))
        item["box"] = [max(1, round(width * shrink)), max(1, round(height * shrink))]
    small = Image.fromarray(instances).resize(tuple(item["box"]), Image.Resampling.NEAREST)
    numbers = np.asarray(small)
    item["paths"] = [[int(k), outline(numbers == k)] for k in np.unique(numbers) if k]


def _read_instances(file: Path, several: bool) -> npt.NDArray[Any]:
    """Reads a mask as (H, W) numbers: 0 for the background, 1 for the one object of most masks."""
    with open_image(file) as picture:
        is_plain = picture.mode in ("1", "L", "I", "I;16")
        values = np.asarray(picture if is_plain else picture.convert("L"))
    return values if several else (values > 0).astype(np.uint8)


def _add_vector(item: Item, record: Record, folder: Path) -> None:
    if not record.get("fiedler"):
        return
    try:
        with open_image(folder / record["fiedler"]) as picture:
            levels = np.asarray(picture.convert("L"))
    except Exception as error:
        item["notes"].append(f"the Fiedler vector cannot be read: {reason(error)}")
        return
    item["vector"] = data_url(colour_levels(levels))


def _is_listable(name: str) -> bool:
    """True if ``selfment train --only`` finds a name again that is a line of a text file."""
    is_text = name.encode(errors="ignore").decode() == name
    return is_text and name == name.strip() and not (name.startswith("#") or {"\r", "\n"} & {*name})


def _states(item: Item) -> Iterator[str]:
    """Yields the names of all that is missing of an image."""
    if item["kind"] != "label":
        yield item["kind"]
        return
    if item["photo"] is None:
        yield "no photo"
    if item["area"] is None:
        yield "no mask"
    if item["vector"] is None:
        yield "no vector"


def _remarks(counts: Counter[str], images: int) -> Iterator[str]:
    """Yields a sentence for each thing that the page lacks."""
    labels = images - counts["failed"] - counts["video"]
    if counts["failed"]:
        yield f"Images without a label, which failed: {counts['failed']:,}."
    if counts["no photo"]:
        yield (
            f"Photographs that are missing or cannot be read: {counts['no photo']:,} of {labels:,}."
            " If they have moved, --images names their folder."
        )
    if counts["no mask"]:
        yield f"Labels without a mask that can be shown: {counts['no mask']:,} of {labels:,}."
    if counts["no vector"]:
        yield (
            f"Labels without a Fiedler vector to show: {counts['no vector']:,} of {labels:,}. "
            "The command label keeps it with --report or --format png,fiedler, if its method has "
            "one for each image."
        )
    if counts["video"]:
        yield f"Videos, which are listed but not shown: {counts['video']:,}."


def _body(folder: Path, images: int, remarks: Sequence[str]) -> str:
    template = Path(__file__).with_name("review.html").read_text(encoding="utf-8")
    notes = "".join(f'<p class="note">{escape(remark)}</p>' for remark in remarks)
    count = count_of(images, "image")
    values = {
        "folder": escape(printable(folder.name)),
        "count": count,
        "version": escape(__version__),
        "notes": notes,
    }
    return re.sub(r"\{(\w+)\}", lambda name: values[name[1]], template)
