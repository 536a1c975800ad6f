"""The prediction job: from image and video files to saliency files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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
from .folder import OutputFolder
from .runner import run_job
from .task import Task
from .video import load_av, segment_video

_OVERLAY_SIDE = 1536  # pixels: the most that an overlay's longer side has


@dataclass
class PredictionSummary:
    """Counts the files that a run segmented, skipped as already done, and failed to segment."""

    predicted: int = 0
    skipped: int = 0
    failed: int = 0


def find_inputs(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
) -> ImageEntries:
    """The images and videos that files, folders and globs name.

    Arguments and errors are those of :func:`selfment.images.find_images`.
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
) -> PredictionSummary:
    """Writes saliency for each image and video under ``out``, and a line in ``predictions.jsonl``.

    The saliency of ``sub/a.jpg`` is ``sub/a_saliency.png``, 8-bit grey at the upright image's own
    size, 255 for 1. That of a video is ``sub/a_saliency.mp4``, see
    :func:`selfment.jobs.video.segment_video`.

    Inputs that an earlier run segmented with the same settings, among them the weights of the head,
    are skipped unless the file has changed since. If an input is segmented otherwise, files of
    earlier runs that are not made again are removed; so is a mask whose threshold is unknown after
    an interrupt. Names and failures are as in :func:`selfment.jobs.label.label_images`.

    Args:
        images: From :func:`find_inputs`.
        out: The output folder; it is made if it is missing.
        segmenter: Computes the saliency.
        overlays: Also write ``overlays/sub/a_overlay.jpg``, or ``.mp4``.
        binary: A threshold in [0, 1): also write ``sub/a_mask.png``, or ``.mp4``, 255 where the
            saliency exceeds it and 0 elsewhere.
        progress: Show a bar on stderr.
        shard: The rank of this process and the number of processes that share the work.

    Raises:
        ValueError: If ``out`` cannot be written, or a result would replace an input.
        ImportError: If there are videos, but PyAV is missing.
        Exception: Whatever backbone and head raise when they cannot be loaded.
    """
    job = _PredictionJob(segmenter, overlays, binary, progress)
    folder = OutputFolder(out, job, shard)
    run_job(job, folder, images, progress)
    return PredictionSummary(folder.done, folder.skipped, folder.failed)


class _PredictionJob:
    """Segments images and videos; a :class:`selfment.jobs.spec.JobSpec`."""

    records_file = "predictions.jsonl"
    key = "saliency"
    verb = "segment"
    unit = "file"
    file_fields: tuple[str, ...] = ("saliency", "mask", "overlay")

    def __init__(
        self, segmenter: Segmenter, overlays: bool, binary: float | None, progress: bool
    ) -> None:
        """``progress``: show a bar for each video."""
        if binary is not None:
            params.require("binary", binary, "a threshold in [0, 1)", 0 <= binary < 1)
        self._segmenter = segmenter
        self._binary = binary
        self._progress = progress
        self.settings: Mapping[str, Any] = segmenter.settings
        self.batch_size = segmenter.batch_size
        self.file_settings: Mapping[str, tuple[str, Any]] = {"mask": ("binary", binary)}
        fields = {"saliency": True, "mask": binary is not None, "overlay": overlays}
        self.wanted = frozenset(field for field, is_wanted in fields.items() if is_wanted)

    def main_file(self, entry: ImageEntry) -> str:
        """The usual name of the saliency of an image or a video."""
        suffix = ".mp4" if _is_video(entry.path) else ".png"
        return f"{entry.mask_name.removesuffix('.png')}_saliency{suffix}"

    def tagged(self, name: str, tag: str) -> str:
        """Another name for a saliency."""
        stem, ending, suffix = name.rpartition("_saliency")
        return f"{stem}-{tag}{ending}{suffix}"

    def output_files(self, name: str) -> dict[str, str]:
        """The names of all files of an input; their endings differ, so that none collide."""
        stem, _, suffix = name.rpartition("_saliency")
        overlay = f"{stem}_overlay{'.jpg' if suffix == '.png' else suffix}"
        return {
            "saliency": name,
            "mask": f"{stem}_mask{suffix}",
            "overlay": str(PurePosixPath("overlays") / overlay),
        }

    def alternative_names(
        self, image: str, files: Mapping[str, str]
    ) -> Mapping[str, Sequence[str]]:
        """None: all names follow from that of the saliency."""
        del image, files
        return {}

    def are_intact(self, files: Mapping[str, str], record: Record) -> bool:
        """True if no file is empty: a power failure can leave one under the name of a new one."""
        del record
        return all(map(os.path.getsize, files.values()))

    def load(self, tasks: Sequence[Task]) -> None:
        """Loads backbone and head, and PyAV for videos."""
        self._segmenter.load()
        if any(_is_video(task.path) for task in tasks):
            load_av()

    def prepare(self, task: Task) -> None:
        """Reads an image, resizes and normalises it."""
        picture = task.read_picture()
        task.pixels, task.content = self._segmenter.preprocess(picture)
        if "overlay" in self.wanted:
            picture.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE), Image.Resampling.BILINEAR)
            task.picture = picture

    def compute(self, batch: Tensor) -> Sequence[Tensor]:
        """The saliency of each image of a batch, on the patch grid."""
        return list(self._segmenter.saliency_batch(batch))

    def save(self, task: Task, result: Tensor, files: Mapping[str, Path]) -> Record:
        """Writes the saliency, the mask and the overlay of an image."""
        saliency = self._segmenter.to_image(result, task.content, task.size).numpy()
        _write_image(files["saliency"], saliency_image(saliency), "PNG")
        if self._binary is not None:
            mask = mask_image(saliency > self._binary, task.size)
            _write_image(files["mask"], mask, "PNG")
        if task.picture is not None:
            _write_image(files["overlay"], tint_saliency(task.picture, saliency), "JPEG")
        return {"mean_saliency": float(np.mean(saliency, dtype=np.float64))}

    def unbatched(self, task: Task) -> Callable[[Task, Mapping[str, Path]], Record] | None:
        """The function that segments a video; None for an image."""
        return self._segment_video if _is_video(task.path) else None

    def _segment_video(self, task: Task, files: Mapping[str, Path]) -> Record:
        summary = segment_video(
            task.path,
            files["saliency"],
            self._segmenter,
            mask=files.get("mask"),
            threshold=self._binary or 0.0,
            overlay=files.get("overlay"),
            progress=self._progress,
        )
        notes = ["rotated as its metadata says"] if summary.rotation else []
        return {"notes": notes, "frames": summary.frames, "fps": summary.rate}


def _write_image(path: Path, image: Image.Image, kind: str) -> None:
    write_atomically(path, lambda file: image.save(file, kind, quality=90))


def _is_video(path: str | os.PathLike[str]) -> bool:
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES
