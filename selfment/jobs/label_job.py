"""The labelling of each image and video: the files, their names and their contents."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO, Any

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..backbones.files import FeatureFiles
from ..core import options as params
from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..core.options import WindowOptions
from ..images import refine as refinement
from ..images.draw import (
    label_image,
    mask_image,
    overlay,
    overlay_instances,
    vector_levels,
)
from ..images.load import ImageEntry
from ..images.suffixes import is_video
from ..images.video import check_every, load_av
from ..methods import MultiObject
from ..models.labeler import PseudoLabeler, one_by_one
from ..models.video import VideoCuts, VideoLabeler, cut_settings
from ..util.files import printable, reason
from ..util.lines import Record, with_checksum
from . import coco, exports, yolo
from .features import read_features
from .frames import frame_folder, has_frames
from .names import and_more
from .spec import Contents
from .task import Task
from .video_labels import ClipSummary, label_video

Result = PseudoLabels | Objects

# The fields of records that name the files of each format.
_FORMAT_FIELDS = {
    "png": "mask",
    "coco": "annotations",
    "yolo": "boxes",
    "yolo-seg": "boxes",
    "fiedler": "fiedler",
}
# The types of the numbers in records, in Arrow's words.
_LABEL_NUMBERS = {
    **dict.fromkeys(("eigenvalue", "gap", "residual", "separation", "confidence", "tau"), "double"),
    **dict.fromkeys(("lanczos_iters", "ipo_iters"), "int64"),
    "rejected": "bool",
    "foreground": "double",
}
_OBJECT_NUMBERS = {
    "objects": "int64",
    **dict.fromkeys(("eigenvalues", "separations"), "list<double>"),
    "foreground": "double",
}
_KINDS: Mapping[str, Callable[[Any], Any]] = {"double": float, "int64": int, "bool": bool}
# The endings of the members of an archive, by field; the mask comes first.
_ENDINGS = {
    "mask": "png",
    "annotations": "annotations.json",
    "boxes": "boxes.txt",
    "fiedler": "fiedler.jpg",
    "overlay": "overlay.jpg",
}
_YOLO = {"yolo": exports.yolo_lines, "yolo-seg": exports.yolo_polygons}


class LabelJob:
    """Labels images and videos; a :class:`selfment.jobs.spec.JobSpec`."""

    records_file = "labels.jsonl"
    key = "name"
    verb = "label"
    unit = "image"
    file_fields: tuple[str, ...] = (
        *dict.fromkeys(_FORMAT_FIELDS.values()),
        *("overlay", "mask_frames"),
    )

    def __init__(
        self,
        labeler: PseudoLabeler,
        overlays: bool = False,
        formats: Sequence[str] = ("png",),
        steps: Mapping[str, Any] = MappingProxyType({}),
        video_cuts: VideoCuts | None = None,
        frames: bool = True,
        every: int = 1,
        progress: bool = True,
    ) -> None:
        """Checks the arguments.

        Args:
            labeler: Labels the images.
            overlays: Also make overlays.
            formats: Names of :data:`selfment.jobs.exports.FORMATS`, for images.
            steps: The arguments of :func:`selfment.refine_mask`.
            video_cuts: How many frames of a video are cut together.
            frames: Also write a PNG file for each frame of a video.
            every: Of so many frames of a video one is labelled.
            progress: Show a bar for each video.

        Raises:
            ValueError: A wrong argument.
        """
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
        described = labeler.described
        self._files = described if isinstance(described, FeatureFiles) else None
        self._steps = steps if any(steps.values()) else None
        check_every(every)
        self._video_cuts, self._every = video_cuts or WindowOptions(), every
        self._progress = progress
        self._settings: Mapping[str, Any] = {**labeler.settings, "refinement": self._steps}
        self.batch_size = labeler.batch_size
        self.batches_ahead = 0
        drawn = {"overlay"} if overlays else set()
        self._wanted = frozenset({_FORMAT_FIELDS[name] for name in self.formats} | drawn)
        self.endings: Mapping[str, str] = {
            name: end for name, end in _ENDINGS.items() if name in self._wanted
        }
        several = isinstance(labeler.method, MultiObject)
        numbers = _OBJECT_NUMBERS if several else _LABEL_NUMBERS
        self.numbers: Mapping[str, str] = {"instances": "int64", **numbers}
        self._wanted_of_video = frozenset({"mask"} | ({"mask_frames"} if frames else set()) | drawn)

    @cached_property
    def _video_labeler(self) -> VideoLabeler:
        return VideoLabeler(self._labeler, self._video_cuts)

    def check_videos(self, videos: Sequence[str]) -> None:
        """Raises ``ValueError`` if the method cannot label videos, and there are such."""
        try:
            _ = self._video_labeler if videos else None
        except ValueError as error:
            raise ValueError(f"{error} for {videos[0]}{and_more(len(videos) - 1)}") from None

    def main_file(self, entry: ImageEntry) -> str:
        """The usual name of the mask of an image or a video."""
        return entry.mask_name

    def wanted(self, name: str) -> frozenset[str]:
        """The fields of the files of this run: for an image the formats, for a video the masks."""
        return self._wanted_of_video if is_video(name) else self._wanted

    def settings(self, name: str) -> Mapping[str, Any]:
        """The settings of the labeler and the refinement; for a video of its frames, too."""
        if not is_video(name):
            return self._settings
        return {**self._settings, **cut_settings(self._video_cuts), "every": self._every}

    def tagged(self, name: str, tag: str) -> str:
        """Another name for a mask."""
        stem, dot, suffix = name.rpartition(".")
        return f"{stem}-{tag}{dot}{suffix}"

    def output_files(self, name: str) -> dict[str, str]:
        """The names of all files of an input, each in a folder of its own but for the masks.

        The masks' names end in .png or .mp4, so that no other file takes the place of a mask.
        """
        path = PurePosixPath(name)
        if is_video(name):
            overlay = str("overlays" / path)
            return {"mask": name, "overlay": overlay, "mask_frames": frame_folder(name)}
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
        if "boxes" not in files:
            return {}
        names = yolo.label_file(image), files["boxes"], yolo.label_file(f"{image}.txt")
        return {"boxes": names}

    def are_intact(self, files: Mapping[str, str], record: Record) -> bool:
        """True if the files can be read; only boxes may be empty, if there are no objects."""
        for field, file in files.items():
            if field == "mask_frames":
                if not has_frames(file, record["frames"]):
                    return False
                continue
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
        """Loads the backbone, and PyAV for videos alone; says which formats videos do not have."""
        if videos := [task for task in tasks if is_video(task.path)]:
            if len(videos) == len(tasks):
                load_av()
            if missing := sorted(self.formats - {"png"}):
                sentence = (
                    f"videos have masks alone, so that nothing is written as {' or '.join(missing)}"
                    f" for {videos[0].image}{and_more(len(videos) - 1)}"
                )
                tqdm.write(printable(sentence), file=sys.stderr)
        _ = self._labeler.backbone
        self.batches_ahead = self._labeler.batches_ahead

    def prepare(self, task: Task) -> None:
        """Reads an image, resizes and normalises it; or reads its features, which exist."""
        if self._files is not None:
            task.pixels, picture = read_features(task, self._files)
        else:
            picture = task.read_picture()
            task.pixels = self._labeler.preprocess(picture)
        is_needed = self._steps or "overlay" in self._wanted
        task.picture = picture if is_needed else None

    def start(self, batch: Tensor) -> Callable[[], Sequence[Result]]:
        """Begins to label a batch; the function returns the label of each image."""
        labels = self._labeler.start_batch(batch)
        return lambda: one_by_one(labels())

    def draw(self, task: Task, result: Result) -> tuple[Contents, Record]:
        """The files of an image: masks, boxes, annotations, vector and overlay."""
        if isinstance(result, Objects):
            masks, values = result.masks, result.eigenvalues
        else:
            masks, values = result.mask[None], result.eigenvalue[None]
        at_size = (
            refinement.mask_at_size(mask, task.size, task.picture, self._steps) for mask in masks
        )
        instances = exports.as_instances(at_size, task.size)
        contents: dict[str, Callable[[IO[bytes]], object]] = {}
        if "mask" in self._wanted:
            if isinstance(result, Objects):
                picture = label_image(instances)
            else:
                picture = mask_image(instances, task.size)
            contents["mask"] = lambda file: picture.save(file, "PNG")
        if self.yolo is not None:
            text = _YOLO[self.yolo](instances).encode()
            contents["boxes"] = lambda file: file.write(text)
        if "annotations" in self._wanted:
            scores = (1 - values).clamp(min=0).nan_to_num(0.0).tolist()
            line = with_checksum(json.dumps(coco.coco_record(instances, scores))).encode()
            contents["annotations"] = lambda file: file.write(line)
        if "fiedler" in self._wanted and not isinstance(result, Objects):
            vector = Image.fromarray(vector_levels(result.fiedler))
            contents["fiedler"] = lambda file: vector.save(file, "JPEG", quality=95)
        if "overlay" in self._wanted and task.picture is not None:
            if isinstance(result, Objects):
                panels = overlay_instances(task.picture, instances)
            else:
                panels = overlay(task.picture, result, mask=instances > 0)
            contents["overlay"] = lambda file: panels.save(file, "JPEG", quality=90)
        return contents, {"instances": len(exports.boxes(instances)), **_statistics(result)}

    def unbatched(self, task: Task) -> Callable[[Task, Mapping[str, Path]], Record] | None:
        """The function that labels a video; None for an image."""
        return self._label_video if is_video(task.path) else None

    def _label_video(self, task: Task, files: Mapping[str, Path]) -> Record:
        labelled = label_video(
            task.path,
            files["mask"],
            self._video_labeler,
            overlay=files.get("overlay"),
            mask_frames=files.get("mask_frames"),
            steps=self._steps,
            every=self._every,
            progress=self._progress,
        )
        record = labelled.record()
        if isinstance(labelled, ClipSummary):
            for doubt in labelled.doubts:
                tqdm.write(printable(f"{task.image}: {doubt}"), file=sys.stderr)
        return record


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
    for name, kind in _LABEL_NUMBERS.items():
        value = result.mask.float().mean() if name == "foreground" else getattr(result, name)
        number = _KINDS[kind](value)
        record[name] = number if math.isfinite(number) else None
    return record
