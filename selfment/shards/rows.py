"""The data of a run over shards: units of work, their rows, and results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..util.lines import Record


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An input file on any file system."""

    uri: str  #: an absolute path, or a URL without credentials
    name: str  #: its relative name in the set, with ``/``
    bytes: int
    mtime_ns: int  #: 0 if the file system stores none


@dataclass(frozen=True)
class Unit:
    """A unit of work, which has one output shard: a shard, or a group of image files."""

    #: names the output shard, relative and without a suffix; unique in a run and the same in each
    name: str
    kind: str  #: "tar", "parquet", "arrow" or "files"
    files: tuple[SourceFile, ...]  #: the shard alone, or the image files
    keys: tuple[str, ...] = ()  #: of image files: the keys of their rows


@dataclass(frozen=True)
class Row:
    """One image of a unit, or the reason why there is none."""

    key: str  #: unique in its unit; names its output files, relative and without a suffix
    name: str  #: the image file's name, for messages and records; usually the key and a suffix
    data: bytes = b""  #: the image file's content
    error: str | None = None  #: why it cannot be read
    #: byte of the shard from which it can be read alone; None if it cannot
    start: int | None = field(default=None, compare=False)
    #: share of the unit that precedes it; None if that is not known
    share: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RowResult:
    """Contains what was made of a row."""

    key: str  #: that of the row
    record: Record  #: ready for JSON, the same in each run; its "error" is None or a sentence
    files: Mapping[str, bytes]  #: contents, by field of the record, such as "mask"
