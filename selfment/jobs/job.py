"""What is known of an image between its file and those made of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..util.files import content_of
from ..util.lines import Record

_DIGITS = 32  # of a checksum in the records


@dataclass(slots=True)
class Job:
    """One image on its way from file to file."""

    image: str  # what the records call it: its name relative to the folder that was searched
    name: str  # of what is made of it, relative to the output folder
    path: str  # the file, absolute, without links on the way to it
    twin: str | None = None  # its own relative name, where the records call another image by it
    bytes: int = 0
    mtime_ns: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()
    size: tuple[int, int] = (0, 0)  # (W, H), upright
    picture: Image.Image | None = None  # kept for the overlay
    pixels: Tensor | None = None  # what the backbone takes
    content: tuple[int, int] = (0, 0)  # (height, width) of the image in the pixels
    checksum: str | None = None  # of the file's content, once it is known
    last: Record = field(default_factory=dict)  # which files the image has, and of what result

    def stat(self) -> None:
        """Notes the file's size and time, by which a change is seen."""
        stat = os.stat(self.path)
        self.bytes, self.mtime_ns = stat.st_size, stat.st_mtime_ns
        self.checksum = None

    def digest(self) -> str | None:
        """A checksum of the file's content; None where it cannot be read, or has changed."""
        if self.checksum is None:
            try:
                checksum = content_of(Path(self.path))[:_DIGITS]
                stat = os.stat(self.path)
            except OSError:
                return None
            if (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns):
                self.checksum = checksum
        return self.checksum

    def is_of(self, record: Record) -> bool:
        """Whether the file has the very content that a record is of.

        At the same place size and time tell. At another place, where they may be those of another
        image or have changed with the move, the content does.
        """
        if record.get("bytes") != self.bytes:
            return False
        if record.get("path") == self.path:
            return bool(record.get("mtime_ns") == self.mtime_ns)
        return record.get("checksum") is not None and record["checksum"] == self.digest()
