"""The output of a run over shards for each unit: a tar file, a Parquet file, or single files.

A format writes the rows of a unit in their order, so that equal rows make equal bytes: no time, no
user and no host is in a file.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol, TypeVar

from ..core import options as params
from ..util.extras import load_extra
from ..util.lines import Record, with_checksum, without_checksum
from .layout import COMMON, Layout
from .rows import RowResult, Unit
from .store import Store

#: The formats of outputs, as ``to`` names them.
FORMATS = ("tar", "parquet", "files")

_TEXTS = ("json", "txt")  # endings of contents that are text in a table
_GROUP = 100  # rows of a row group: what Hugging Face uses for tables of images
_THREADS = 16  # the number of threads that write the contents of rows as files
_LINES = 1000  # the number of records whose files are looked up together

T = TypeVar("T")


class Format(Protocol):
    """How the rows of a unit are stored: as one sealed shard, and for "files" contents beside it.

    The rows that it writes are :meth:`Layout.normal`.
    """

    name: str  #: one of :data:`FORMATS`
    suffix: str  #: of the sealed shard
    layout: Layout
    digest: str  #: changes with the settings, the layout and the format

    def write(self, rows: Iterable[RowResult], path: Path, unit: Unit, store: Store) -> None:
        """Writes the sealed shard of a unit to a local file, row by row.

        ``store``: gets the contents that lie beside the shard.
        """

    def read(self, store: Store, unit: Unit) -> Iterator[RowResult]:
        """Yields the rows of the sealed shard of a unit that are intact, in their order.

        Raises ``ValueError`` if the damage is noticed, and ``OSError``.
        """

    def is_intact(self, store: Store, unit: Unit, rows: int) -> bool:
        """True if all that lies beside the sealed shard of a unit with ``rows`` rows is there."""


def output_format(to: str, layout: Layout, settings: Mapping[str, Any]) -> Format:
    """Returns a format of outputs.

    ``to``: one of :data:`FORMATS`. ``settings``: all that the results depend on besides the input,
    ready for JSON. Raises ``ValueError``, and ``ImportError`` without pyarrow.
    """
    params.choice("to", to, FORMATS)
    parts = [to, settings, dict(layout.endings), dict(layout.numbers)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    if to == "tar":
        return TarFormat(layout, digest)
    if to == "parquet":
        return ParquetFormat(layout, digest, settings)
    return FilesFormat(layout, digest)


class TarFormat:
    """WebDataset: of each row ``key.png`` and the like, and ``key.json`` with its record."""

    name = "tar"
    suffix = ".tar"

    def __init__(self, layout: Layout, digest: str) -> None:
        self.layout = layout
        self.digest = digest

    def write(self, rows: Iterable[RowResult], path: Path, unit: Unit, store: Store) -> None:
        """See :class:`Format`."""
        del unit, store
        with path.open("wb") as file:
            write_tar(rows, file, self.layout)

    def read(self, store: Store, unit: Unit) -> Iterator[RowResult]:
        """See :class:`Format`."""
        name = unit.name + self.suffix
        with store.open(name) as file:
            yield from read_tar(file, self.layout, store.text_of(name))

    def is_intact(self, store: Store, unit: Unit, rows: int) -> bool:
        """True: nothing lies beside the shard."""
        del store, unit, rows
        return True


def write_tar(rows: Iterable[RowResult], file: IO[bytes], layout: Layout) -> None:
    """Writes rows as a tar file that WebDataset reads; equal rows make equal bytes.

    The members of a row are next to each other: the contents in the order of the layout, then the
    record with the key. WebDataset ends a key at the first dot of the base name, so that a dot
    there is written ``%2E``, and ``%`` is written ``%25``.
    """
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for row in rows:
            folder, slash, base = row.key.rpartition("/")
            stem = folder + slash + base.replace("%", "%25").replace(".", "%2E")
            record = json.dumps({**row.record, "key": row.key}, sort_keys=True, allow_nan=False)
            for field, data in row.files.items():
                _add(tar, f"{stem}.{layout.endings[field]}", data)
            _add(tar, f"{stem}.json", record.encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # it belongs to no user, and its time is 0
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # it would grow


def read_tar(file: IO[bytes], layout: Layout, text: str) -> Iterator[RowResult]:
    """Yields the rows of a tar file of :func:`write_tar`; ``text``: names it in errors.

    Raises ``ValueError`` if it is damaged, after the rows before the damage. tarfile takes a
    damaged header for the end, so that the number of rows must be checked, too.
    """
    fields = {ending: field for field, ending in layout.endings.items()}
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            files = {}
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would grow
                _, _, ending = PurePosixPath(member.name).name.partition(".")
                content = tar.extractfile(member)
                if content is None:
                    raise ValueError("a member that is no file")
                data = content.read()
                if ending != "json":
                    files[fields[ending]] = data
                    continue
                record: Record = json.loads(data)
                yield RowResult(record.pop("key"), record, files)
                files = {}
    except (tarfile.TarError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot read {text}: it is damaged") from error


class ParquetFormat:
    """A table with a row for each row, which Hugging Face ``datasets`` shows with its images.

    The schema follows from the layout and the settings alone, so that all shards have the same.
    """

    name = "parquet"
    suffix = ".parquet"

    def __init__(self, layout: Layout, digest: str, settings: Mapping[str, Any]) -> None:
        """Makes the schema; raises ``ImportError`` without pyarrow."""
        self.layout = layout
        self.digest = digest
        self._texts = {
            field for field, ending in layout.endings.items() if ending.split(".")[-1] in _TEXTS
        }
        arrow = _load_arrow("pyarrow")
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        types = {
            "key": "string",
            "image": COMMON["image"],
            **{field: "string" if field in self._texts else image for field in layout.endings},
            **COMMON,
            **layout.numbers,
        }
        images = {field: {"_type": "Image"} for field in layout.endings if types[field] is image}
        about = {"digest": digest, "settings": settings}
        self._schema = arrow.schema(
            [(field, _arrow_type(arrow, kind)) for field, kind in types.items()],
            metadata={
                "huggingface": json.dumps({"info": {"features": images}}),
                "selfment": json.dumps(about, sort_keys=True),
            },
        )

    def write(self, rows: Iterable[RowResult], path: Path, unit: Unit, store: Store) -> None:
        """See :class:`Format`."""
        del unit, store
        arrow = _load_arrow("pyarrow")
        parquet = _load_arrow("pyarrow.parquet")
        options = {"compression": "zstd", "use_dictionary": False}
        with parquet.ParquetWriter(path, self._schema, **options) as writer:
            for group in _blocks(rows, _GROUP):
                columns = [self._columns(row) for row in group]
                writer.write_table(arrow.Table.from_pylist(columns, schema=self._schema))

    def _columns(self, row: RowResult) -> Record:
        contents = {
            field: data.decode()
            if field in self._texts
            else {"bytes": data, "path": f"{row.key}.{self.layout.endings[field]}"}
            for field, data in row.files.items()
        }
        return {"key": row.key, **row.record, **contents}

    def read(self, store: Store, unit: Unit) -> Iterator[RowResult]:
        """See :class:`Format`."""
        name = unit.name + self.suffix
        parquet = _load_arrow("pyarrow.parquet")
        fields = (*COMMON, *self.layout.numbers)
        try:
            with store.open(name) as file:
                for batch in parquet.ParquetFile(file).iter_batches(_GROUP):
                    for row in batch.to_pylist():
                        record = {field: row[field] for field in fields}
                        yield RowResult(row["key"], record, self._contents(row))
        except (ValueError, KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # pages that cannot be decompressed have no number
            raise ValueError(f"cannot read {store.text_of(name)}: it is damaged") from error

    def _contents(self, row: Record) -> dict[str, bytes]:
        return {
            field: row[field].encode() if field in self._texts else row[field]["bytes"]
            for field in self.layout.endings
            if row[field] is not None
        }

    def is_intact(self, store: Store, unit: Unit, rows: int) -> bool:
        """True: nothing lies beside the shard."""
        del store, unit, rows
        return True


def _load_arrow(module: str) -> Any:
    return load_extra(module, "PyArrow", "shards", "a Parquet file")


def _arrow_type(arrow: Any, kind: Any) -> Any:
    """The type of Arrow with a name of :data:`selfment.shards.layout.TYPES`, or the type itself."""
    if not isinstance(kind, str):
        return kind
    item = kind.removeprefix("list<").removesuffix(">")
    names = {"bool": arrow.bool_, "int64": arrow.int64, "double": arrow.float64}
    base = names.get(item, arrow.string)()
    return base if item == kind else arrow.list_(base)


class FilesFormat:
    """Each content is a file of its own, as `selfment label` writes them for a folder.

    The sealed shard has a line of JSON with a checksum for each row: the record, the key, the names
    of the files, and their sizes. Files of image files lie where `selfment label` puts them, those
    of a shard in a folder with the shard's name.
    """

    name = "files"
    suffix = ".jsonl"

    def __init__(self, layout: Layout, digest: str) -> None:
        self.layout = layout
        self.digest = digest

    def write(self, rows: Iterable[RowResult], path: Path, unit: Unit, store: Store) -> None:
        """See :class:`Format`; the contents that :meth:`read` found in the store stay there."""
        folder = "" if unit.kind == "files" else f"{unit.name}/"
        with ThreadPoolExecutor(_THREADS) as pool, path.open("wb") as file:
            for block in _blocks(rows, 4 * _THREADS):
                writing = []
                for row in block:
                    paths = self.layout.paths(folder + row.key)
                    names = {field: paths[field] for field in row.files}
                    if isinstance(row.files, _StoredContents):
                        sizes = row.files.sizes
                    else:
                        sizes = {field: len(data) for field, data in row.files.items()}
                        writing += [(names[field], data) for field, data in row.files.items()]
                    line = {**row.record, "key": row.key, "files": names, "sizes": sizes}
                    text = json.dumps(line, allow_nan=False)
                    file.write(f"{with_checksum(text)}\n".encode())
                for _ in pool.map(lambda content: store.write(*content), writing):
                    pass

    def read(self, store: Store, unit: Unit) -> Iterator[RowResult]:
        """See :class:`Format`; a content is read from the store when it is used."""
        for block in _blocks(_read_lines(store, unit.name + self.suffix), _LINES):
            names = [name for line in block for name in line["files"].values()]
            stored = dict(zip(names, store.stat(names), strict=True))
            for line in block:
                files, sizes, key = line.pop("files"), line.pop("sizes"), line.pop("key")
                stats = {field: stored[name] for field, name in files.items()}
                if all(stat and stat[0] == sizes[field] for field, stat in stats.items()):
                    yield RowResult(key, line, _StoredContents(store, files, sizes))

    def is_intact(self, store: Store, unit: Unit, rows: int) -> bool:
        """True if all files are there and have their sizes."""
        return sum(1 for _ in self.read(store, unit)) == rows


class _StoredContents(Mapping[str, bytes]):
    """The contents of a row that lie in a store, by field; each is read when it is used."""

    def __init__(self, store: Store, names: Mapping[str, str], sizes: Mapping[str, int]) -> None:
        self._store = store
        self._names = names
        self.sizes = sizes

    def __getitem__(self, field: str) -> bytes:
        return self._store.read(self._names[field])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


#: Of the sealed shards, by :data:`FORMATS`.
SUFFIXES = (TarFormat.suffix, ParquetFormat.suffix, FilesFormat.suffix)


def objects_of(store: Store, shard: str) -> list[str]:
    """Returns the names of a shard of any format, and of contents beside it; none if it is gone."""
    if store.stat([shard]) == [None]:
        return []
    if not shard.endswith(FilesFormat.suffix):
        return [shard]
    lines = _read_lines(store, shard)
    return [shard, *(name for line in lines for name in line["files"].values())]


def is_result(store: Store, shard: str) -> bool:
    """Returns whether a file is a sealed shard of any format and any settings, by its beginning.

    So is a file without any content, which a power failure may leave.
    """
    with suppress(Exception):  # the readers raise any for files of other programs
        with store.open(shard) as file:
            if not file.read(1):
                return True
        if shard.endswith(FilesFormat.suffix):
            return next(_read_lines(store, shard), None) is not None
        with store.open(shard) as file:
            if shard.endswith(ParquetFormat.suffix):
                table = _load_arrow("pyarrow.parquet").ParquetFile(file)
                return b"selfment" in (table.schema_arrow.metadata or {})
            with tarfile.open(fileobj=file, mode="r|") as tar:
                for member in tar:
                    if PurePosixPath(member.name).name.partition(".")[2] == "json":
                        content = tar.extractfile(member)
                        return content is not None and set(COMMON) <= set(json.load(content))
                return not tar.getmembers()
    return False


def _read_lines(store: Store, name: str) -> Iterator[Record]:
    """Yields the intact lines of a sealed shard of :class:`FilesFormat`."""
    with store.open(name) as file:
        for line in io.TextIOWrapper(file, encoding="utf-8", errors="replace"):
            content = without_checksum(line.rstrip("\n"))
            if content is not None:
                yield json.loads(content)


def _blocks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields lists of ``size`` values each; the last may be shorter."""
    iterator = iter(values)
    while block := list(islice(iterator, size)):
        yield block
