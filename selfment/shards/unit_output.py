"""The results of one unit: parts while it is worked on, and one sealed shard at the end.

A killed run loses the rows since its last part, and nothing else. The sealed shard has all rows in
their order, whatever the order in which they were finished, so that it is the same to the byte as
that of a run without an interrupt. Two runs with the same settings in one output folder make the
same results twice, and nothing worse: each object is written in one step.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from ..core import options as params
from ..util.files import printable
from ..util.lines import Record
from .formats import Format, objects_of, read_tar, write_tar
from .rows import RowResult, Unit
from .store import Store
from .unit_record import PARTS, UnitRecord, read_record, stamp, stamps, write_record

_BLOCK_BYTES = 32 << 20  # contents of a part
_PARTS_IN_MEMORY = 8  # rows are finished nearly in their order, so that few parts are read at once
_MOST_STARTS = 100  # rows that are read alone: more requests take as long as the whole shard
_PART = re.compile(r"(\d{6,})-([0-9a-f]{16})\.tar")


class UnitOutput:
    """The results of one unit, to add to; one thread uses it."""

    def __init__(self, store: Store, form: Format, unit: Unit, block: int = 256) -> None:
        """Reads what earlier runs have done; parts and shards that are damaged are said.

        ``block``: the rows of a part. Raises ``OSError``.
        """
        self._store = store
        self._form = form
        self._unit = unit
        self._block = block
        self._shard = unit.name + form.suffix
        self._record = self._read_record()
        self._is_begun = self._record is not None and self._record.is_of(unit, form)
        #: keys of the rows that have a result without an error, of this run or an earlier one
        self.done: set[str] = set()
        # rows of the sealed shard; of those that failed, the record
        self._sealed: dict[str, Record | None] = {}
        self._failed: dict[str, RowResult] = {}  # in this run
        self._part_of: dict[str, str] = {}  # by key
        self._waiting: list[RowResult] = []
        self._waiting_bytes = 0
        identity = json.dumps([form.digest, stamps(unit.files)])
        stamp = hashlib.sha256(identity.encode()).hexdigest()[:12]
        self._folder = f"{PARTS}/{unit.name}/{stamp}"
        self._number = 0
        self._has_shard = False
        if self._is_begun:
            self._read_sealed()
            self._read_parts()
        elif self._record is not None and self._record.has_settings_of(form):
            self._keep_unchanged(self._record)

    @property
    def rows(self) -> int:
        """The number of rows in the sealed shard of an earlier run."""
        return len(self._sealed)

    @property
    def starts(self) -> Mapping[str, int | None] | None:
        """The keys of all rows in their order, with the starts of those that failed.

        None if that is not known. See :attr:`UnitRecord.starts`.
        """
        record = self._record
        if record is None or record.starts is None or record.rows != len(self._sealed):
            return None
        return {key: record.starts.get(key) for key in self._sealed}

    def add(self, result: RowResult) -> None:
        """Adds a finished row; writes a part if enough rows wait for it.

        Raises ``ValueError`` for a result that the layout does not allow, and ``OSError``.
        """
        result = self._form.layout.normal(result)
        if result.record["error"] is not None:
            self._failed[result.key] = result  # tried again after an interrupt, hence in no part
            return
        self.done.add(result.key)
        self._waiting.append(result)
        self._waiting_bytes += sum(map(len, result.files.values()))
        if len(self._waiting) >= self._block or self._waiting_bytes >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes a part with the rows that wait for it; call it also after an interrupt."""
        if not self._waiting:
            return
        self._begin()
        file = io.BytesIO()
        write_tar(self._waiting, file, self._form.layout)
        data = file.getvalue()
        # Two runs may write parts of the same number: their contents tell them apart.
        part = f"{self._folder}/{self._number:06d}-{_digest(data)}.tar"
        self._store.write(part, data)
        self._number += 1
        self._part_of.update((row.key, part) for row in self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0

    def seal(
        self,
        keys: Sequence[str],
        error: str | None = None,
        starts: Mapping[str, int | None] | None = None,
    ) -> UnitRecord:
        """Writes the sealed shard and its record, removes the parts, and returns the record.

        Nothing is written if the shard is there, and would be the same.

        ``keys``: all rows of the unit in their order, also those that were done before. ``error``:
        why the unit could not be read to its end. ``starts``: :attr:`Row.start` of the rows that
        were read in this run. Raises ``ValueError`` for a key without a result, and ``OSError``.
        """
        params.require("keys", len(keys), "different", len({*keys}) == len(keys))
        self.flush()
        if self._is_up_to_date(keys, error):
            assert self._record is not None
            return self._record
        begun = self._begin()
        try:
            with _temporary_file(self._store.text_of(self._shard)) as path:
                self._form.write(self._rows(keys), path, self._unit, self._store)
                size = path.stat().st_size
                replaces = self._replaced(begun)
                write_record(self._store, replace(begun, next_bytes=size, replaces=replaces))
                self._store.upload(self._shard, path)
        except FileNotFoundError as missing:
            return self._sealed_by_another(missing)
        if stale := set(replaces).difference(objects_of(self._store, self._shard)):
            self._store.remove(sorted(stale))
        failed = [key for key in keys if key not in self.done]
        sealed = replace(begun, bytes=size, next_bytes=None, replaces=(), rows=len(keys))
        places = _starts(failed, starts or {}) if error is None else None
        self._record = replace(sealed, failed=len(failed), error=error, starts=places)
        write_record(self._store, self._record)
        self._store.remove(sorted({*self._part_of.values()}))
        return self._record

    def _read_record(self) -> UnitRecord | None:
        try:
            return read_record(self._store, self._unit.name)
        except ValueError as error:
            _say(f"{error}; the unit is done again")
            return None

    def _begin(self) -> UnitRecord:
        """The record of the unit as it is now; written first if it is of other results."""
        if self._record is not None and self._is_begun:
            return self._record
        replaces = () if self._record is None else self._replaced(self._record)
        unit, form = replace(self._unit, keys=()), self._form
        self._record = UnitRecord(
            unit, form.layout.command, form.digest, form.name, self._shard, replaces=replaces
        )
        write_record(self._store, self._record)
        self._is_begun = True
        return self._record

    def _replaced(self, record: UnitRecord) -> tuple[str, ...]:
        """The names of all earlier results that a record knows of."""
        return (*record.replaces, *objects_of(self._store, record.shard))

    def _read_sealed(self) -> None:
        assert self._record is not None
        [stat] = self._store.stat([self._shard])
        self._has_shard = self._record.is_sealed(stat and stat[0])
        if self._has_shard:
            try:
                for row in self._form.read(self._store, self._unit):
                    failed = row.record["error"] is not None
                    self._sealed[row.key] = row.record if failed else None
            except ValueError:
                self._sealed.clear()
        missing = self._record.rows - len(self._sealed)
        if missing > 0:
            shard = self._store.text_of(self._shard)
            _say(
                f"{missing:,} of {self._record.rows:,} rows are damaged or gone in {shard}: they "
                "are done again"
            )
        self.done.update(key for key, record in self._sealed.items() if record is None)

    def _keep_unchanged(self, record: UnitRecord) -> None:
        """Adds the rows of image files that have not changed, from the shard of the others."""
        [stat] = self._store.stat([self._shard])
        if self._unit.kind != "files" or not record.is_sealed(stat and stat[0]):
            return
        unchanged = set(stamps(record.unit.files)).intersection(stamps(self._unit.files))
        files = zip(self._unit.keys, self._unit.files, strict=True)
        images = {key: file.name for key, file in files if stamp(file) in unchanged}
        with suppress(ValueError):  # a damaged shard: the rows after the damage are done again
            for row in self._form.read(self._store, self._unit):
                if row.record["error"] is None and row.record["image"] == images.get(row.key):
                    self.add(row)
        self.flush()

    def _read_parts(self) -> None:
        damaged = 0
        for file in self._store.list(self._folder):
            match = _PART.fullmatch(file.name.rpartition("/")[2])
            if match is None:
                continue
            self._number = max(self._number, int(match[1]) + 1)
            try:
                keys = self._read_part(file.name).keys()
            except ValueError:
                damaged += 1
                continue
            self._part_of.update(dict.fromkeys(keys, file.name))
            self.done.update(keys)
        if damaged:
            parts = "1 part is" if damaged == 1 else f"{damaged:,} parts are"
            _say(
                f"{parts} damaged in {self._store.text_of(self._folder)}: their rows are done again"
            )

    def _read_part(self, name: str) -> dict[str, RowResult]:
        """The rows of a part, by key; raises ``ValueError`` if it is damaged."""
        data = self._store.read(name)
        if f"-{_digest(data)}." not in name:
            raise ValueError(f"cannot read {self._store.text_of(name)}: it is damaged")
        return {row.key: row for row in read_tar(io.BytesIO(data), self._form.layout, name)}

    def _is_up_to_date(self, keys: Sequence[str], error: str | None) -> bool:
        """True if the sealed shard has these rows, and those that failed have failed alike."""
        record = self._record
        if self._part_of or record is None or not self._has_shard:
            return False
        is_over = record.next_bytes is None and record.error == error
        alike = all(self._sealed.get(key) == row.record for key, row in self._failed.items())
        return is_over and alike and list(self._sealed) == list(keys)

    def _rows(self, keys: Sequence[str]) -> Iterator[RowResult]:
        """Yields the rows of the unit in their order, from where each is."""
        load = lru_cache(maxsize=_PARTS_IN_MEMORY)(self._read_part)
        sealed = self._form.read(self._store, self._unit) if self._sealed else iter(())
        for key in keys:
            if key in self._part_of:
                yield load(self._part_of[key])[key]
            elif key in self._failed:
                yield self._failed[key]
            else:
                row = next((row for row in sealed if row.key == key), None)
                if row is None:
                    raise ValueError(f"`keys` must have results: {key!r} has none")
                yield row

    def _sealed_by_another(self, missing: FileNotFoundError) -> UnitRecord:
        """The record of another run that has just sealed the unit, and removed the parts."""
        record = read_record(self._store, self._unit.name)
        if record is None or not record.is_of(self._unit, self._form) or record.bytes is None:
            raise missing
        return record


@contextmanager
def _temporary_file(shard: str) -> Iterator[Path]:
    """Returns a file to put a shard together in; errors of the folder name it and the shard."""
    place = tempfile.gettempdir()
    try:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place) / "shard"
    except OSError as error:  # those of the output folder name a file there
        if error.filename is not None and not os.fspath(error.filename).startswith(place):
            raise
        why = error.strerror or str(error)
        words = f"{why}, while {shard} is put together in the temporary folder (TMPDIR)"
        raise OSError(error.errno, words, place) from error


def _starts(failed: Sequence[str], starts: Mapping[str, int | None]) -> Mapping[str, int] | None:
    """Returns the starts of the rows that failed; None if one has none, or there are too many."""
    known = {key: start for key in failed if (start := starts.get(key)) is not None}
    return known if len(failed) == len(known) <= _MOST_STARTS else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _say(sentence: str) -> None:
    tqdm.write(printable(sentence), file=sys.stderr)
