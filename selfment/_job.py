"""What is known of an image between its file and those made of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from ._records import Record


@dataclass
class Job:
    """One image on its way from file to file."""

    image: str  # the file, absolute
    name: str  # of what is made of it, relative to the output folder
    bytes: int = 0
    mtime_ns: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()
    size: tuple[int, int] = (0, 0)  # (W, H), upright
    picture: Image.Image | None = None  # kept for the overlay
    pixels: Tensor | None = None  # what the backbone takes
    content: tuple[int, int] = (0, 0)  # (height, width) of the image in the pixels
    last: Record = field(default_factory=dict)  # which files the image has, and of what result

    def stat(self) -> None:
        """Notes the file's size and time, by which a change is seen."""
        stat = os.stat(self.image)
        self.bytes, self.mtime_ns = stat.st_size, stat.st_mtime_ns
