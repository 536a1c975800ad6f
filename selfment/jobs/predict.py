"""The prediction job: from image and video files to saliency files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..core import options as params
from ..images.draw import mask_image, saliency_image, tint_saliency
from ..images.load import ImageEntries, ImageEntry, find_images
from ..images.suffixes import VIDEO_SUFFIXES, image_suffixes, is_video
from ..images.video import check_every, load_av
from ..models.segmenter import Segmenter
from ..util.lines import Record
from .folder import OutputFolder
from .frames import frame_folder, has_frames
from .runner import run_job
from .spec import Contents
from .task import Task
from .video import segment_video

# The endings of the members of an archive, by field; the saliency comes first.
_ENDINGS = {"saliency": "png", "mask": "mask.png", "overlay": "overlay.jpg"}
_OVERLAY_SIDE = 1536  # pixels: the most that an overlay's longer side has


@dataclass
class PredictionSummary:
    """Counts the files that a run segmented, skipped as already done, and failed to segment."""

    predicted: int = 0
    skipped: int = 0
    failed: int = 0

    def __add__(self, other: PredictionSummary) -> PredictionSummary:
        """The counts of two processes."""
        return PredictionSummary(
            self.predicted + other.predicted,
            self.skipped + other.skipped,
            self.failed + other.failed,
        )


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
    frames: bool = False,
    every: int = 1,
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
        overlays: Also write ``overlays/sub/a_overlay.jpg``, or ``.mp4``: the image, tinted where
            the saliency exceeds ``binary``, or 0.5.
        binary: A threshold in [0, 1): also write ``sub/a_mask.png``, or ``.mp4``, 255 where the
            saliency exceeds it and 0 elsewhere.
        frames: Also write the saliency and the masks of a video as PNG files, one for each frame:
            ``frames/sub/a_saliency/000000.png`` and ``frames/sub/a_mask/000000.png``.
        every: Of so many frames of a video one is segmented, from the first on.
        progress: Show a bar on stderr.
        shard: The rank of this process and the number of processes that share the work.

    Raises:
        ValueError: If ``out`` cannot be written, or a result would replace an input.
        ImportError: If there are only videos, and PyAV is missing.
        Exception: Whatever backbone and head raise when they cannot be loaded.
    """
    job = PredictionJob(segmenter, overlays, binary, frames, every, progress)
    folder = OutputFolder(out, job, shard)
    run_job(job, folder, images, progress)
    return PredictionSummary(folder.done, folder.skipped, folder.failed)


class PredictionJob:
    """Segments images and videos; a :class:`selfment.jobs.spec.JobSpec`."""

    records_file = "predictions.jsonl"
    key = "saliency"
    verb = "segment"
    unit = "file"
    file_fields: tuple[str, ...] = ("saliency", "mask", "overlay", "saliency_frames", "mask_frames")

    def __init__(
        self,
        segmenter: Segmenter,
        overlays: bool = False,
        binary: float | None = None,
        frames: bool = False,
        every: int = 1,
        progress: bool = True,
    ) -> None:
        """Checks the arguments.

        Args:
            segmenter: Computes the saliency.
            overlays: Also make overlays.
            binary: The threshold of masks; None makes none.
            frames: Also write PNG files for each frame of a video.
            every: Of so many frames of a video one is segmented.
            progress: Show a bar for each video.

        Raises:
            ValueError: A wrong argument.
        """
        if binary is not None:
            params.require("binary", binary, "a threshold in [0, 1)", 0 <= binary < 1)
        check_every(every)
        self._segmenter, self._every = segmenter, every
        self._binary = binary
        self._threshold = 0.5 if binary is None else binary
        self._progress = progress
        self._settings: Mapping[str, Any] = segmenter.settings
        self.batch_size = segmenter.batch_size
        self.batches_ahead = 0
        threshold = ("binary", binary)
        self.file_settings: Mapping[str, tuple[str, Any]] = {
            "mask": threshold,
            "mask_frames": threshold,
            "overlay": ("overlay_threshold", self._threshold if overlays else None),
        }
        fields = {"saliency": True, "mask": binary is not None, "overlay": overlays}
        self._wanted = frozenset(field for field, is_wanted in fields.items() if is_wanted)
        self.endings: Mapping[str, str] = {
            name: end for name, end in _ENDINGS.items() if name in self._wanted
        }
        self.numbers: Mapping[str, str] = {"mean_saliency": "double"}
        folders = {f"{field}_frames" for field in self._wanted - {"overlay"} if frames}
        self._wanted_of_video = self._wanted | folders

    def main_file(self, entry: ImageEntry) -> str:
        """The usual name of the saliency of an image or a video."""
        path = PurePosixPath(entry.mask_name)
        return str(path.with_name(f"{path.stem}_saliency{path.suffix}"))

    def wanted(self, name: str) -> frozenset[str]:
        """The fields of the files of this run; only a video has folders of frames."""
        return self._wanted_of_video if is_video(name) else self._wanted

    def settings(self, name: str) -> Mapping[str, Any]:
        """The settings of the segmenter; for a video of its frames, too."""
        return {**self._settings, "every": self._every} if is_video(name) else self._settings

    def tagged(self, name: str, tag: str) -> str:
        """Another name for a saliency."""
        stem, ending, suffix = name.rpartition("_saliency")
        return f"{stem}-{tag}{ending}{suffix}"

    def output_files(self, name: str) -> dict[str, str]:
        """The names of all files of an input; their endings differ, so that none collide."""
        stem, _, suffix = name.rpartition("_saliency")
        mask = f"{stem}_mask{suffix}"
        overlay = f"{stem}_overlay{'.jpg' if suffix == '.png' else suffix}"
        files = {"saliency": name, "mask": mask, "overlay": f"overlays/{overlay}"}
        if is_video(name):
            files |= {"saliency_frames": frame_folder(name), "mask_frames": frame_folder(mask)}
        return files

    def alternative_names(
        self, image: str, files: Mapping[str, str]
    ) -> Mapping[str, Sequence[str]]:
        """None: all names follow from that of the saliency."""
        del image, files
        return {}

    def are_intact(self, files: Mapping[str, str], record: Record) -> bool:
        """True if no file is empty: a power failure can leave one under the name of a new one."""
        return all(
            has_frames(file, record["frames"])
            if field.endswith("_frames")
            else os.path.getsize(file)
            for field, file in files.items()
        )

    def load(self, tasks: Sequence[Task]) -> None:
        """Loads backbone and head, and PyAV for videos alone."""
        self._segmenter.load()
        self.batches_ahead = self._segmenter.batches_ahead
        if tasks and all(is_video(task.path) for task in tasks):
            load_av()

    def prepare(self, task: Task) -> None:
        """Reads an image, resizes and normalises it."""
        picture = task.read_picture()
        task.pixels, task.content = self._segmenter.preprocess(picture)
        if "overlay" in self._wanted:
            picture.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE), Image.Resampling.BILINEAR)
            task.picture = picture

    def start(self, batch: Tensor) -> Callable[[], Sequence[Tensor]]:
        """Begins to segment a batch; the function returns the saliency on each patch grid."""
        saliency = self._segmenter.start_batch(batch)
        return lambda: list(saliency())

    def draw(self, task: Task, result: Tensor) -> tuple[Contents, Record]:
        """The saliency, the mask and the overlay of an image."""
        saliency = self._segmenter.to_image(result, task.content, task.size).numpy()
        contents = {"saliency": _writer(saliency_image(saliency), "PNG")}
        if self._binary is not None:
            contents["mask"] = _writer(mask_image(saliency > self._binary, task.size), "PNG")
        if task.picture is not None:
            drawn = tint_saliency(task.picture, saliency, self._threshold)
            contents["overlay"] = _writer(drawn, "JPEG")
        return contents, {"mean_saliency": float(np.mean(saliency, dtype=np.float64))}

    def unbatched(self, task: Task) -> Callable[[Task, Mapping[str, Path]], Record] | None:
        """The function that segments a video; None for an image."""
        return self._segment_video if is_video(task.path) else None

    def _segment_video(self, task: Task, files: Mapping[str, Path]) -> Record:
        segmented = segment_video(
            task.path,
            segmenter=self._segmenter,
            threshold=self._threshold,
            every=self._every,
            progress=self._progress,
            **files,
        )
        return segmented.record()


def _writer(image: Image.Image, kind: str) -> Callable[[IO[bytes]], object]:
    return lambda file: image.save(file, kind, quality=90)
