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

For the video ``sub/b.mov``, whose frames are labelled together (:mod:`selfment.models.video`):

- ``sub/b.mp4``, the mask as a video, see :func:`selfment.jobs.label_video`.
- ``frames/sub/b/000000.png`` and so on, the mask of each frame at its own size.
- ``overlays/sub/b.mp4``, the mask on the frames.

A single mask counts as one object. The score of an object is 1 minus its eigenvalue, at least 0,
and 0 if its method has no eigenvalue. Records and annotations end with the CRC-32 of the rest, by
which damage is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backbones.files import FeatureFiles
from ..images.load import ImageEntry
from ..images.suffixes import is_video
from ..models.labeler import PseudoLabeler
from ..models.video import VideoCuts
from ..util.files import PAGES, output_file
from ..util.lines import Record
from . import coco, yolo
from .features import check_images
from .folder import OutputFolder
from .label_job import LabelJob
from .report import ReportSummary, report_labels
from .runner import run_job


@dataclass
class LabelSummary:
    """Counts the inputs that a run labelled, skipped as already done, and failed to label."""

    labelled: int = 0
    skipped: int = 0
    failed: int = 0
    report: ReportSummary | None = None  #: the page, if this process has written it

    def __add__(self, other: LabelSummary) -> LabelSummary:
        """The counts of two processes, and the page that was written last."""
        return LabelSummary(
            self.labelled + other.labelled,
            self.skipped + other.skipped,
            self.failed + other.failed,
            other.report or self.report,
        )


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
    report: str | os.PathLike[str] | None = None,
    video_cuts: VideoCuts | None = None,
    frames: bool = True,
    every: int = 1,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> LabelSummary:
    """Writes a mask for each image and video under ``out``, and a record in ``out/labels.jsonl``.

    Images that an earlier run labelled with the same settings are skipped unless the file has
    changed since. Files that earlier runs made of the same label stay; if an image is labelled
    otherwise, they are removed. A mask that somebody has changed by hand stays, and is not made
    again. A new image never gets the name of another image's file, or of a file that no run has
    written. What fails is reported on stderr and in the records; the run goes on, and the next one
    tries again.

    Args:
        images: From :func:`selfment.images.find_images`, or with videos from
            :func:`selfment.jobs.find_inputs`; from :func:`selfment.jobs.features.find_features` for
            a labeler of :class:`selfment.backbones.files.FeatureFiles`.
        out: The output folder; it is made if it is missing.
        labeler: Labels the images.
        overlays: Also write the images with their labels drawn on them.
        formats: What to write: "png" for masks, "yolo" for boxes or "yolo-seg" for polygons,
            "coco" for annotations, "fiedler" for Fiedler vectors.
        refine: A method of :func:`selfment.refine_mask` for each mask, or for the mask of each
            object; where these overlap, the earlier object counts.
        fill_holes: Fill the holes of each mask.
        largest_component: Keep the largest component of each mask.
        report: Also write a page of all labels in the folder to this HTML file, at the end of the
            run, see :mod:`selfment.jobs.report`. Fiedler vectors are then written, too, if the
            method has them.
        video_cuts: How many frames of a video are cut together: windows, which is the default, or
            all of them by landmarks.
        frames: Also write the masks of a video as PNG files. Of the formats a video has no other.
        every: Of so many frames of a video one is labelled, from the first on.
        progress: Show a bar on stderr.
        shard: The rank of this process and the number of processes. Each labels and counts its
            share of the images; the last to end merges their records.

    Raises:
        ValueError: If ``out`` cannot be written, or a file would replace an input, or there are
            videos, and the labeler's method is not :class:`selfment.methods.Selfment`, or has a
            weighted graph with landmarks.
        ImportError: If a format or ``refine`` needs a library that is missing, or there are only
            videos, and PyAV is missing.
        Exception: Whatever the backbone raises when it cannot be loaded.
    """
    if isinstance(labeler.described, FeatureFiles):
        others = set(formats) - {"png", "fiedler"}
        check_images(images, overlays=overlays, refine=refine, report=report, formats=others)
    steps = {"method": refine, "fill_holes": fill_holes, "largest_component": largest_component}
    if report is not None:
        output_file("report", report, PAGES)  # checked before the work
        formats = [*formats, *(["fiedler"] if labeler.method.has_vector else [])]
    job = LabelJob(labeler, overlays, formats, steps, video_cuts, frames, every, progress)
    job.check_videos([entry.name for entry in images if is_video(entry.path)])
    composed = Path(out) / coco.COMPOSED_FILE
    if "coco" in job.formats:
        coco.load_coco_masks()
        coco.check_coco(composed)
    if job.yolo:
        yolo.check_data_set(Path(out))
    folder = OutputFolder(out, job, shard)

    is_last = False  # of the processes of a sharded run to end

    def compose(records: Iterable[Record]) -> None:
        nonlocal is_last
        is_last = True
        if "coco" in job.formats or coco.is_coco(composed):
            coco.compose_annotations(folder, records)
        if job.yolo or yolo.is_data_set(folder.path):
            yolo.compose_data_set(folder, folder.records.all())

    run_job(job, folder, images, progress, compose)
    page = None
    if report is not None and is_last:
        page = report_labels(out, report, progress=progress)
    return LabelSummary(folder.done, folder.skipped, folder.failed, page)
