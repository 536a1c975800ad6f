"""Video files: reads upright frames with their times, and writes H.264 files; needs PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.options import require
from ..util.extras import load_extra
from ..util.files import check_file

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


def check_every(every: int) -> None:
    """Raises ``ValueError`` unless ``every`` is a number of frames of which one can be read."""
    whole = isinstance(every, int) and every >= 1
    require("every", every, "an integer >= 1", whole)


class VideoError(ValueError):
    """A video that cannot be read; the message is a sentence with its name and the reason."""


class VideoReader:
    """Reads a video file, frame by frame: upright RGB images and their times.

    With ``every`` = K it reads frames 0, K, 2 K and so on. Times are in units of ``time_base`` and
    rise. Raises :class:`VideoError` for a video that is broken or cut short, as soon as that is
    noticed, and ``ImportError`` without PyAV.
    """

    size: tuple[int, int]  #: (W, H) of the first frame, upright
    every: int  #: of so many frames one is read
    rate: Fraction  #: frames that are read per second, on average
    time_base: Fraction  #: seconds
    rotation: int  #: degrees counter-clockwise by which frames are turned upright
    expected: int | None  #: the number of frames to be read, as far as the file states it

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        """Opens the file and decodes its first frame; raises ``ValueError`` unless every >= 1."""
        check_every(every)
        av = load_av()
        self.every = every
        name = os.fspath(path)
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
        self._rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.rate = self._rate / self.every
        self.time_base = Fraction(stream.time_base or 1 / self._rate)
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise self._broken("it holds no frame")
        self._first = first
        # As the camera noted it.
        self.rotation = round(first.rotation / 90) * 90
        sides = first.width, first.height
        self.size = sides[::-1] if self.rotation % 180 else sides
        seconds = self._duration() or self._tagged_end() or self._length_of_file()
        frames = stream.frames or (round(seconds * self._rate) if seconds else None)
        self.expected = frames and -(-frames // self.every)

    def __iter__(self) -> Iterator[tuple[int, Image.Image]]:
        """Yields the time and the image of each frame that is read; once."""
        step = max(1, round(1 / (self._rate * self.time_base)))
        last = None
        for index, frame in enumerate(chain([self._first], self._frames)):
            time = frame.pts
            # Encoders refuse times that do not rise.
            if last is not None and (time is None or time <= last):
                time = last + (step if time is None else 1)
            last = time = time or 0
            if index % self.every == 0:
                yield time, self._upright(frame)

    def _upright(self, frame: Any) -> Image.Image:
        pixels: Pixels = np.rot90(frame.to_ndarray(format="rgb24"), self.rotation // 90)
        return Image.fromarray(np.ascontiguousarray(pixels))

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
        if frames < stated - max(2, min(stated / 10, 2 * self._rate)):
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
            lost = min(_LOST_SHARE * stated, _LOST_SECONDS) + 2 / self._rate
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

    def __enter__(self) -> VideoReader:
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


class VideoWriter:
    """Writes an MP4 file of frames with the times of a reader's.

    H.264 needs even sides: of an odd number of pixels the last column or row is left out.
    """

    def __init__(self, file: IO[bytes], reader: VideoReader) -> None:
        """Raises ``ImportError`` if PyAV is missing or cannot write H.264."""
        self._av = load_av()
        self._given = reader.size
        width, height = (max(2, side - side % 2) for side in reader.size)
        self.size = width, height  #: (W, H) of the written frames
        self._container = self._av.open(file, "w", format="mp4")
        options = {"crf": "18", "preset": "fast"}
        self._stream = self._container.add_stream("h264", rate=reader.rate, options=options)
        self._stream.width, self._stream.height = self.size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = reader.time_base
        self._time_base = reader.time_base

    def write(self, image: Image.Image, time: int) -> None:
        """Adds a frame, an image in the mode RGB or L; one of another size is resized."""
        if image.size != self._given:
            image = image.resize(self._given, Image.Resampling.NEAREST)
        if image.size != self.size:
            image = image.crop((0, 0, *self.size))
        pixels = np.asarray(image)
        if image.mode == "L":
            frame = self._av.VideoFrame.from_ndarray(_grey_planes(pixels), format="yuv420p")
        else:
            frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Writes the frames that the encoder has buffered, and the index."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _grey_planes(levels: Pixels) -> Pixels:
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
