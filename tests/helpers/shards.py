"""Shards of small images, written by the libraries that users write them with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from selfment.shards.readers import read_unit
from selfment.shards.rows import Row, Unit
from selfment.shards.sources import Sources
from selfment.shards.store import Store
from selfment.shards.stores import open_store
from selfment.shards.units import BLOCK, find_inputs


def image(number: int, kind: str = "PNG") -> bytes:
    """The content of an image file; each number has its own."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number % 256, number // 256, 9)).save(file, kind)
    return file.getvalue()


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """The content of a tar file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def units_of(
    inputs: Any, out: Store | None = None, earlier: Sequence[Unit] = (), block: int = BLOCK
) -> tuple[list[Unit], Sources]:
    """Returns the units of inputs, and their file systems."""
    found = find_inputs(inputs, out)
    return found.units(earlier, block), found.sources


def rows_of(
    path: str | Path,
    column: str | None = None,
    key_column: str | None = None,
    skip: Sequence[str] = (),
) -> Iterator[Row]:
    """Yields the rows of the one unit of a path or URL."""
    [unit], sources = units_of(path)
    yield from read_unit(unit, sources, column=column, key_column=key_column, skip=skip)


def put(url: str, name: str, content: bytes) -> None:
    """Writes a file to a folder by its path or URL."""
    open_store("out", url).write(name, content)
