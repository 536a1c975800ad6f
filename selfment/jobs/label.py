"""The folder job: from image files to mask files, one record per image."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..core import options as params
from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..images import refine as refinement
from ..images.draw import mask_image, overlay, overlay_instances
from ..images.load import ImageEntry
from ..models.labeler import PseudoLabeler, one_by_one
from ..util.files import printable, reason, write_atomically
from ..util.lines import Record, sealed
from . import exports
from .identity import names_in_one_folder
from .job import Job
from .pipeline import Pipeline

Result = PseudoLabels | Objects

_FIELDS = {"png": "mask", "coco": "annotations", "yolo": "boxes"}  # of records, by format


@dataclass
class Summary:
    """How many images a run labelled, found already done, and could not label."""

    labelled: int = 0
    skipped: int = 0
    failed: int = 0


def label_images(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    labeler: PseudoLabeler,
    *,
    overlays: bool = False,
    formats: Sequence[str] = ("png",),
    refine: str | None = None,
    fill_holes: bool = False,
    largest_component: bool = False,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Summary:
    """Writes a mask for each image under ``out``, and a line for each in ``out/labels.jsonl``.

    ``images``: from :func:`selfment.images.find_images`. Masks are 8-bit PNG files, 0 or 255, at
    the upright image's own size (nearest neighbour), and all 0 where the record has ``rejected``;
    ``overlays`` adds a JPEG file of :func:`selfment.images.draw.overlay` under ``out/overlays``. Of
    a labeler of several objects they are 8-bit or 16-bit PNG files of the objects' numbers, 0 for
    none, not to be scored by :func:`selfment.evaluate`, and those of
    :func:`selfment.images.draw.overlay_instances`.

    ``refine``, ``fill_holes`` and ``largest_component``: what :func:`selfment.refine_mask` does to
    each mask, or to each object's, the earlier of which keeps the pixels that two claim.
    ``formats``: "png", the masks; "yolo", a text file for each image under ``out/labels`` with a
    line for each object, "0 cx cy w h" as shares of the image's size, and none for an image without
    objects, ``labels/a.txt`` for the first of images whose names differ in their suffix alone;
    "coco", ``out/annotations.json`` with all images of the folder that have annotations, sorted
    by their paths, composed at the end of each run from a file for each image under
    ``out/annotations``. A single mask counts as one object. The
    score of an object is 1 less its eigenvalue, or 0, also where its method has none.

    Images that an earlier run labelled with the same settings are skipped unless the file has
    changed since; failed ones are tried again. What earlier runs made of an image stays where it is
    of the same label, and goes where an image is labelled otherwise; ``out/annotations.json`` is
    composed again by runs without "coco", too, but by none that finds it whole and all records
    unchanged. An image keeps the name it has in ``labels.jsonl``,
    and never gets that of another image, or of a file that no run has written. What fails is
    reported on stderr and in ``labels.jsonl``, and the run goes on; broken files of annotations
    count as failed, too, and the next run with "coco" makes them again. Lines and files of
    annotations end with the CRC-32 of the rest, by which damage is noticed.
    ``progress``: a bar on stderr. ``shard``: the rank of this process and how many there are; each
    takes its share of the images and counts that, and the last to end merges the records that
    they kept in ``out/labels-rank<r>.jsonl``. Raises ``ValueError`` when ``out`` cannot be written
    or a file would replace an input, ``ImportError`` where a format or ``refine`` needs a library
    that is missing, and whatever the backbone raises when it cannot be loaded.
    """
    steps = {"method": refine, "fill_holes": fill_holes, "largest_component": largest_component}
    run = _Run(out, labeler, overlays, formats, steps, shard)
    run(images, progress)
    return Summary(run.done, run.skipped, run.failed)


class _Run(Pipeline[Result]):
    file, key, verb = "labels.jsonl", "name", "label"
    fields = (*_FIELDS.values(), "overlay")

    def __init__(
        self,
        out: str | os.PathLike[str],
        labeler: PseudoLabeler,
        overlays: bool,
        formats: Sequence[str],
        steps: Mapping[str, Any],
        shard: tuple[int, int],
    ) -> None:
        params.require("formats", formats, "one format at least", len(formats) > 0)
        self.formats = {params.choice("formats", name, exports.FORMATS) for name in formats}
        self.steps = steps if any(steps.values()) else None
        if steps["method"] is not None:
            params.choice("refine", steps["method"], refinement.METHODS)
        refinement.check_method(steps["method"])
        if "coco" in self.formats:
            exports.load_coco_masks()
            exports.check_coco(Path(out) / "annotations.json")
        settings = {**labeler.settings, "refinement": self.steps}
        wanted = [_FIELDS[name] for name in self.formats] + (["overlay"] if overlays else [])
        super().__init__(out, settings, wanted, labeler.batch_size, shard)
        self.labeler = labeler
        self.overlays = overlays
        self._boxes: dict[str, str] = {}  # by mask: files of boxes that are not named after it
        self._late: list[tuple[str, str]] = []  # images whose boxes have another name than theirs

    def _load(self) -> None:
        _ = self.labeler.backbone

    def _prepare(self, job: Job, picture: Image.Image) -> None:
        job.picture = picture if self.overlays or self.steps else None
        job.pixels = self.labeler.preprocess(picture)

    def _compute(self, batch: Tensor) -> Sequence[Result]:
        return one_by_one(self.labeler.label_batch(batch))

    def _save(self, job: Job, result: Result) -> Record:
        if isinstance(result, Objects):
            masks, values = result.masks, result.eigenvalues
        else:
            masks, values = result.mask[None], result.eigenvalue[None]
        instances = exports.as_instances((self._at_size(mask, job) for mask in masks), job.size)
        files = self._named(job.name)
        made: dict[str, Callable[[IO[bytes]], object]] = {}
        if "png" in self.formats:
            if isinstance(result, Objects):
                picture = exports.label_image(instances)
            else:
                picture = mask_image(instances, job.size)
            made["mask"] = lambda file: picture.save(file, "PNG")
        if "yolo" in self.formats:
            text = exports.yolo_lines(instances).encode()
            made["boxes"] = lambda file: file.write(text)
        if "coco" in self.formats:
            scores = (1 - values).clamp(min=0).nan_to_num(0.0).tolist()
            line = sealed(json.dumps(exports.coco_record(instances, scores))).encode()
            made["annotations"] = lambda file: file.write(line)
        if self.overlays and job.picture is not None:
            if isinstance(result, Objects):
                panels = overlay_instances(job.picture, instances)
            else:
                panels = overlay(job.picture, result, mask=instances > 0)
            made["overlay"] = lambda file: panels.save(file, "JPEG", quality=90)
        for field, write in made.items():
            write_atomically(self.folder / files[field], write)
        new = {field: files[field] for field in made}
        count = {"instances": len(exports.boxes(instances))}
        return new | count | _figures(result)

    def _at_size(self, mask: Tensor, job: Job) -> refinement.Bools:
        if self.steps is None or job.picture is None:
            return refinement.resize(mask.numpy(), job.size)
        return refinement.refine_mask(mask, job.picture, **self.steps)

    def _may_be_empty(self, record: Record, file: str) -> bool:
        return file == record.get("boxes") and record.get("instances") == 0

    def _named(self, name: str) -> dict[str, str]:
        path = PurePosixPath(name)  # of PNG files, so that no other file can take a mask's place
        return {
            "mask": name,
            "overlay": str("overlays" / path.with_suffix(".jpg")),
            "annotations": str("annotations" / path.with_suffix(".json")),
            "boxes": self._boxes.get(name) or str("labels" / path.with_suffix(".txt")),
        }

    def _choose(self, job: Job, record: Record) -> None:
        # What trains on boxes looks for those of sub/a.jpg in labels/sub/a.txt.
        usual = self._named(job.name)["boxes"]
        known = record.get("boxes") or (record.get("last") or {}).get("boxes")
        sought = str("labels" / PurePosixPath(job.image).with_suffix(".txt"))
        names = dict.fromkeys((sought, usual, f"labels/{job.image}.txt"))
        if known in names:
            self.records.claim(known, job.image)
            chosen = known
        elif "yolo" in self.formats:
            free = (f for f in names if f == usual or self._is_free(f, job.image))
            chosen = next((f for f in free if self.records.claim(f, job.image) == job.image), usual)
        else:
            return
        if chosen != usual:
            self._boxes[job.name] = chosen
        if chosen != sought and "yolo" in self.formats:
            self._late.append((job.image, chosen))

    def _is_free(self, file: str, image: str) -> bool:
        return self.records.owns(file, image) or not os.path.lexists(self.folder / file)

    def _tell(self) -> None:
        if self._late:
            image, file = self._late[0]
            more = f" and {len(self._late) - 1:,} more" if len(self._late) > 1 else ""
            sentence = (
                f"the boxes of {image} are in {file}{more}, where programs do not look for them: "
                "rename images that differ in their suffix alone"
            )
            print(printable(sentence), file=sys.stderr)

    def _is_done(self, job: Job, record: Record) -> bool:
        if not super()._is_done(job, record):
            return False
        if "coco" not in self.formats:
            return True
        try:
            exports.read_record(self.folder / record["annotations"])
        except (OSError, ValueError) as error:
            tqdm.write(f"{printable(reason(error))}; the image is labelled again", file=sys.stderr)
            return False
        return True

    def _finish(self, records: Iterable[Record]) -> None:
        composed = self.folder / "annotations.json"
        if "coco" not in self.formats and not exports.is_coco(composed):
            return
        found, gone = [], []
        for record in map(_whole, records):
            name = record.get("name")
            if not name or record.get("annotations") != self._named(name)["annotations"]:
                continue
            if record["image"] not in self._images and not os.path.exists(record.get("path") or ""):
                gone.append(record["image"])
            elif (self.folder / record["annotations"]).is_file():
                found.append(record)
        # Images of other folders with the same names come last: ids of the rest stay.
        found.sort(key=lambda record: ("twin" in record, record["image"]))
        names = names_in_one_folder(found)
        sources = [(names[r["image"]], _label(r), self.folder / r["annotations"]) for r in found]
        if not self.records.changed and exports.is_composed(composed, sources):
            return
        self._tidy()
        broken = exports.write_coco(composed, sources)
        if gone:
            images = "an image that is" if len(gone) == 1 else f"{len(gone):,} images that are"
            sentence = f"{composed.name} is without {images} gone, as {min(gone)}"
            print(printable(sentence), file=sys.stderr)
        for record in found:
            file = self.folder / record["annotations"]
            if file in broken:
                rest = f"{composed.name} is without it, and the next run makes it again"
                print(printable(f"{broken[file]}; {rest}"), file=sys.stderr)
                file.unlink(missing_ok=True)
                self.records.add({**self.records.get(record["image"]), "annotations": None})
                self.failed += 1


def _label(record: Record) -> str:
    """What the annotations of a record are of: settings, and the image's bytes."""
    return f"{record.get('settings')} {record.get('bytes')}"


def _whole(record: Record) -> Record:
    """The record; after an error, with the annotations of a label that still holds."""
    if record.get("error") is None:
        return record
    last = record.get("last") or {}
    holds = last.get("settings") and all(
        last.get(name) == record.get(name) for name in ("bytes", "mtime_ns")
    )
    if not holds:
        return {**record, "annotations": None}
    return {**record, "annotations": last.get("annotations"), "settings": last["settings"]}


def _figures(result: Result) -> Record:
    """What a record says of a result."""
    if isinstance(result, Objects):
        return {
            "objects": len(result.masks),
            "eigenvalues": result.eigenvalues.tolist(),
            "separations": result.separations.tolist(),
            "foreground": float((result.instances > 0).float().mean()),
        }
    record: Record = {}
    for name in ("eigenvalue", "gap", "residual", "separation", "confidence", "tau"):
        value = float(getattr(result, name))
        record[name] = value if math.isfinite(value) else None
    for name in ("lanczos_iters", "ipo_iters"):
        record[name] = int(getattr(result, name))
    record["rejected"] = bool(result.rejected)
    record["foreground"] = float(result.mask.float().mean())
    return record
