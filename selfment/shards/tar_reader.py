"""Rows of a tar file by WebDataset's convention: members with the same key are one sample."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from ..images.suffixes import image_suffixes, suffix_of
from .keys import RowKeys
from .rows import Row

#: The key, which ends before the first dot of the base name, and the extension after it.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


class _Member(tarfile.TarInfo):
    """A member whose header is damaged or missing is an error: ``tarfile`` takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        """Returns the next member."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("it ends without an end mark") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


@dataclass
class _Sample:
    """The members with one key."""

    key: str
    start: int  #: where its first member begins, in bytes from where the reading began
    images: list[str] = field(default_factory=list)  #: members that may be its image
    extensions: list[str] = field(default_factory=list)  #: of the images
    obstacle: str | None = None  #: what its image is, if that is no file
    data: bytes | None = None

    def row(self, keys: RowKeys, column: str | None) -> Row:
        """Returns its row, with its image or the reason why there is none."""
        row = keys.start(self.key, self.images[0] if len(self.images) == 1 else self.key)
        if row.error is not None:
            return row
        if len(self.images) > 1:
            names = ", ".join(self.extensions)
            return replace(row, error=f"several images ({names}): name one by `column`")
        if not self.images:
            missing = "no image" if column is None else f"no member .{_extension(column)}"
            return replace(row, error=f"{missing} in the sample {self.key!r}")
        if self.obstacle is not None:
            return replace(row, error=f"{row.name} is {self.obstacle}")
        return replace(row, data=self.data or b"")


def tar_rows(file: BinaryIO, column: str | None, skip: Container[str]) -> Iterator[Row]:
    """Yields a row for each sample of a tar file, which may be compressed, in one pass.

    ``column``: the extension of the images; by default a sample's one member with the suffix of an
    image. ``skip``: keys of rows without data. Raises what ``tarfile`` raises, after the rows that
    precede the damage.
    """
    keys = RowKeys()
    can_seek = file.seekable() and _is_plain(file)
    for sample in _samples(file, column, skip):
        yield replace(sample.row(keys, column), start=sample.start if can_seek else None)


def known_tar_rows(
    file: BinaryIO, column: str | None, skip: Container[str], starts: Mapping[str, int | None]
) -> Iterator[Row]:
    """Yields the rows that :func:`tar_rows` yields, and reads only those that are not skipped.

    ``starts``: :attr:`Row.start` of the rows that are read, by the keys of all rows in their order.
    """
    keys = RowKeys()
    for key, start in starts.items():
        if key in skip or start is None:
            yield keys.start(key, key)
            continue
        file.seek(start)
        row = next((sample.row(keys, column) for sample in _samples(file, column, skip)), None)
        if row is None or row.key != key:
            raise tarfile.ReadError(f"it has no longer the sample {key!r} at byte {start:,}")
        yield replace(row, start=start)


def _is_plain(file: BinaryIO) -> bool:
    """Returns whether a tar file that can seek is not compressed."""
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _samples(file: BinaryIO, column: str | None, skip: Container[str]) -> Iterator[_Sample]:
    """Yields the samples from where a file is; see :func:`tar_rows`."""
    wanted = None if column is None else _extension(column)
    suffixes = image_suffixes()
    sample: _Sample | None = None
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
        try:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would grow
                name = member.name.removeprefix("./")
                parts = _MEMBER.fullmatch(name)
                if member.isdir() or parts is None:
                    continue
                key, extension = parts[1], parts[2].lower()
                if sample is None or key != sample.key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key, member.offset)
                is_image = suffix_of(f"x.{extension}") in suffixes
                if is_image if wanted is None else extension == wanted:
                    sample.images.append(name)
                    sample.extensions.append(extension)
                    sample.obstacle = _obstacle(member)
                    if member.isreg() and key not in skip:
                        sample.data = _content(archive, member)
        except Exception:
            if sample is not None and len(sample.images) == 1 and sample.data is not None:
                yield sample
            raise
        if sample is not None:
            yield sample


def _obstacle(member: tarfile.TarInfo) -> str | None:
    """Returns what a member is whose content cannot be read from a stream, in words."""
    if member.isreg():
        return None
    is_link = member.issym() or member.islnk()
    return "a link, which a stream cannot follow" if is_link else "a pipe or a device"


def _extension(column: str) -> str:
    return column.lower().lstrip(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None  # a regular file
    with stream:
        return stream.read()
