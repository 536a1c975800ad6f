"""Videos that are labelled: the masks of their frames, and what their cuts were like.

With windows the video streams through the labeler. With landmarks a first pass computes the
features of all frames into a temporary file in the folder of the results, the cut reads that file
several times, and another pass over the video writes the masks.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..core.joint import JointLabels, LandmarkLabels
from ..core.label import PseudoLabels
from ..core.options import WindowOptions
from ..core.spill import spilled_frames
from ..core.torch_state import SETTINGS
from ..core.windows import WindowLabels
from ..images.draw import mask_image, tint
from ..images.refine import mask_at_size
from ..models.video import VideoLabeler, stacks, with_labels
from ..util.lines import Record
from .video import AnyPath, Frame, VideoStream, VideoSummary, read_ahead

_Labelled = list[tuple[Frame, PseudoLabels]]
_Draw = Callable[[Frame, PseudoLabels], Iterator[tuple[str, Image.Image]]]


@dataclass(frozen=True)
class VideoLabelSummary(VideoSummary):
    """The properties of a video that was labelled."""

    rejected_frames: int  #: frames whose cut had too little confidence
    confidence: float | None  #: of the cut, mean over the frames
    foreground: float  #: share of the patches, mean over the frames

    def record(self) -> Record:
        """Returns the fields of the record of the video; it is rejected if all frames are."""
        common = super().record()
        known = VideoSummary.__dataclass_fields__
        values = {name: value for name, value in vars(self).items() if name not in known}
        rejected = self.rejected_frames == self.frames
        return {**common, **values, "rejected": rejected}


@dataclass(frozen=True)
class WindowSummary(VideoLabelSummary):
    """The properties of a video that was labelled in windows."""

    windows: int  #: cuts
    flips: int  #: windows whose classes exchanged their roles, to fit the window before
    agreement: float | None  #: mean of :attr:`selfment.core.windows.WindowLabels.agreement`


@dataclass(frozen=True)
class ClipSummary(VideoLabelSummary):
    """The properties of a video that was labelled by one cut through all frames.

    For the numbers of the cut see :class:`selfment.LandmarkLabels`; None is one that is not finite.
    """

    eigenvalue: float | None
    gap: float | None
    residual: float | None
    separation: float | None
    tau: float | None
    lanczos_iters: int
    ipo_iters: int
    landmarks: int | None  #: patches from which the vector was approximated; None: it is exact
    angle: float | None  #: this and the next three are None if the vector is exact
    turn: float | None
    changing: float | None
    side_margin: float | None
    estimated: list[str]  #: the names of the numbers that are estimates
    doubts: list[str]  #: sentences on what may be wrong with the cut

    def record(self) -> Record:
        """Returns the fields of the record, with the doubts among its notes."""
        fields = super().record()
        doubts = fields.pop("doubts")
        return {**fields, "notes": [*fields["notes"], *doubts]}


def label_video(
    video: AnyPath,
    mask: AnyPath,
    labeler: VideoLabeler,
    *,
    overlay: AnyPath | None = None,
    mask_frames: AnyPath | None = None,
    steps: Mapping[str, Any] | None = None,
    every: int = 1,
    progress: bool = True,
) -> WindowSummary | ClipSummary:
    """Writes the mask of each frame of ``video`` as an H.264 video, white in the foreground.

    Files and folders are as :func:`selfment.jobs.segment_video` writes them.

    Args:
        video: The file to read.
        mask: The MP4 file to write. With landmarks, features are in a file without a name in its
            folder until the cut is made.
        labeler: Labels the frames.
        overlay: Another file to write, with the mask on the frames: see
            :func:`selfment.images.draw.tint`.
        mask_frames: A folder to write, with the mask of each frame as a PNG file, 0 or 255.
        steps: The arguments of :func:`selfment.refine_mask` for the mask of each frame; None
            resizes it alone.
        every: Of so many frames one is labelled, from the first on.
        progress: Show a bar on stderr; with landmarks once for each of the two passes.

    Raises:
        selfment.images.video.VideoError: If the video is broken or cut short.
        ImportError: If a library is missing, or PyAV cannot write H.264.
        ValueError: If the features of a frame are not finite.
        OSError: If there are other files in a folder that is to be written, or a disk is full.
    """
    targets = {"mask": mask, "overlay": overlay, "mask_frames": mask_frames}
    keeps_pictures = overlay is not None or steps is not None

    def draw(frame: Frame, label: PseudoLabels) -> Iterator[tuple[str, Image.Image]]:
        found = mask_at_size(label.mask, frame.size, frame.picture, steps)
        yield "mask", mask_image(found, frame.size)
        if overlay is not None and frame.picture is not None:
            yield "overlay", tint(frame.picture, found)

    with VideoStream(video, targets, every, progress) as stream:
        if isinstance(labeler.cuts, WindowOptions):
            return _by_windows(stream, labeler, draw, keeps_pictures)
        return _by_one_cut(stream, labeler, draw, keeps_pictures, Path(mask).parent)


def _by_windows(
    stream: VideoStream, labeler: VideoLabeler, draw: _Draw, keeps_pictures: bool
) -> WindowSummary:
    model, counts = labeler.labeler, _WindowCounts()

    def results(batches: Iterator[list[Frame]]) -> Iterator[_Labelled]:
        waiting: deque[Frame] = deque()  # for their labels

        def pixels() -> Iterator[Tensor]:
            for batch in batches:
                waiting.extend(batch)
                yield from stacks([frame.take_pixels() for frame in batch])

        for window in labeler.label_batches(pixels()):
            counts.add(window)
            yield [(waiting.popleft(), label) for label in window.new_frames()]

    frames = stream.frames(lambda picture: (model.preprocess(picture), (0, 0)), keeps_pictures)
    written = stream.write(frames, model.batch_size, results, draw)
    return WindowSummary(**vars(written), **counts.summary())


def _by_one_cut(
    stream: VideoStream, labeler: VideoLabeler, draw: _Draw, keeps_pictures: bool, folder: Path
) -> ClipSummary:
    joint, doubts = _cut(stream, labeler, folder)

    def results(batches: Iterator[list[Frame]]) -> Iterator[_Labelled]:
        read = (frame for batch in batches for frame in batch)
        yield from ([labelled] for labelled in with_labels(read, joint))

    frames = stream.frames(lambda _: (None, (0, 0)), keeps_pictures)
    written = stream.write(frames, labeler.labeler.batch_size, results, draw)
    return ClipSummary(**vars(written), **_numbers(joint), doubts=doubts)


def _cut(stream: VideoStream, labeler: VideoLabeler, folder: Path) -> tuple[JointLabels, list[str]]:
    """Returns the labels of all frames, and sentences on what may be wrong with them."""
    model = labeler.labeler
    with stream.first_pass() as reader, spilled_frames(folder, reader.expected) as kept:
        pixels = (model.preprocess(picture) for _, picture in reader)
        with read_ahead(pixels, model.batch_size) as batches:
            for batch in batches:
                labeler.spill(stacks(batch), kept)
                stream.advance(len(batch))
        with SETTINGS.held(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            joint = labeler.label_spilled(kept)
    return joint, [str(warning.message) for warning in caught]


def _numbers(joint: JointLabels) -> dict[str, Any]:
    """Returns the fields of :class:`ClipSummary` on the cut but its doubts."""
    names = ("eigenvalue", "gap", "residual", "separation", "tau", "confidence")
    counts = ("lanczos_iters", "ipo_iters")
    values: dict[str, Any] = {name: float(getattr(joint, name)) for name in names}
    values = {name: value if math.isfinite(value) else None for name, value in values.items()}
    values |= {name: int(getattr(joint, name)) for name in counts}
    shares = [float(mask.double().mean()) for mask in joint.mask]
    values["rejected_frames"] = len(shares) * bool(joint.rejected)
    values["foreground"] = sum(shares) / len(shares)
    further = ("angle", "turn", "changing", "side_margin")
    if isinstance(joint, LandmarkLabels):
        values |= {name: float(getattr(joint, name)) for name in further}
        estimated = ["eigenvalue", "gap", "residual", "confidence", "angle", "turn", "changing"]
        return {**values, "landmarks": len(joint.landmarks), "estimated": estimated}
    return {**values, **dict.fromkeys(further), "landmarks": None, "estimated": []}


class _WindowCounts:
    """The fields of :class:`WindowSummary` on windows."""

    def __init__(self) -> None:
        self._windows = self._flips = self._compared = self._frames = self._rejected = 0
        self._agreement = self._confidence = self._foreground = 0.0

    def add(self, window: WindowLabels) -> None:
        """Counts a window, and the frames that are new in it."""
        self._windows += 1
        self._flips += window.flipped
        if window.shared:
            self._compared += 1
            self._agreement += window.agreement
        for label in window.new_frames():
            self._frames += 1
            self._rejected += bool(label.rejected)
            self._confidence += float(label.confidence)
            self._foreground += float(label.mask.float().mean())

    def summary(self) -> dict[str, Any]:
        """Returns the fields, by name."""
        return {
            "windows": self._windows,
            "flips": self._flips,
            "agreement": self._agreement / self._compared if self._compared else None,
            "rejected_frames": self._rejected,
            "confidence": self._confidence / self._frames,
            "foreground": self._foreground / self._frames,
        }
