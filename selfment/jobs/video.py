"""Saliency of videos: frames stream through a segmenter into H.264 files; needs PyAV."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..images.draw import saliency_image, tint_saliency
from ..models.segmenter import Segmenter
from ..util.extras import load_extra
from ..util.files import atomic_file, check_file

# How much may be missing at the end of a video that is not cut short, as a share of its length and
# in seconds, whichever is less: the last frames may have no duration, and programs round.
_LOST_SHARE, _LOST_SECONDS = Fraction(1, 10), Fraction(2)

# Formats whose files state their own length. In other files the length is guessed from the bit
# rate, or it is stated for each stream, as in AVI.
_TIMED_FORMATS = ("asf", "flv", "matroska", "mov", "nut", "ogg", "webm")

_NO_ENCODER = (
    "videos are written as H.264, which the PyAV installed here cannot encode: "
    "pip install --force-reinstall --only-binary av av"
)

Pixels = npt.NDArray[np.uint8]


class VideoError(ValueError):
    """A video that cannot be read; the message is a sentence with its name and the reason."""


@dataclass(frozen=True)
class VideoSummary:
    """The properties of a video that was segmented."""

    frames: int
    size: tuple[int, int]  #: (W, H) of the written videos: the upright one's, rounded down to even
    rate: float  #: frames per second, on average
    rotation: int  #: degrees counter-clockwise by which its frames were turned upright


def segment_video(
    video: str | os.PathLike[str],
    saliency: str | os.PathLike[str],
    segmenter: Segmenter,
    *,
    mask: str | os.PathLike[str] | None = None,
    threshold: float = 0.5,
    overlay: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> VideoSummary:
    """Writes the saliency of each frame of ``video`` as the grey levels of an H.264 video.

    The written videos have the upright video's size, rounded down to even numbers, its frame rate
    and its timestamps, and no sound. They appear only when they are complete. Memory does not
    depend on the length: a few batches of the segmenter's ``batch_size``.

    Args:
        video: The file to read.
        saliency: The MP4 file to write.
        segmenter: Computes the saliency.
        mask: Another file to write, white where the saliency exceeds ``threshold``, else black.
        threshold: In [0, 1).
        overlay: Another file to write, see :func:`selfment.images.draw.tint_saliency`.
        progress: Show a bar on stderr.

    Raises:
        VideoError: If the video is broken or cut short.
        ImportError: If PyAV is missing or cannot write H.264.
    """
    name = os.fspath(video)
    targets = [Path(path) for path in (saliency, mask, overlay) if path is not None]
    with ExitStack() as stack:
        reader = stack.enter_context(_VideoReader(name))
        files = [stack.enter_context(atomic_file(path)) for path in targets]
        writers = [stack.enter_context(_VideoWriter(file, reader)) for file in files]
        bar = stack.enter_context(
            tqdm(
                total=reader.expected,
                unit="frame",
                desc=os.path.basename(name),
                leave=False,
                disable=not progress,
                file=sys.stderr,
            )
        )

        def write(batch: Sequence[_Frame], grids: Tensor) -> None:
            for frame, grid in zip(batch, grids, strict=True):
                values = segmenter.to_image(grid, frame.content, reader.size)
                drawn = _draw(values, None if mask is None else threshold, frame.picture)
                for writer, pixels in zip(writers, drawn, strict=True):
                    writer.write(pixels, frame.time)
            bar.update(len(batch))

        frames = _prepared(reader, segmenter, keep_pictures=overlay is not None)
        count = _segment(frames, segmenter, write)
        for writer in writers:
            writer.finish()
    return VideoSummary(count, reader.size, float(reader.rate), reader.rotation)


@dataclass
class _Frame:
    time: int  # in units of the reader's time base
    pixels: Tensor
    content: tuple[int, int]  # (height, width) of the pixels without padding
    picture: Image.Image | None


def _prepared(reader: _VideoReader, segmenter: Segmenter, keep_pictures: bool) -> Iterator[_Frame]:
    for time, picture in reader:
        pixels, content = segmenter.preprocess(picture)
        yield _Frame(time, pixels, content, picture if keep_pictures else None)


def _segment(
    frames: Iterator[_Frame],
    segmenter: Segmenter,
    write: Callable[[Sequence[_Frame], Tensor], None],
) -> int:
    """Writes the saliency of all frames, batch by batch; returns the number of frames.

    One batch is decoded and one is encoded while the backbone computes a third.
    """

    def next_batch() -> list[_Frame]:
        return list(islice(frames, segmenter.batch_size))

    count = 0
    with ThreadPoolExecutor(1) as read_thread, ThreadPoolExecutor(1) as write_thread:
        reading, writing = read_thread.submit(next_batch), None
        while batch := reading.result():
            reading = read_thread.submit(next_batch)
            grids = segmenter.saliency_batch(torch.stack([frame.pixels for frame in batch]))
            if writing is not None:
                writing.result()
            writing = write_thread.submit(write, batch, grids)
            count += len(batch)
        if writing is not None:
            writing.result()
    return count


def _draw(values: Tensor, threshold: float | None, picture: Image.Image | None) -> list[Pixels]:
    """The pixels of each written video: saliency, and mask and overlay where they are wanted."""
    drawn = [_grey_planes(np.asarray(saliency_image(values)))]
    if threshold is not None:
        drawn.append(_grey_planes(np.where(values.numpy() > threshold, 255, 0)))
    if picture is not None:
        drawn.append(np.asarray(tint_saliency(picture, values)))
    return drawn


class _VideoReader:
    """Reads a video file: its upright frames at the even size of the first, and their times."""

    def __init__(self, name: str) -> None:
        av = load_av()
        self._error = av.error.FFmpegError
        self.name = name
        try:
            check_file(name)
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from error
        try:
            self._container = av.open(name)
        except self._error as error:
            raise self._broken(error.strerror) from error
        try:
            self._open()
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        streams = self._container.streams.video
        pictures = [stream for stream in streams if not _is_cover(stream)]
        if not pictures:
            raise self._broken(
                "it holds no video" + (", only sound and a cover picture" if streams else "")
            )
        stream = self._stream = pictures[0]
        stream.thread_type = "AUTO"
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.time_base = Fraction(stream.time_base or 1 / self.rate)
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise self._broken("it holds no frame")
        self._first = first
        # As the camera noted it.
        self.rotation = round(first.rotation / 90) * 90
        sides = (first.height, first.width) if self.rotation % 180 else (first.width, first.height)
        width, height = (max(2, side - side % 2) for side in sides)
        self.size = width, height
        seconds = self._duration() or self._tagged_end() or self._length_of_file()
        self.expected = stream.frames or (round(seconds * self.rate) if seconds else None)

    def __iter__(self) -> Iterator[tuple[int, Image.Image]]:
        step = max(1, round(1 / (self.rate * self.time_base)))
        frame, last = self._first, None
        while frame is not None:
            time = frame.pts
            # Encoders refuse times that do not rise.
            if last is not None and (time is None or time <= last):
                time = last + (step if time is None else 1)
            last = time = time or 0
            yield time, self._upright(frame)
            frame = next(self._frames, None)

    def _upright(self, frame: Any) -> Image.Image:
        pixels: Pixels = np.rot90(frame.to_ndarray(format="rgb24"), self.rotation // 90)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        if picture.size == self.size:
            return picture
        return picture.resize(self.size, Image.Resampling.BILINEAR)

    def _decode(self) -> Iterator[Any]:
        spans: dict[int, _Span] = {}  # by stream
        video, frames = self._stream.index, 0
        try:
            for packet in self._container.demux():
                if packet.stream.index == video and packet.is_corrupt:
                    raise self._broken("it is damaged or cut short")
                if packet.pts is not None and packet.time_base:
                    spans.setdefault(packet.stream.index, _Span()).add(packet)
                if packet.stream.index == video:
                    frames += packet.size > 0
                    yield from packet.decode()
        except self._error as error:
            raise self._broken(error.strerror) from error
        if video in spans:
            self._check_length(spans[video], spans)
        # The header of an AVI file states the frames, but too few seconds if there is sound.
        stated = self._stream.frames if "avi" in self._container.format.name else 0
        if frames < stated - max(2, min(stated / 10, 2 * self.rate)):
            raise self._broken(f"it is cut short, after {frames} of {stated} frames")

    def _check_length(self, video: _Span, spans: Mapping[int, _Span]) -> None:
        """Raises :class:`VideoError` if the file states a length that its packets do not reach.

        The video may end before the sound: its own duration is compared with its own packets, and
        the duration of the file with those of all streams.
        """
        # Some formats count from 0, others from the first packet.
        first = min(span.start for span in spans.values())
        last = max(span.end for span in spans.values())
        for stated, reached in (
            (self._duration(), video.end - video.start),
            (self._tagged_end(), video.end),
            (self._length_of_file(), max(last, last - first)),
        ):
            if stated is None:
                continue
            lost = min(_LOST_SHARE * stated, _LOST_SECONDS) + 2 / self.rate
            if reached < stated - lost:
                raise self._broken(
                    f"it is cut short, after {float(reached):.1f} of {float(stated):.1f} seconds"
                )

    def _duration(self) -> Fraction | None:
        """The seconds of the video that its stream states; None if it states none."""
        return Fraction(self._stream.duration * self.time_base) if self._stream.duration else None

    def _tagged_end(self) -> Fraction | None:
        """The end of the video in seconds, from the tag of Matroska and WebM files, or None.

        A tag beyond the end of the file is left from a longer file that this one was cut from.
        """
        parts = str(self._stream.metadata.get("DURATION", "")).split(":")
        try:
            hours, minutes, seconds = map(Fraction, parts)
        except ValueError:
            return None
        end = 3600 * hours + 60 * minutes + seconds
        length = self._length_of_file()
        return end if end > 0 and length is not None and end <= length + 1 else None

    def _length_of_file(self) -> Fraction | None:
        """The seconds of the longest stream that the file states; None if it states none."""
        container = self._container
        known = any(name in _TIMED_FORMATS for name in container.format.name.split(","))
        return Fraction(container.duration, 1_000_000) if known and container.duration else None

    def _broken(self, reason: str) -> VideoError:
        return VideoError(f"cannot read {self.name}: {reason}")

    def __enter__(self) -> _VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class _Span:
    """The time in seconds from the first to the last packet of a stream."""

    def __init__(self) -> None:
        self.start, self.end = Fraction(10**9), Fraction(-(10**9))

    def add(self, packet: Any) -> None:
        """Extends the span by a packet that has a timestamp."""
        self.start = min(self.start, Fraction(packet.pts * packet.time_base))
        end = packet.pts + (packet.duration or 0)
        self.end = max(self.end, Fraction(end * packet.time_base))


class _VideoWriter:
    """Writes an MP4 file of frames that have the size and the times of a reader's."""

    def __init__(self, file: IO[bytes], reader: _VideoReader) -> None:
        self._av = load_av()
        self._container = self._av.open(file, "w", format="mp4")
        options = {"crf": "18", "preset": "fast"}
        self._stream = self._container.add_stream("h264", rate=reader.rate, options=options)
        self._stream.width, self._stream.height = reader.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = reader.time_base
        self._time_base = reader.time_base

    def write(self, pixels: Pixels, time: int) -> None:
        """Adds a frame: (H, W, 3) RGB pixels, or the (3 H / 2, W) of :func:`_grey_planes`."""
        kind = "rgb24" if pixels.ndim == 3 else "yuv420p"
        frame = self._av.VideoFrame.from_ndarray(pixels, format=kind)
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes the frames that the encoder has buffered, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> _VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _grey_planes(levels: npt.NDArray[Any]) -> Pixels:
    """(3 H / 2, W) planes Y, U and V in video range, one below the other, of (H, W) grey levels."""
    height, width = levels.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.rint(16 + levels * (219 / 255))
    return planes


def load_av() -> Any:
    """The module of PyAV; raises ``ImportError`` if it is missing or cannot write H.264."""
    av = load_extra("av", "PyAV", "video", "a video")
    try:
        av.codec.Codec("h264", "w")
    except av.codec.codec.UnknownCodecError:
        raise ImportError(_NO_ENCODER) from None
    return av


def _is_cover(stream: Any) -> bool:
    """True if a stream is a picture attached to sound, not a video."""
    attached = load_av().stream.Disposition.attached_pic
    return bool(stream.disposition & attached)
