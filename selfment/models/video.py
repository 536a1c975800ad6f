"""VideoLabeler: from the frames of a video to pseudo-labels with one foreground."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby, islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..core.arrays import Grid
from ..core.joint import JointLabels
from ..core.options import WindowOptions
from ..core.torch_state import as_documented
from ..core.windows import WindowLabels, label_windows
from ..images.load import ImageLike, load_image
from ..images.video import VideoReader
from ..methods import Selfment
from .labeler import PseudoLabeler, where_kernels_are
from .pictured import ImageLabels


class VideoLabeler:
    """Labels the frames of a video by joint cuts through windows of frames.

    The foreground stays the same thing: see :mod:`selfment.core.windows`. The frames of one window
    and a few batches are in memory, however long the video is.
    """

    def __init__(
        self, labeler: PseudoLabeler | None = None, windows: WindowOptions | None = None
    ) -> None:
        """Checks the arguments; nothing is loaded yet.

        ``labeler``: its backbone computes the features, ``batch_size`` frames at a time, and its
        method has the options of the cuts; None is ``PseudoLabeler()``. ``windows``: how many
        frames are cut together. Raises ``ValueError`` for a method other than
        :class:`selfment.methods.Selfment`.
        """
        self.labeler = PseudoLabeler() if labeler is None else labeler
        self.windows = windows or WindowOptions()
        method = self.labeler.method
        if not isinstance(method, Selfment):
            raise ValueError(
                "videos are labelled by cuts through several frames, which only the method "
                f"'selfment' makes: got the method {method.name!r}"
            )
        self._method = method

    @property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on besides the video, ready for JSON."""
        return {**self.labeler.settings, "windows": asdict(self.windows)}

    def __call__(
        self, video: str | os.PathLike[str] | Iterable[ImageLike]
    ) -> Iterator[ImageLabels]:
        """Yields the labels of each frame, in order; they can be shown and saved.

        ``video``: the path of a video, which PyAV reads, or its frames as images. Maps are those of
        the frame, and numbers those of its window's cut. Raises
        :class:`selfment.images.video.VideoError`, :class:`selfment.images.ImageError`,
        ``ImportError`` and ``ValueError``.
        """
        if isinstance(video, str | os.PathLike):
            with VideoReader(video) as reader:
                yield from self._label(picture for _, picture in reader)
        else:
            yield from self._label(load_image(frame)[0] for frame in video)

    def label_batches(self, batches: Iterable[Tensor]) -> Iterator[WindowLabels]:
        """Yields the labels of each window, on the CPU, as soon as its frames have been read.

        ``batches``: (B, 3, H, W) frames that :meth:`PseudoLabeler.preprocess` made, in order.
        Raises ``ValueError`` for features that are not finite.
        """
        found = label_windows(
            self._features(batches),
            self.windows,
            self._method.cut.oriented("seed"),
            self._method.ipo,
            self._method.min_confidence,
        )
        while True:
            with as_documented(self.labeler.torch_device):
                window = next(found, None)
            if window is None:
                return
            if window.labels.eigenvalue.isnan():  # on a CUDA device nothing waited for it
                raise ValueError(
                    "`features` must be finite, and so must their norms: got NaN, infinity or an "
                    f"overflow in the {len(window.labels.mask)} frames from {window.first}"
                )
            yield replace(window, labels=_on_cpu(window.labels))

    def _features(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Grid]]:
        backbone = self.labeler.backbone
        for batch in batches:
            grid = backbone.grid(*batch.shape[-2:])
            features = where_kernels_are(backbone(batch))
            assert isinstance(features, Tensor)
            yield from ((frame, grid) for frame in features)

    def _label(self, pictures: Iterator[Image.Image]) -> Iterator[ImageLabels]:
        waiting: deque[Image.Image] = deque()  # for their labels

        def batches() -> Iterator[Tensor]:
            while batch := list(islice(pictures, self.labeler.batch_size)):
                waiting.extend(batch)
                yield from stacks([self.labeler.preprocess(picture) for picture in batch])

        for window in self.label_batches(batches()):
            for labels in window.new_frames():
                yield ImageLabels(**vars(labels), image=waiting.popleft())


def stacks(frames: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields consecutive (3, H, W) frames of one shape as (B, 3, H, W)."""
    for _, alike in groupby(frames, key=lambda frame: frame.shape):
        yield torch.stack(list(alike))


def _on_cpu(labels: JointLabels) -> JointLabels:
    values = {field.name: getattr(labels, field.name) for field in fields(labels)}
    return JointLabels(
        **{
            name: [part.cpu() for part in value] if isinstance(value, list) else value.cpu()
            for name, value in values.items()
        }
    )
