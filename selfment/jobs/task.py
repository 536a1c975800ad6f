"""A task: one image or video of a job, on its way from the input to the results."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from PIL import Image
from torch import Tensor

from ..images.load import load_image
from ..util.files import sha256_of
from ..util.lines import Record

_CHECKSUM_DIGITS = 32  # of the SHA-256 that a record stores
_NO_FILES: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Task:
    """One input, what is known of it, and the names of its output files."""

    image: str  #: its name in the records: relative to the folder that was searched
    #: the input file, absolute, in a folder without symbolic links; with :attr:`data`, where it is
    #: stored, in words for messages
    path: str
    data: bytes | None = None  #: the content of the input, if it is no file of its own
    name: str = ""  #: its main output file, relative to the output folder
    #: output files whose names do not follow from :attr:`name`, by field of the record
    special_names: Mapping[str, str] = field(default_factory=lambda: _NO_FILES)
    twin: str | None = None  #: its own relative name, if the records use that for another image
    bytes: int = 0
    mtime_ns: int = 0
    checksum: str | None = None  #: of the input file's content, once it has been computed
    features: str | None = None  #: the file with its patch features, if that is another file
    features_record: Record = field(default_factory=dict)  #: path, size and time of that file
    seconds: float = 0.0  #: spent on it so far
    notes: Sequence[str] = ()  #: how the image was read, where that is unusual
    size: tuple[int, int] = (0, 0)  #: (W, H) of the upright image, in pixels
    picture: Image.Image | None = None  #: the upright image, if it is needed when saving
    pixels: Tensor | None = None  #: (3, H', W') float32, the input of the backbone
    content: tuple[int, int] = (0, 0)  #: (height, width) of ``pixels`` without padding
    #: fields of the record on the output files that the image had before this run wrote any
    earlier: Record = field(default_factory=dict)

    def read_stat(self) -> None:
        """Stores the sizes and the modification times of the input files; raises ``OSError``."""
        if self.data is not None:
            self.bytes = len(self.data)
            return
        stat = os.stat(self.path)
        self.bytes, self.mtime_ns = stat.st_size, stat.st_mtime_ns
        self.checksum = None
        if self.features is not None:
            stat = os.stat(self.features)
            about = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            self.features_record = {"path": self.features, **about}

    def read_picture(self) -> Image.Image:
        """Reads the input as an image, and stores its size and notes.

        Raises :class:`selfment.images.ImageError`.
        """
        source = self.path if self.data is None else self.data
        picture, self.notes = load_image(source, name=self.path)
        self.size = picture.size
        return picture

    def compute_checksum(self) -> str | None:
        """The checksum of the input; None if its file cannot be read or has changed meanwhile."""
        if self.data is not None:
            self.checksum = hashlib.sha256(self.data).hexdigest()[:_CHECKSUM_DIGITS]
        if self.checksum is None:
            try:
                checksum = sha256_of(Path(self.path))[:_CHECKSUM_DIGITS]
                stat = os.stat(self.path)
            except OSError:
                return None
            if (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns):
                self.checksum = checksum
        return self.checksum

    def matches(self, record: Record) -> bool:
        """True if the record was made from a file with the content that the input file has now.

        At the path in the record, equal size and modification time are enough. At another path
        they may belong to another image, or the time may have changed with the move: there the
        checksum decides.
        """
        if record.get("bytes") != self.bytes:
            return False
        if record.get("path") == self.path:
            return bool(record.get("mtime_ns") == self.mtime_ns)
        return record.get("checksum") is not None and record["checksum"] == self.compute_checksum()

    def has_features_of(self, record: Record) -> bool:
        """True if the record was made from the features in the file of this task, or of none."""
        before = record.get("features") or {}
        return all(
            before.get(name) == self.features_record.get(name) for name in ("bytes", "mtime_ns")
        )
