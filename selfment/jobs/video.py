"""Saliency of videos: frames stream through a segmenter into H.264 files; needs PyAV."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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

# What may be missing at the end of a video: its last frames may have no duration, and programs
# round. The lesser of a share and of seconds.
_LOST_SHARE, _LOST_SECONDS = Fraction(1, 10), Fraction(2)

# Formats whose files say how long they are. Others have their length guessed from the bit rate, or,
# as AVI, tell of each stream.
_TIMED_FORMATS = ("asf", "flv", "matroska", "mov", "nut", "ogg", "webm")

_NO_ENCODER = (
    "videos are written as H.264, which the PyAV installed here cannot encode: "
    "pip install --force-reinstall --only-binary av av"
)

Pixels = npt.NDArray[np.uint8]


class VideoError(ValueError):
    """A video that cannot be read: one sentence with its name and the reason."""


@dataclass(frozen=True)
class VideoSummary:
    """What was read of a video."""

    frames: int
    size: tuple[int, int]  #: (W, H) of what was written: the upright video's, rounded down to even
    rate: float  #: frames per second, on average
    rotation: int  #: degrees counter-clockwise that its frames were turned by, as its file says


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

    ``saliency``: the MP4 file to write; ``mask``: one of the pixels whose saliency exceeds
    ``threshold``, white on black; ``overlay``: one of :func:`selfment.images.draw.tint_saliency`.
    They have the upright video's size, rounded down to even numbers, its frame rate and its
    timestamps, and no sound. Memory does not depend on the length: a few batches of the segmenter's
    ``batch_size``. Files appear only when they are complete. ``progress``: a bar on stderr. Raises
    :class:`VideoError` for a video that is broken or cut short, and ``ImportError`` without PyAV.
    """
    name = os.fspath(video)
    targets = [Path(path) for path in (saliency, mask, overlay) if path is not None]
    with ExitStack() as stack:
        source = stack.enter_context(_Source(name))
        files = [stack.enter_context(atomic_file(path)) for path in targets]
        sinks = [stack.enter_context(_Sink(file, source)) for file in files]
        bar = stack.enter_context(
            tqdm(
                total=source.expected,
                unit="frame",
                desc=os.path.basename(name),
                leave=False,
                disable=not progress,
                file=sys.stderr,
            )
        )
        frames = _prepared(source, segmenter, keep=overlay is not None)

        def draw(batch: Sequence[_Frame], grids: Tensor) -> None:
            for frame, grid in zip(batch, grids, strict=True):
                values = segmenter.to_image(grid, frame.content, source.size)
                pictures = [_grey(np.asarray(saliency_image(values)))]
                if mask is not None:
                    pictures.append(_grey(np.where(values.numpy() > threshold, 255, 0)))
                if frame.picture is not None:
                    pictures.append(np.asarray(tint_saliency(frame.picture, values)))
                for sink, picture in zip(sinks, pictures, strict=True):
                    sink.write(picture, frame.time)
            bar.update(len(batch))

        count = 0
        # One batch is decoded and one is encoded while the backbone has a third.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

            def following() -> list[_Frame]:
                return list(islice(frames, segmenter.batch_size))

            reading, writing = reader.submit(following), None
            while batch := reading.result():
                reading = reader.submit(following)
                grids = segmenter.saliency_batch(torch.stack([frame.pixels for frame in batch]))
                if writing is not None:
                    writing.result()
                writing = writer.submit(draw, batch, grids)
                count += len(batch)
            if writing is not None:
                writing.result()
        for sink in sinks:
            sink.finish()
    return VideoSummary(count, source.size, float(source.rate), source.rotation)


@dataclass
class _Frame:
    time: int  # in units of the source's time base
    pixels: Tensor
    content: tuple[int, int]
    picture: Image.Image | None


def _prepared(source: _Source, segmenter: Segmenter, keep: bool) -> Iterator[_Frame]:
    for time, picture in source:
        pixels, content = segmenter.preprocess(picture)
        yield _Frame(time, pixels, content, picture if keep else None)


class _Source:
    """A video file: its upright frames, resized to the first's even size, and their times."""

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
        self._frames = self._decoded()
        first = next(self._frames, None)
        if first is None:
            raise self._broken("it holds no frame")
        self._first = first
        # What the camera noted; releases before 14 do not tell.
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
            # An encoder takes rising times only.
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

    def _decoded(self) -> Iterator[Any]:
        spans: dict[int, _Span] = {}  # of the packets of each stream
        own, frames = self._stream.index, 0
        try:
            for packet in self._container.demux():
                if packet.stream.index == own and packet.is_corrupt:
                    raise self._broken("it is damaged or cut short")
                if packet.pts is not None and packet.time_base:
                    spans.setdefault(packet.stream.index, _Span()).add(packet)
                if packet.stream.index == own:
                    frames += packet.size > 0
                    yield from packet.decode()
        except self._error as error:
            raise self._broken(error.strerror) from error
        if own in spans:
            self._check_whole(spans[own], spans)
        # The head of an AVI file tells the frames, and of files with sound too few seconds.
        stated = self._stream.frames if "avi" in self._container.format.name else 0
        if frames < stated - max(2, min(stated / 10, 2 * self.rate)):
            raise self._broken(f"it is cut short, after {frames} of {stated} frames")

    def _check_whole(self, video: _Span, spans: Mapping[int, _Span]) -> None:
        """Raises :class:`VideoError` where the file says that it is longer than what it holds.

        The video may end before the sound: only its own duration tells of its end. That of the file
        tells of the end of all streams.
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
        """Seconds of the video, as its stream says; None where it does not."""
        return Fraction(self._stream.duration * self.time_base) if self._stream.duration else None

    def _tagged_end(self) -> Fraction | None:
        """When the video ends, in seconds, by the tag that Matroska and WebM files have.

        A tag beyond the end of the file is that of another file, which this one was cut from.
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
        """Seconds of the longest stream, as the file says; None where it does not."""
        container = self._container
        known = any(name in _TIMED_FORMATS for name in container.format.name.split(","))
        return Fraction(container.duration, 1_000_000) if known and container.duration else None

    def _broken(self, reason: str) -> VideoError:
        return VideoError(f"cannot read {self.name}: {reason}")

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


class _Span:
    """When the packets of a stream begin and end, in seconds."""

    def __init__(self) -> None:
        self.start, self.end = Fraction(10**9), Fraction(-(10**9))

    def add(self, packet: Any) -> None:
        """Makes room for a packet that says when it begins."""
        self.start = min(self.start, Fraction(packet.pts * packet.time_base))
        end = packet.pts + (packet.duration or 0)
        self.end = max(self.end, Fraction(end * packet.time_base))


class _Sink:
    """An MP4 file of frames with a source's size and times."""

    def __init__(self, file: IO[bytes], source: _Source) -> None:
        self._av = load_av()
        self._container = self._av.open(file, "w", format="mp4")
        options = {"crf": "18", "preset": "fast"}
        self._stream = self._container.add_stream("h264", rate=source.rate, options=options)
        self._stream.width, self._stream.height = source.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = source.time_base
        self._time_base = source.time_base

    def write(self, pixels: Pixels, time: int) -> None:
        """Adds (H, W, 3) RGB pixels, or (3 H / 2, W) ones as :func:`_grey` gives them."""
        kind = "rgb24" if pixels.ndim == 3 else "yuv420p"
        frame = self._av.VideoFrame.from_ndarray(pixels, format=kind)
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes what the encoder still holds, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _grey(levels: npt.NDArray[Any]) -> Pixels:
    """The planes Y, U and V, one below the other, of (H, W) grey levels in video range."""
    height, width = levels.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.rint(16 + levels * (219 / 255))
    return planes


def load_av() -> Any:
    """PyAV; raises ``ImportError`` where it is missing or cannot write H.264."""
    av = load_extra("av", "PyAV", "video", "a video")
    try:
        av.codec.Codec("h264", "w")
    except av.codec.codec.UnknownCodecError:
        raise ImportError(_NO_ENCODER) from None
    return av


def _is_cover(stream: Any) -> bool:
    """Whether a stream is a picture attached to sound, not a video."""
    attached = load_av().stream.Disposition.attached_pic
    return bool(stream.disposition & attached)
