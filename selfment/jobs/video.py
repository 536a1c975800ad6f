"""Videos: frames stream through a model into videos and folders of PNG files.

At each time a batch or a window of frames is read, one is computed and one is written. Memory does
not depend on the length of the video.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..images.draw import mask_image, saliency_image, tint_saliency
from ..images.video import VideoReader, VideoWriter
from ..models.segmenter import Segmenter
from ..models.video import stacks
from ..util.files import atomic_file
from ..util.lines import Record
from .frames import FrameFolder, new_frame_folder

AnyPath = str | os.PathLike[str]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class VideoSummary:
    """The properties of a video that was segmented."""

    frames: int  #: that were read
    size: tuple[int, int]  #: (W, H) of the frames, upright
    rate: float  #: frames that were read per second, on average
    rotation: int  #: degrees counter-clockwise by which its frames were turned upright
    every: int  #: of so many frames of the video one was read

    def record(self) -> Record:
        """Returns the fields of the record of the video."""
        notes = ["rotated as its metadata says"] if self.rotation else []
        return {"notes": notes, "frames": self.frames, "fps": self.rate, "every": self.every}


def segment_video(
    video: AnyPath,
    saliency: AnyPath,
    segmenter: Segmenter,
    *,
    mask: AnyPath | None = None,
    threshold: float = 0.5,
    overlay: AnyPath | None = None,
    saliency_frames: AnyPath | None = None,
    mask_frames: AnyPath | None = None,
    every: int = 1,
    progress: bool = True,
) -> VideoSummary:
    """Writes the saliency of each frame of ``video`` as the grey levels of an H.264 video.

    The written videos have the upright video's size, rounded down to even numbers, the timestamps
    of its frames, and no sound. Files and folders appear only when they are complete.

    Args:
        video: The file to read.
        saliency: The MP4 file to write.
        segmenter: Computes the saliency.
        mask: Another file to write, white where the saliency exceeds ``threshold``, else black.
        threshold: In [0, 1); for the overlay, too.
        overlay: Another file to write, see :func:`selfment.images.draw.tint_saliency`.
        saliency_frames: A folder to write, with the saliency of each frame as a PNG file of the
            frame's own size: ``000000.png`` and so on, by its number in the video.
        mask_frames: Another such folder, with the masks.
        every: Of so many frames one is segmented, from the first on.
        progress: Show a bar on stderr.

    Raises:
        selfment.images.video.VideoError: If the video is broken or cut short.
        ImportError: If PyAV is missing or cannot write H.264.
        OSError: If there are other files in a folder that is to be written.
    """
    targets = {
        "saliency": saliency,
        "mask": mask,
        "overlay": overlay,
        "saliency_frames": saliency_frames,
        "mask_frames": mask_frames,
    }

    def results(batches: Iterator[list[Frame]]) -> Iterator[list[tuple[Frame, Tensor]]]:
        for batch in batches:
            parts = stacks([frame.take_pixels() for frame in batch])
            grids = [grid for part in parts for grid in segmenter.saliency_batch(part)]
            yield list(zip(batch, grids, strict=True))

    def draw(frame: Frame, grid: Tensor) -> Iterator[tuple[str, Image.Image]]:
        values = segmenter.to_image(grid, frame.content, frame.size)
        yield "saliency", saliency_image(values)
        if mask is not None or mask_frames is not None:
            yield "mask", mask_image(values > threshold, frame.size)
        if frame.picture is not None:
            yield "overlay", tint_saliency(frame.picture, values, threshold)

    with VideoStream(video, targets, every, progress) as stream:
        frames = stream.frames(segmenter.preprocess, keeps_pictures=overlay is not None)
        return stream.write(frames, segmenter.batch_size, results, draw)


@dataclass
class Frame:
    """A frame of a video, on its way to its pictures."""

    time: int  # in units of the reader's time base
    size: tuple[int, int]
    pixels: Tensor | None
    content: tuple[int, int]  # (height, width) of the pixels without padding, for a segmenter
    picture: Image.Image | None

    def take_pixels(self) -> Tensor:
        """Returns the pixels, and keeps them no longer."""
        pixels, self.pixels = self.pixels, None
        assert pixels is not None
        return pixels


class VideoStream:
    """A video that is read, and the files and folders that are made of it."""

    def __init__(
        self, video: AnyPath, targets: Mapping[str, AnyPath | None], every: int, progress: bool
    ) -> None:
        """``targets``: by kind of picture, or kind and "_frames" for a folder; None is left out.

        ``every``: of so many frames one is read.
        """
        self._name, self._every = os.fspath(video), every
        self._paths = {kind: Path(path) for kind, path in targets.items() if path is not None}
        self._progress = progress

    def __enter__(self) -> VideoStream:
        with ExitStack() as stack:
            self._reader = reader = stack.enter_context(VideoReader(self._name, self._every))
            self._videos: dict[str, VideoWriter] = {}
            self._folders: dict[str, FrameFolder] = {}
            # Folders are moved to their places first: that may fail, and then no file is moved.
            for kind, path in sorted(self._paths.items(), key=lambda item: "_frames" in item[0]):
                if kind.endswith("_frames"):
                    folder = stack.enter_context(new_frame_folder(path, self._every))
                    self._folders[kind.removesuffix("_frames")] = folder
                else:
                    file = stack.enter_context(atomic_file(path))
                    self._videos[kind] = stack.enter_context(VideoWriter(file, reader))
            self._bar = stack.enter_context(
                tqdm(
                    total=reader.expected,
                    unit="frame",
                    desc=os.path.basename(self._name),
                    leave=False,
                    disable=not self._progress,
                    file=sys.stderr,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    @contextmanager
    def first_pass(self) -> Iterator[VideoReader]:
        """Opens the video for another reading, before the one of :meth:`frames`."""
        with VideoReader(self._name, self._every) as reader:
            yield reader
        self._bar.reset()

    def advance(self, count: int) -> None:
        """Shows that ``count`` more frames are done."""
        self._bar.update(count)

    def frames(
        self,
        preprocess: Callable[[Image.Image], tuple[Tensor | None, tuple[int, int]]],
        keeps_pictures: bool,
    ) -> Iterator[Frame]:
        """Yields the frames, ready for a backbone: with their pixels, and the part that counts."""
        for time, picture in self._reader:
            pixels, content = preprocess(picture)
            kept = picture if keeps_pictures else None
            yield Frame(time, picture.size, pixels, content, kept)

    def write(
        self,
        frames: Iterator[Frame],
        batch_size: int,
        results: Callable[[Iterator[list[Frame]]], Iterator[list[tuple[Frame, _Result]]]],
        draw: Callable[[Frame, _Result], Iterator[tuple[str, Image.Image]]],
    ) -> VideoSummary:
        """Writes the pictures, by kind, that ``draw`` makes of the results of all frames."""

        def write_part(part: list[tuple[Frame, _Result]]) -> None:
            for frame, result in part:
                for kind, picture in draw(frame, result):
                    if kind in self._videos:
                        self._videos[kind].write(picture, frame.time)
                    if kind in self._folders:
                        self._folders[kind].write(picture)
            self.advance(len(part))

        count = 0
        with read_ahead(frames, batch_size) as batches, ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write_part, [])
            for part in results(batches):
                writing.result()
                writing = thread.submit(write_part, part)
                count += len(part)
            writing.result()
        for video in self._videos.values():
            video.finish()
        reader = self._reader
        rate = float(reader.rate)
        return VideoSummary(count, reader.size, rate, reader.rotation, reader.every)


@contextmanager
def read_ahead(items: Iterator[_Item], size: int) -> Iterator[Iterator[list[_Item]]]:
    """Makes an iterator over lists of ``size`` items; a thread reads the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:

        def lists() -> Iterator[list[_Item]]:
            reading = thread.submit(lambda: list(islice(items, size)))
            while found := reading.result():
                reading = thread.submit(lambda: list(islice(items, size)))
                yield found

        yield lists()
