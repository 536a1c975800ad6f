"""The label job: from image files to masks, boxes and annotations.

The files in the output folder, for ``sub/a.jpg``:

- ``sub/a.png``, the mask: 8-bit, 0 or 255, at the upright image's own size (nearest neighbour), and
  all 0 if the record has ``rejected``. If the labeler looks for several objects, the 8-bit or
  16-bit numbers of the objects instead, 0 for none, which :func:`selfment.evaluate` does not score.
- ``labels/sub/a.txt``, the boxes as YOLO reads them: a line "0 cx cy w h" for each object, in
  shares of the image's size, and no line if there are no objects. If the names of images differ in
  their suffix alone, it belongs to the first. Or polygons: a line "0 x1 y1 x2 y2 ..." for each
  object. ``images/sub/a.jpg``, ``images.txt`` and ``data.yaml``: see :mod:`selfment.jobs.yolo`.
- ``annotations/sub/a.json``, the annotations, and ``annotations.json``, a COCO file composed at the
  end of each run from those of all images of the folder, sorted by path. A run that makes no
  annotations composes an existing file again, too, unless it is intact and no record has changed.
- ``fiedler/sub/a.jpg``, the Fiedler vector on the patch grid, in 8-bit grey: 0 for its minimum, 255
  for its maximum. Several objects, and methods without a cut, have none.
- ``overlays/sub/a.jpg``, see :mod:`selfment.images.draw`.
- ``labels.jsonl``, the records.

A single mask counts as one object. The score of an object is 1 minus its eigenvalue, at least 0,
and 0 if its method has no eigenvalue. Records and annotations end with the CRC-32 of the rest, by
which damage is noticed.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..core import options as params
from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..images import refine as refinement
from ..images.draw import (
    label_image,
    mask_image,
    overlay,
    overlay_instances,
    vector_levels,
)
from ..images.load import ImageEntry
from ..models.labeler import PseudoLabeler, one_by_one
from ..util.files import printable, reason, write_atomically
from ..util.lines import Record, with_checksum
from . import coco, exports, yolo
from .folder import OutputFolder
from .runner import run_job
from .task import Task

Result = PseudoLabels | Objects

# The fields of records that name the files of each format.
_FORMAT_FIELDS = {
    "png": "mask",
    "coco": "annotations",
    "yolo": "boxes",
    "yolo-seg": "boxes",
    "fiedler": "fiedler",
}
_YOLO = {"yolo": exports.yolo_lines, "yolo-seg": exports.yolo_polygons}


@dataclass
class LabelSummary:
    """Counts the images that a run labelled, skipped as already done, and failed to label."""

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
) -> LabelSummary:
    """Writes a mask for each image under ``out``, and a record for each in ``out/labels.jsonl``.

    Images that an earlier run labelled with the same settings are skipped unless the file has
    changed since. Files that earlier runs made of the same label stay; if an image is labelled
    otherwise, they are removed. A new image never gets the name of another image's file, or of a
    file that no run has written. What fails is reported on stderr and in the records; the run goes
    on, and the next one tries again.

    Args:
        images: From :func:`selfment.images.find_images`.
        out: The output folder; it is made if it is missing.
        labeler: Labels the images.
        overlays: Also write the images with their labels drawn on them.
        formats: What to write: "png" for masks, "yolo" for boxes or "yolo-seg" for polygons,
            "coco" for annotations, "fiedler" for Fiedler vectors.
        refine: A method of :func:`selfment.refine_mask` for each mask, or for the mask of each
            object; where these overlap, the earlier object counts.
        fill_holes: Fill the holes of each mask.
        largest_component: Keep the largest component of each mask.
        progress: Show a bar on stderr.
        shard: The rank of this process and the number of processes. Each labels and counts its
            share of the images; the last to end merges their records.

    Raises:
        ValueError: If ``out`` cannot be written, or a file would replace an input.
        ImportError: If a format or ``refine`` needs a library that is missing.
        Exception: Whatever the backbone raises when it cannot be loaded.
    """
    steps = {"method": refine, "fill_holes": fill_holes, "largest_component": largest_component}
    job = LabelJob(labeler, overlays, formats, steps)
    composed = Path(out) / coco.COMPOSED_FILE
    if "coco" in job.formats:
        coco.load_coco_masks()
        coco.check_coco(composed)
    if job.yolo:
        yolo.check_data_set(Path(out))
    folder = OutputFolder(out, job, shard)

    def compose(records: Iterable[Record]) -> None:
        if "coco" in job.formats or coco.is_coco(composed):
            coco.compose_annotations(folder, records)
        if job.yolo or yolo.is_data_set(folder.path):
            yolo.compose_data_set(folder, folder.records.all())

    run_job(job, folder, images, progress, compose)
    return LabelSummary(folder.done, folder.skipped, folder.failed)


class LabelJob:
    """Labels images; a :class:`selfment.jobs.spec.JobSpec`."""

    records_file = "labels.jsonl"
    key = "name"
    verb = "label"
    unit = "image"
    file_fields: tuple[str, ...] = (*dict.fromkeys(_FORMAT_FIELDS.values()), "overlay")

    def __init__(
        self,
        labeler: PseudoLabeler,
        overlays: bool = False,
        formats: Sequence[str] = ("png",),
        steps: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """``steps``: the arguments of :func:`selfment.refine_mask`; raises ``ValueError``."""
        params.require("formats", formats, "one format at least", len(formats) > 0)
        self.formats = {params.choice("formats", name, exports.FORMATS) for name in formats}
        if "fiedler" in self.formats:
            rule = "formats without 'fiedler' where the method has no Fiedler vector"
            params.require("formats", labeler.method.name, rule, labeler.method.has_vector)
        both = self.formats >= set(_YOLO)
        params.require("formats", formats, "without one of 'yolo' and 'yolo-seg'", not both)
        self.yolo = next((name for name in _YOLO if name in self.formats), None)
        self.file_settings: Mapping[str, tuple[str, Any]] = {"boxes": ("yolo", self.yolo)}
        method = steps.get("method")
        if method is not None:
            params.choice("refine", method, refinement.METHODS)
        refinement.check_method(method)
        self._labeler = labeler
        self._steps = steps if any(steps.values()) else None
        self.settings: Mapping[str, Any] = {**labeler.settings, "refinement": self._steps}
        self.batch_size = labeler.batch_size
        wanted = {_FORMAT_FIELDS[name] for name in self.formats}
        self.wanted = frozenset(wanted | ({"overlay"} if overlays else set()))

    def main_file(self, entry: ImageEntry) -> str:
        """The usual name of an image's mask."""
        return entry.mask_name

    def tagged(self, name: str, tag: str) -> str:
        """Another name for a mask."""
        stem, dot, suffix = name.rpartition(".")
        return f"{stem}-{tag}{dot}{suffix}"

    def output_files(self, name: str) -> dict[str, str]:
        """The names of all files of an image, each in a folder of its own but for the masks.

        The masks' names end in .png, so that no other file takes the place of a mask.
        """
        path = PurePosixPath(name)
        return {
            "mask": name,
            "overlay": str("overlays" / path.with_suffix(".jpg")),
            "annotations": coco.annotation_file(name),
            "boxes": yolo.label_file(name),
            "fiedler": str("fiedler" / path.with_suffix(".jpg")),
        }

    def alternative_names(
        self, image: str, files: Mapping[str, str]
    ) -> Mapping[str, Sequence[str]]:
        """Names of the boxes: programs look for those of sub/a.jpg in labels/sub/a.txt."""
        names = yolo.label_file(image), files["boxes"], yolo.label_file(f"{image}.txt")
        return {"boxes": names}

    def are_intact(self, files: Mapping[str, str], record: Record) -> bool:
        """True if the files can be read; only boxes may be empty, if there are no objects."""
        for field, file in files.items():
            # A power failure can leave an empty file under the name of a new one.
            is_empty = os.path.getsize(file) == 0
            if is_empty and (field != "boxes" or record.get("instances") != 0):
                return False
        if "annotations" in files:
            try:
                coco.read_record(Path(files["annotations"]))
            except ValueError as error:
                sentence = f"{printable(reason(error))}; the image is labelled again"
                tqdm.write(sentence, file=sys.stderr)
                return False
        return True

    def load(self, tasks: Sequence[Task]) -> None:
        """Loads the backbone."""
        del tasks
        _ = self._labeler.backbone

    def prepare(self, task: Task, picture: Image.Image) -> None:
        """Resizes and normalises an image."""
        task.picture = picture if self._steps or "overlay" in self.wanted else None
        task.pixels = self._labeler.preprocess(picture)

    def compute(self, batch: Tensor) -> Sequence[Result]:
        """The label of each image of a batch."""
        return one_by_one(self._labeler.label_batch(batch))

    def save(self, task: Task, result: Result, files: Mapping[str, Path]) -> Record:
        """Writes the files of an image."""
        if isinstance(result, Objects):
            masks, values = result.masks, result.eigenvalues
        else:
            masks, values = result.mask[None], result.eigenvalue[None]
        instances = exports.as_instances((self._at_size(mask, task) for mask in masks), task.size)
        contents: dict[str, Callable[[IO[bytes]], object]] = {}
        if "mask" in files:
            if isinstance(result, Objects):
                picture = label_image(instances)
            else:
                picture = mask_image(instances, task.size)
            contents["mask"] = lambda file: picture.save(file, "PNG")
        if "boxes" in files:
            assert self.yolo is not None
            text = _YOLO[self.yolo](instances).encode()
            contents["boxes"] = lambda file: file.write(text)
        if "annotations" in files:
            scores = (1 - values).clamp(min=0).nan_to_num(0.0).tolist()
            line = with_checksum(json.dumps(coco.coco_record(instances, scores))).encode()
            contents["annotations"] = lambda file: file.write(line)
        if "fiedler" in files and not isinstance(result, Objects):
            vector = Image.fromarray(vector_levels(result.fiedler))
            contents["fiedler"] = lambda file: vector.save(file, "JPEG", quality=95)
        if "overlay" in files and task.picture is not None:
            if isinstance(result, Objects):
                panels = overlay_instances(task.picture, instances)
            else:
                panels = overlay(task.picture, result, mask=instances > 0)
            contents["overlay"] = lambda file: panels.save(file, "JPEG", quality=90)
        for field, write in contents.items():
            write_atomically(files[field], write)
        return {"instances": len(exports.boxes(instances)), **_statistics(result)}

    def unbatched(self, task: Task) -> None:
        """None: every task is an image."""
        del task

    def _at_size(self, mask: Tensor, task: Task) -> refinement.Bools:
        """(H, W) bools at the image's size from a mask on the patch grid, refined if wanted."""
        if self._steps is None or task.picture is None:
            return refinement.resize(mask.numpy(), task.size)
        return refinement.refine_mask(mask, task.picture, **self._steps)


def _statistics(result: Result) -> Record:
    """The fields of a record with the numbers of a label; None where one is not finite."""
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
