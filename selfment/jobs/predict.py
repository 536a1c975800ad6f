"""The prediction job: from image and video files to saliency files, one record per file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from ..core import options as params
from ..images.draw import mask_image, saliency_image, tint_saliency
from ..images.load import ImageEntries, ImageEntry, find_images
from ..images.suffixes import VIDEO_SUFFIXES, image_suffixes
from ..models.segmenter import Segmenter
from ..util.files import write_atomically
from ..util.lines import Record
from .job import Job
from .pipeline import Pipeline
from .video import load_av, segment_video

_OVERLAY_SIDE = 1536  # pixels, of an overlay's longer side at most


@dataclass
class Summary:
    """How many files a run segmented, found already done, and could not segment."""

    predicted: int = 0
    skipped: int = 0
    failed: int = 0


def find_inputs(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
) -> ImageEntries:
    """The images and videos that files, folders and globs name.

    As :func:`selfment.images.find_images`, of which it also has the errors.
    """
    return find_images(inputs, out=out, suffixes=image_suffixes().union(VIDEO_SUFFIXES))


def predict_images(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    segmenter: Segmenter,
    *,
    overlays: bool = False,
    binary: float | None = None,
    progress: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> Summary:
    """Writes saliency for each image and video under ``out``, and a line in ``predictions.jsonl``.

    ``images``: from :func:`find_inputs`. The saliency of ``sub/a.jpg`` is ``sub/a_saliency.png``,
    8-bit grey at the upright image's own size, 255 for 1; that of a video is
    ``sub/a_saliency.mp4``, see :func:`selfment.jobs.video.segment_video`. ``binary``: a threshold T
    in [0, 1) that adds ``sub/a_mask.png`` (or ``.mp4``), 255 where the saliency exceeds T and 0
    elsewhere. ``overlays`` adds ``overlays/sub/a_overlay.jpg`` (or ``.mp4``). What an earlier run
    made with the same settings, the head's weights among them, is skipped unless the file has
    changed since. Where a file is segmented otherwise, what earlier runs made of it goes if it is
    not made again, and so does a mask whose threshold an interrupt has left unknown. Names,
    failures, ``progress`` and ``shard`` are as in :func:`selfment.jobs.label.label_images`. Raises
    ``ValueError`` when ``out`` cannot be written or a result would replace an input,
    ``ImportError`` for videos without PyAV, and whatever backbone and head raise when they cannot
    be loaded.
    """
    run = _Run(out, segmenter, overlays, binary, shard)
    run(images, progress)
    return Summary(run.done, run.skipped, run.failed)


class _Run(Pipeline[Tensor]):
    file, key, verb, unit = "predictions.jsonl", "saliency", "segment", "file"
    fields, about = ("saliency", "mask", "overlay"), ("binary",)

    def __init__(
        self,
        out: str | os.PathLike[str],
        segmenter: Segmenter,
        overlays: bool,
        binary: float | None,
        shard: tuple[int, int],
    ) -> None:
        if binary is not None:
            params.require("binary", binary, "a threshold in [0, 1)", 0 <= binary < 1)
        wanted = ["saliency"]
        if binary is not None:
            wanted.append("mask")
        if overlays:
            wanted.append("overlay")
        super().__init__(out, segmenter.settings, wanted, segmenter.batch_size, shard)
        self.segmenter = segmenter
        self.overlays = overlays
        self.binary = binary
        self.progress = False

    def __call__(self, entries: Sequence[ImageEntry], progress: bool) -> None:
        self.progress = progress
        super().__call__(entries, progress)

    def _load(self) -> None:
        self.segmenter.load()

    def _run(self, jobs: Sequence[Job]) -> None:
        videos = [job for job in jobs if _is_video(job.path)]
        if videos:
            load_av()
        super()._run([job for job in jobs if not _is_video(job.path)])
        for job in videos:
            self._alone(job, self._video)

    def _prepare(self, job: Job, picture: Image.Image) -> None:
        job.pixels, job.content = self.segmenter.preprocess(picture)
        if self.overlays:
            picture.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE), Image.Resampling.BILINEAR)
            job.picture = picture

    def _compute(self, batch: Tensor) -> Sequence[Tensor]:
        return list(self.segmenter.saliency_batch(batch))

    def _save(self, job: Job, result: Tensor) -> Record:
        saliency = self.segmenter.to_image(result, job.content, job.size).numpy()
        record = self._fields(job)
        self._write_image(job.name, saliency_image(saliency), "PNG")
        if self.binary is not None:
            mask = mask_image(saliency > self.binary, job.size)
            self._write_image(record["mask"], mask, "PNG")
        if job.picture is not None:
            self._write_image(record["overlay"], tint_saliency(job.picture, saliency), "JPEG")
        record["mean_saliency"] = float(np.mean(saliency, dtype=np.float64))
        return record

    def _video(self, job: Job) -> Record:
        record = self._fields(job)
        summary = segment_video(
            job.path,
            self.folder / job.name,
            self.segmenter,
            mask=None if self.binary is None else self.folder / record["mask"],
            threshold=self.binary or 0.0,
            overlay=self.folder / record["overlay"] if self.overlays else None,
            progress=self.progress,
        )
        notes = ["rotated as its metadata says"] if summary.rotation else []
        return {**record, "notes": notes, "frames": summary.frames, "fps": summary.rate}

    def _fields(self, job: Job) -> Record:
        made: Record = dict(self._made(job.name))
        return made if self.binary is None else {**made, "binary": self.binary}

    def _others(self, job: Job) -> Record:
        kept = super()._others(job)
        return {**kept, "binary": job.last["binary"]} if "mask" in kept else kept

    def _holds(self, record: Record, field: str) -> bool:
        # A mask is of its own threshold, which is unknown where a run was interrupted.
        binary = record.get("binary")
        if field != "mask" or self.binary is None:
            return field != "mask" or binary is not None
        return bool(binary == self.binary)

    def _write_image(self, name: str, image: Image.Image, kind: str) -> None:
        write_atomically(self.folder / name, lambda file: image.save(file, kind, quality=90))

    def _name(self, entry: ImageEntry) -> str:
        suffix = ".mp4" if _is_video(str(entry.path)) else ".png"
        return f"{entry.mask_name.removesuffix('.png')}_saliency{suffix}"

    def _tagged(self, name: str, tag: str) -> str:
        stem, suffix = _split(name)
        return f"{stem}-{tag}_saliency{suffix}"

    def _named(self, name: str) -> dict[str, str]:
        stem, suffix = _split(name)
        # No overlay can take another file's place: their endings differ.
        overlay = f"{stem}_overlay{'.jpg' if suffix == '.png' else suffix}"
        return {
            "saliency": name,
            "mask": f"{stem}_mask{suffix}",
            "overlay": str(PurePosixPath("overlays") / overlay),
        }


def _split(name: str) -> tuple[str, str]:
    """The stem and the suffix of a saliency file's name."""
    stem, _, suffix = name.rpartition("_saliency")
    return stem, suffix


def _is_video(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEO_SUFFIXES
