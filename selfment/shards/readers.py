"""Rows of units: one pass over a shard or a group of image files, in the stored order."""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Container, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import Any

from ..util.extras import load_extra
from ..util.files import printable, reason
from ..util.words import count_of
from .rows import Row, SourceFile, Unit
from .sources import Sources
from .store import Store
from .stores import LocalStore
from .table_reader import ArrowTable, ParquetTable, table_rows
from .tar_reader import known_tar_rows, tar_rows

_AHEAD = 16  # image files that are being read
_SAMPLE = 1 << 20  # bytes of one request for a sample


class ShardError(ValueError):
    """A shard cannot be read to its end; the message names it, and the rows that were read."""


def read_unit(
    unit: Unit,
    sources: Sources,
    *,
    column: str | None = None,
    key_column: str | None = None,
    skip: Container[str] = frozenset(),
    starts: Mapping[str, int | None] | None = None,
) -> Generator[Row, None, None]:
    """Yields the rows of a unit in one pass; nothing is unpacked, and few rows are in memory.

    A row that is to be skipped has no data. An image that cannot be read is a row with an error.
    Close the generator if it is not read to its end.

    Args:
        unit: the unit, of :func:`selfment.shards.units.find_inputs`.
        sources: the file systems of its files.
        column: the images of a shard: the extension in a tar file, the column in a table. None:
            the only one that there is.
        key_column: the column of a table with the keys; None: see
            :func:`selfment.shards.table_reader.table_rows`.
        skip: keys of rows whose data are not needed.
        starts: the keys of all rows in their order, and :attr:`Row.start` of those that are not
            skipped; None if that is not known, and the shard is read from its beginning.

    Raises:
        ShardError: the shard cannot be read, or only up to a damage, or none of its rows has an
            image. It is raised after the rows that precede the damage.
        ImportError: PyArrow is needed and missing.
    """
    if unit.kind == "files":
        yield from _file_rows(unit, sources, skip)
        return
    file = unit.files[0]
    if starts is None:
        rows_of_shard = _shard_rows(unit.kind, file, sources, column, key_column, skip)
    else:
        rows_of_shard = _known_rows(file, sources, column, skip, starts)
    done = 0
    lacking: list[Row] = []  # before the first row with an image
    try:
        with closing(rows_of_shard) as rows:
            for row in rows:
                if row.error is not None and not done:
                    lacking.append(row)
                    continue
                yield from lacking
                yield row
                done += len(lacking) + 1
                lacking.clear()
        if len(lacking) > 1:
            count, first = len(lacking), lacking[0].error
            lacking.clear()
            raise ValueError(f"none of its {count:,} rows has an image: {first}")
        yield from lacking
    except ImportError:
        raise
    except Exception as error:  # damaged files lead the readers to any
        yield from lacking
        done += len(lacking)
        after = f" after {count_of(done, 'row')}" if done else ""
        raise ShardError(f"cannot read {file.uri}{after}: {printable(_why(error))}") from error


def _shard_rows(
    kind: str,
    file: SourceFile,
    sources: Sources,
    column: str | None,
    key_column: str | None,
    skip: Container[str],
) -> Generator[Row, None, None]:
    store, name = sources.locate(file)

    def read_beside(path: str) -> bytes:
        """Returns the content of a file in the folder of the table, by its path from there.

        A table may come from anywhere, and must not choose among all files of this machine.
        """
        folder = posixpath.join("/", posixpath.dirname(name), "")
        beside = posixpath.normpath(posixpath.join(folder, path))
        if not beside.startswith(folder):
            raise ValueError(f"{path!r} is not in the folder of the table")
        return store.read(beside.lstrip("/"))

    with ExitStack() as stack:
        if kind == "tar":
            for row in tar_rows(stack.enter_context(store.open(name)), column, skip):
                share = None if row.start is None else row.start / file.bytes
                yield replace(row, share=share)
            return
        table: ParquetTable | ArrowTable
        if kind == "parquet":
            table = ParquetTable(stack.enter_context(store.open(name)))
        else:
            table = ArrowTable(stack.enter_context(_mapped(store, name)))
        yield from table_rows(table, column, key_column, skip, read_beside)


def _known_rows(
    file: SourceFile,
    sources: Sources,
    column: str | None,
    skip: Container[str],
    starts: Mapping[str, int | None],
) -> Generator[Row, None, None]:
    store, name = sources.locate(file)
    with store.open(name, _SAMPLE) as opened:
        yield from known_tar_rows(opened, column, skip, starts)


def _mapped(store: Store, name: str) -> Any:
    """Opens a file for reading; one of this machine is mapped, so that it is not copied."""
    if not isinstance(store, LocalStore):
        return store.open(name)
    arrow = load_extra("pyarrow", "PyArrow", "shards", "an Arrow file")
    return arrow.memory_map(store.text_of(name))


def _file_rows(unit: Unit, sources: Sources, skip: Container[str]) -> Iterator[Row]:
    """Yields the image files; some are read ahead, at the same time."""

    def read(index: int, key: str, file: SourceFile) -> Row:
        row = Row(key, file.name, share=index / len(unit.files))
        if key in skip:
            return row
        store, name = sources.locate(file)
        try:
            return replace(row, data=store.read(name))
        except OSError as error:
            return replace(row, error=f"cannot read {file.uri}: {_why(error)}")

    files = enumerate(zip(unit.keys, unit.files, strict=True))
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[Future[Row]] = deque()
        try:
            while True:
                for index, (key, file) in islice(files, _AHEAD - len(waiting)):
                    waiting.append(pool.submit(read, index, key, file))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _why(error: Exception) -> str:
    """Returns what went wrong, without the name of the file, which the sentence has already."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return error.strerror
    return reason(error)
