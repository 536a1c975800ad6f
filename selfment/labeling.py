"""The folder job: from image files to mask files, one record per image."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from PIL import Image
from torch import Tensor

from ._pipeline import Job, Pipeline
from ._records import Record, write_atomically
from .images import ImageEntry
from .labeler import PseudoLabeler
from .pseudo_labels import PseudoLabels
from .visualize import mask_image, overlay


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
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Summary:
    """Writes a mask for each image under ``out``, and a line for each in ``out/labels.jsonl``.

    ``images``: from :func:`selfment.images.find_images`. Masks are 8-bit PNG files, 0 or 255, at
    the upright image's own size (nearest neighbour), and all 0 where the record has ``rejected``;
    ``overlays`` adds a JPEG file of :func:`selfment.visualize.overlay` under ``out/overlays``.
    Images that an earlier run labelled with the same settings are skipped unless the file has
    changed since; failed ones are tried again. An image keeps the mask name it has in
    ``labels.jsonl``, and never gets that of another image, or of a file that no run has written.
    What fails is reported on stderr and in ``labels.jsonl``, and the run goes on.
    ``progress``: a bar on stderr. ``shard``: the rank of this process and how many there are; each
    takes its share of the images and counts that, and the last to end merges the records that
    they kept in ``out/labels-rank<r>.jsonl``. Raises ``ValueError`` when ``out`` cannot be written
    or a mask would replace an input, and whatever the backbone raises when it cannot be loaded.
    """
    run = _Run(out, labeler, overlays, shard)
    run(images, progress)
    return Summary(run.done, run.skipped, run.failed)


class _Run(Pipeline[PseudoLabels]):
    file, key, verb = "labels.jsonl", "mask", "label"

    def __init__(
        self,
        out: str | os.PathLike[str],
        labeler: PseudoLabeler,
        overlays: bool,
        shard: tuple[int, int],
    ) -> None:
        super().__init__(out, labeler.settings, labeler.batch_size, shard)
        self.labeler = labeler
        self.overlays = overlays

    def _load(self) -> None:
        _ = self.labeler.backbone

    def _prepare(self, job: Job, picture: Image.Image) -> None:
        job.picture = picture if self.overlays else None
        job.pixels = self.labeler.preprocess(picture)

    def _compute(self, batch: Tensor) -> list[PseudoLabels]:
        labels = self.labeler.label_batch(batch)
        return [
            PseudoLabels(**{field.name: getattr(labels, field.name)[i] for field in fields(labels)})
            for i in range(len(batch))
        ]

    def _save(self, job: Job, result: PseudoLabels) -> Record:
        record: Record = {}
        mask = mask_image(result.mask, job.size)
        write_atomically(self.folder / job.name, lambda file: mask.save(file, "PNG"))
        if job.picture is not None:
            panels = overlay(job.picture, result)
            record["overlay"] = _overlay_name(job.name)
            write_atomically(
                self.folder / record["overlay"], lambda file: panels.save(file, "JPEG", quality=90)
            )
        for name in ("eigenvalue", "gap", "residual", "separation", "confidence", "tau"):
            value = float(getattr(result, name))
            record[name] = value if math.isfinite(value) else None
        for name in ("lanczos_iters", "ipo_iters"):
            record[name] = int(getattr(result, name))
        record["rejected"] = bool(result.rejected)
        record["foreground"] = float(result.mask.float().mean())
        return record

    def _files(self, name: str) -> list[str]:
        return [name, _overlay_name(name)]

    def _wanted(self, record: Record) -> list[str | None]:
        return [record.get("mask"), *([record.get("overlay")] if self.overlays else [])]


def _overlay_name(mask: str) -> str:
    """The overlay of a mask; masks are PNG files, so that no overlay can take a mask's place."""
    return f"overlays/{mask.removesuffix('.png')}.jpg"
