"""VideoLabeler: from the frames of a video to pseudo-labels with one foreground.

Cuts extend over windows of frames, see :mod:`selfment.core.windows`, or one cut by landmarks
extends over all of them, see :mod:`selfment.core.landmarks`. That one needs features several times:
they are kept in a temporary file, and frames are read once more for their labels.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import groupby, islice
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..core.arrays import Grid
from ..core.joint import JointLabels, label_frames
from ..core.label import PseudoLabels
from ..core.options import LandmarkOptions, WindowOptions
from ..core.spill import SpilledFrames, spilled_frames
from ..core.torch_state import as_documented
from ..core.windows import WindowLabels, label_windows
from ..images.load import ImageLike, load_image
from ..images.video import VideoReader
from ..methods import Selfment
from .labeler import PseudoLabeler, where_kernels_are
from .pictured import ImageLabels
from .transfers import uploads

#: How the frames of a video are cut: in windows, or all together by landmarks.
VideoCuts = WindowOptions | LandmarkOptions

_Item = TypeVar("_Item")


class VideoLabeler:
    """Labels the frames of a video by joint cuts, so that the foreground stays the same thing.

    With windows, the frames of one window and a few batches are in memory, however long the video
    is. With landmarks, a batch and about 10 numbers for each patch of the video.
    """

    def __init__(self, labeler: PseudoLabeler | None = None, cuts: VideoCuts | None = None) -> None:
        """Checks the arguments; nothing is loaded yet.

        ``labeler``: its backbone computes the features, ``batch_size`` frames at a time, and its
        method has the options of the cuts; None is ``PseudoLabeler()``. ``cuts``: how many frames
        are cut together; None is ``WindowOptions()``. Raises ``ValueError`` for a method other than
        :class:`selfment.methods.Selfment`, and for landmarks in a weighted graph.
        """
        self.labeler = PseudoLabeler() if labeler is None else labeler
        self.cuts = cuts or WindowOptions()
        method = self.labeler.method
        if not isinstance(method, Selfment):
            raise ValueError(
                "videos are labelled by cuts through several frames, which only the method "
                f"'selfment' makes: got the method {method.name!r}"
            )
        if isinstance(self.cuts, LandmarkOptions) and method.cut.weighted:
            raise ValueError(
                "`landmarks` must be None with a weighted graph, also for videos: "
                f"got {self.cuts.landmarks}"
            )
        self._method = method

    @property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on besides the video, ready for JSON."""
        return {**self.labeler.settings, **cut_settings(self.cuts)}

    def __call__(
        self, video: str | os.PathLike[str] | Iterable[ImageLike]
    ) -> Iterator[ImageLabels]:
        """Yields the labels of each frame, in order; they can be shown and saved.

        ``video``: the path of a video, which PyAV reads, or its frames as images. Maps are those of
        the frame, and numbers those of the cut that it was in. With landmarks, frames are read
        twice, the first time before there is a label, and their features are where temporary files
        usually are until then. Raises :class:`selfment.images.video.VideoError`,
        :class:`selfment.images.ImageError`, ``ImportError``, ``ValueError``, and with landmarks
        ``OSError`` if the disk is full and ``TypeError`` for an iterator, which can be read once.
        """
        if isinstance(self.cuts, WindowOptions):
            with _pictures(video) as pictures:
                yield from self._label_windows(pictures)
        elif isinstance(video, Iterator):
            raise TypeError(
                "`video` is read twice with `landmarks`, so it must be a path or an iterable such "
                f"as a list, not an iterator: got {type(video).__name__}"
            )
        else:
            yield from self._label_all(video)

    def label_batches(self, batches: Iterable[Tensor]) -> Iterator[WindowLabels]:
        """Yields the labels of each window, on the CPU, as soon as its frames have been read.

        ``batches``: (B, 3, H, W) frames that :meth:`PseudoLabeler.preprocess` made, in order.
        Raises ``ValueError`` for features that are not finite, and without windows.
        """
        if not isinstance(self.cuts, WindowOptions):
            raise ValueError(f"`cuts` must be WindowOptions to label windows: got {self.cuts}")
        found = label_windows(
            self._features(batches),
            self.cuts,
            self._method.cut.oriented("seed"),
            self._method.ipo,
            self._method.min_confidence,
        )
        while True:
            with as_documented(self.labeler.torch_device):
                window = next(found, None)
            if window is None:
                return
            yield replace(window, labels=_on_cpu(window.labels, window.first))

    def spill(self, batches: Iterable[Tensor], frames: SpilledFrames) -> None:
        """Adds the features of frames to those in a temporary file.

        ``batches``: see :meth:`label_batches`. Raises ``OSError`` if the disk is full.
        """
        with as_documented(self.labeler.torch_device):
            for features, grid in self._features(batches):
                frames.add(features, grid)

    def label_spilled(self, frames: SpilledFrames) -> JointLabels:
        """Returns the labels of all frames, on the CPU, by one cut through them.

        The cut is made where their features were when they were added: on a CUDA device they are
        there a few frames at a time. If its memory does not suffice, the cut is made on the CPU,
        with a ``RuntimeWarning``. With as many landmarks as patches, or more, the cut is exact, and
        all features are in memory. Raises and warns as :func:`selfment.joint_label`, and raises
        ``ValueError`` without landmarks.
        """
        try:
            return self._label_on(frames.device, frames)
        except torch.cuda.OutOfMemoryError:
            pass  # and its traceback goes, with what was on the device
        reason = f"the cut was made on the CPU, as {frames.device} has too little memory for it"
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
        return self._label_on(torch.device("cpu"), frames)

    def _label_on(self, device: torch.device, frames: SpilledFrames) -> JointLabels:
        if not isinstance(self.cuts, LandmarkOptions):
            raise ValueError(f"`cuts` must be LandmarkOptions for one cut: got {self.cuts}")
        cut, ipo = self._method.cut.oriented("seed"), self._method.ipo
        least, rows = self._method.min_confidence, _Uploaded(frames, device)
        with as_documented(device):
            return _on_cpu(label_frames(rows, frames.grids, cut, ipo, least, self.cuts), 0)

    def _features(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Grid]]:
        backbone = self.labeler.backbone
        for batch in batches:
            grid = backbone.grid(*batch.shape[-2:])
            features = where_kernels_are(backbone(batch))
            assert isinstance(features, Tensor)
            yield from ((frame, grid) for frame in features)

    def _batches(self, pictures: Iterator[Image.Image]) -> Iterator[Tensor]:
        while batch := list(islice(pictures, self.labeler.batch_size)):
            yield from stacks([self.labeler.preprocess(picture) for picture in batch])

    def _label_windows(self, pictures: Iterator[Image.Image]) -> Iterator[ImageLabels]:
        waiting: deque[Image.Image] = deque()  # for their labels

        def read() -> Iterator[Image.Image]:
            for picture in pictures:
                waiting.append(picture)
                yield picture

        for window in self.label_batches(self._batches(read())):
            for labels in window.new_frames():
                yield ImageLabels(**vars(labels), image=waiting.popleft())

    def _label_all(
        self, video: str | os.PathLike[str] | Iterable[ImageLike]
    ) -> Iterator[ImageLabels]:
        with spilled_frames() as frames:
            with _pictures(video) as pictures:
                self.spill(self._batches(pictures), frames)
            joint = self.label_spilled(frames)
        with _pictures(video) as pictures:
            for picture, labels in with_labels(pictures, joint):
                yield ImageLabels(**vars(labels), image=picture)


def cut_settings(cuts: VideoCuts) -> dict[str, Any]:
    """Returns the settings of the cuts of a video, ready for JSON."""
    return {"windows" if isinstance(cuts, WindowOptions) else "landmarks": asdict(cuts)}


def with_labels(
    frames: Iterable[_Item], joint: JointLabels
) -> Iterator[tuple[_Item, PseudoLabels]]:
    """Yields the frames of a video, read once more, with their labels.

    Raises ``ValueError`` if there are not as many as there were before.
    """
    count, index = len(joint.mask), -1
    for index, frame in enumerate(frames):
        if index == count:
            break
        yield frame, joint.frame(index)
    if index + 1 != count:
        more = "more" if index == count else f"{index + 1}"
        raise ValueError(f"the video has changed while it was read: {count} frames, then {more}")


@contextmanager
def _pictures(
    video: str | os.PathLike[str] | Iterable[ImageLike],
) -> Iterator[Iterator[Image.Image]]:
    """Opens a video, or frames as images, for one reading."""
    if isinstance(video, str | os.PathLike):
        with VideoReader(video) as reader:
            yield (picture for _, picture in reader)
    else:
        yield (load_image(frame)[0] for frame in video)


def stacks(frames: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields consecutive (3, H, W) frames of one shape as (B, 3, H, W)."""
    for _, alike in groupby(frames, key=lambda frame: frame.shape):
        yield torch.stack(list(alike))


class _Uploaded:
    """The features of frames, copied to a device one at a time in each pass over them."""

    def __init__(self, frames: SpilledFrames, device: torch.device) -> None:
        self._frames, self._device = frames, device

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[Tensor]:
        return uploads(self._frames, self._device)


def _on_cpu(labels: JointLabels, first: int) -> JointLabels:
    """Returns the labels of frames from ``first`` on; raises ``ValueError`` if they are not finite.

    On a CUDA device nothing waited for them before.
    """
    if labels.eigenvalue.isnan():
        raise ValueError(
            "`features` must be finite, and so must their norms: got NaN, infinity or an "
            f"overflow in the {len(labels.mask)} frames from {first}"
        )
    values = {field.name: getattr(labels, field.name) for field in fields(labels)}
    return type(labels)(
        **{
            name: [part.cpu() for part in value] if isinstance(value, list) else value.cpu()
            for name, value in values.items()
        }
    )
