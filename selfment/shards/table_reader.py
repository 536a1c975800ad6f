"""Rows of tables with a column of images: Parquet files, and the Arrow files of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count, islice, repeat
from typing import Any, BinaryIO, Protocol

from ..util.extras import load_extra
from ..util.files import reason
from .keys import RowKeys, image_keys, key_error
from .rows import Row

_BUFFER = 8 << 20  # bytes of a column that are read at once
_BATCH = 16  # images that are decoded at once
_KEYS = ("__key__", "key")  # columns
_MAGIC = b"ARROW1"  # how an Arrow file begins that is no stream
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Table(Protocol):
    """A table that is read a column at a time."""

    schema: Any  #: PyArrow's
    rows: int | None  #: their number, if it is known before they are read

    def column(self, name: str, child: str | None = None) -> Iterator[Any]:
        """Yields the parts of a column, or of a child of a column of structs."""

    def groups(self, name: str) -> Iterator[tuple[int, Callable[[], Iterator[Any]]]]:
        """Yields the number of rows in each group, and a function that reads their column."""


class ParquetTable:
    """A Parquet file; a page of it is in memory, 1,024 images as PyArrow writes large ones."""

    def __init__(self, file: BinaryIO) -> None:
        """``file``: can seek; the caller closes it."""
        parquet = load_extra("pyarrow.parquet", "PyArrow", "shards", "a Parquet file")
        self._file = parquet.ParquetFile(file, buffer_size=_BUFFER)
        self.schema = self._file.schema_arrow
        self.rows: int | None = self._file.metadata.num_rows

    def column(self, name: str, child: str | None = None) -> Iterator[Any]:
        """Yields the parts of a column; nothing else is read."""
        column = name if child is None else f"{name}.{child}"
        for batch in self._file.iter_batches(columns=[column], use_threads=False):
            yield _child(batch.column(0), child)

    def groups(self, name: str) -> Iterator[tuple[int, Callable[[], Iterator[Any]]]]:
        """Yields each group of rows, which is read when its function is called."""
        for number in range(self._file.num_row_groups):

            def read(number: int = number) -> Iterator[Any]:
                batches = self._file.iter_batches(
                    batch_size=_BATCH, row_groups=[number], columns=[name], use_threads=False
                )
                return (batch.column(0) for batch in batches)

            yield self._file.metadata.row_group(number).num_rows, read


class ArrowTable:
    """An Arrow file or stream."""

    def __init__(self, file: Any) -> None:
        """``file``: can seek; a memory map is not copied. The caller closes it."""
        self._ipc = load_extra("pyarrow.ipc", "PyArrow", "shards", "an Arrow file")
        self._file = file
        self._is_stream = file.read(len(_MAGIC)) != _MAGIC
        file.seek(0)
        self.schema = (self._ipc.open_stream if self._is_stream else self._ipc.open_file)(
            file
        ).schema
        self.rows: int | None = None

    def column(self, name: str, child: str | None = None) -> Iterator[Any]:
        """Yields the parts of a column up to a damage, which :meth:`groups` raises."""
        with suppress(Exception):
            for batch in self._batches():
                yield _child(batch.column(name), child)

    def groups(self, name: str) -> Iterator[tuple[int, Callable[[], Iterator[Any]]]]:
        """Yields each batch of the file; raises ``ValueError`` if the last ones are missing."""
        for batch in self._batches():
            yield batch.num_rows, lambda batch=batch: iter([batch.column(name)])  # type: ignore[misc]
        if self._is_stream:
            self._file.seek(-len(_END_OF_STREAM), 2)
            if self._file.read(len(_END_OF_STREAM)) != _END_OF_STREAM:
                raise ValueError("it ends without an end mark")

    def _batches(self) -> Iterator[Any]:
        self._file.seek(0)
        if self._is_stream:
            yield from self._ipc.open_stream(self._file)
            return
        table = self._ipc.open_file(self._file)
        yield from map(table.get_batch, range(table.num_record_batches))


@dataclass(frozen=True)
class _Columns:
    """The columns of a table that are read."""

    image: str
    is_struct: bool  #: of bytes and maybe a path; otherwise the content alone
    has_path: bool
    key: str | None


def table_rows(
    table: Table,
    column: str | None,
    key_column: str | None,
    skip: Container[str],
    read_beside: Callable[[str], bytes],
) -> Iterator[Row]:
    """Yields a row for each row of a table; groups of rows that are all skipped are not read.

    The column of images is binary, or a struct of ``bytes`` and maybe a ``path`` (as `datasets`
    stores images), which is read if there are no bytes. Raises ``ValueError`` for columns that
    do not fit, and what PyArrow raises.

    Args:
        table: the open table.
        column: the column of images. None: the one that the metadata of `datasets` name, or the
            only struct with ``bytes``, or the only binary column.
        key_column: the column of keys. None: ``__key__`` or ``key``; without them, the paths of
            the images if each has its own, or else the row numbers.
        skip: keys of rows without data.
        read_beside: returns the content of a file by its path from the table's folder; raises
            ``OSError``, and ``ValueError`` for a file elsewhere.
    """
    columns = _columns(table.schema, column, key_column)
    rows = _rows_without_data(table, columns)
    for length, read in table.groups(columns.image):
        group = list(islice(rows, length))
        is_read = [row.error is None and row.key not in skip for row in group]
        if not any(is_read):
            yield from group
            continue
        end = length - is_read[::-1].index(True)  # nothing is read after the last one
        values = islice((value for array in read() for value in array), end)
        for row, value, is_one in zip(group[:end], values, is_read[:end], strict=True):
            yield _with_data(row, value, columns, read_beside) if is_one else row
        yield from group[end:]


def _rows_without_data(table: Table, columns: _Columns) -> Iterator[Row]:
    """Reads the keys and paths, and returns all rows; numbered ones do not end."""
    paths: list[str | None] = []
    if columns.has_path:
        paths = _read_column(table, columns.image, "path")
    keys: Iterable[str | None] = (f"{number:09d}" for number in count())
    if columns.key is not None:
        values = _read_column(table, columns.key)
        keys = (None if value is None else str(value) for value in values)
    elif (path_keys := _keys_of_paths(paths)) is not None:
        keys = path_keys
    start = RowKeys(table.rows).start
    pairs = zip(keys, chain(paths, repeat(None)), strict=False)
    return (start(key, path or key or "") for key, path in pairs)


def _read_column(table: Table, name: str, child: str | None = None) -> list[Any]:
    return [value for array in table.column(name, child) for value in array.to_pylist()]


def _keys_of_paths(paths: Sequence[str | None]) -> list[str] | None:
    """Returns a key for each path; None if a path is missing, is not unique or is no key."""
    names = [path for path in paths if path]
    if not names or len(set(names)) < len(paths):
        return None
    keys = image_keys(names)
    return keys if not any(map(key_error, keys)) else None


def _with_data(row: Row, value: Any, columns: _Columns, read_beside: Callable[[str], bytes]) -> Row:
    """Returns the row with its image, or with the reason why there is none."""
    if not value.is_valid:
        return replace(row, error="its image is null")
    data = value["bytes"].as_py() if columns.is_struct else value.as_py()
    if data is not None:
        return replace(row, data=data)
    path = value["path"].as_py() if columns.has_path else None
    if path is None:
        return replace(row, error="its image has no bytes")
    try:
        return replace(row, data=read_beside(path))
    except (OSError, ValueError) as error:
        return replace(row, error=f"its image has no bytes but a path: {reason(error)}")


def _columns(schema: Any, column: str | None, key_column: str | None) -> _Columns:
    """Chooses the columns that are read; raises ``ValueError`` if the schema does not fit."""
    types = load_extra("pyarrow.types", "PyArrow", "shards", "a table")
    for name in filter(None, (column, key_column)):
        if schema.names.count(name) != 1:
            raise ValueError(f"it has no column {name!r}: its columns are {_listed(schema.names)}")
    image = _image_column(schema) if column is None else column
    kind = schema.field(image).type
    if not _is_struct(kind) and not _is_binary(kind):
        raise ValueError(
            f"its column {image!r} of images must be binary or a struct with bytes: it is {kind}"
        )
    if key_column is None:
        key_column = next((name for name in _KEYS if name in schema.names), None)
    if key_column is not None:
        key_kind = schema.field(key_column).type
        is_text = types.is_string(key_kind) or types.is_large_string(key_kind)
        if not is_text and not types.is_integer(key_kind):
            raise ValueError(
                f"its column {key_column!r} of keys must be text or integers: it is {key_kind}"
            )
    is_struct = _is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0
    return _Columns(image, is_struct, has_path, key_column)


def _image_column(schema: Any) -> str:
    """Returns the column of images that the metadata or the types show."""
    features = {}
    with suppress(KeyError, TypeError, ValueError):  # no metadata of `datasets`
        features = dict(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    marked = [name for name, kind in features.items() if _is_image_feature(kind)]
    structs = [field.name for field in schema if _is_struct(field.type)]
    binary = [field.name for field in schema if _is_binary(field.type)]
    for names in (marked, structs, binary):
        if len(names) == 1:
            return str(names[0])
        if names:
            raise ValueError(
                f"several columns may have the images, {_listed(names)}: choose one by `column`"
            )
    raise ValueError(f"no column has images: its columns are {_listed(schema.names)}")


def _is_image_feature(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("_type") == "Image"


def _is_struct(kind: Any) -> bool:
    """Returns whether a type is a struct with ``bytes``."""
    types = load_extra("pyarrow.types", "PyArrow", "shards", "a table")
    return bool(
        types.is_struct(kind)
        and kind.get_field_index("bytes") >= 0
        and _is_binary(kind.field("bytes").type)
    )


def _is_binary(kind: Any) -> bool:
    types = load_extra("pyarrow.types", "PyArrow", "shards", "a table")
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _child(array: Any, child: str | None) -> Any:
    """Returns the child of an array of structs, with the nulls of both."""
    if child is None:
        return array
    compute = load_extra("pyarrow.compute", "PyArrow", "shards", "a table")
    return compute.struct_field(array, child)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
