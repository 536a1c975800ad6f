"""The output folder of runs over shards: which units are done, and which results are of no use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ..util.files import printable, remove_abandoned
from .formats import FilesFormat, Format, objects_of
from .rows import Unit
from .stores import LocalStore, Store
from .unit_output import UnitOutput
from .unit_record import PARTS, RECORDS, UnitRecord, read_record, stamps

_THREADS = 16  # that read records


class Outputs:
    """The results of runs in one place: a record of each unit that was begun, and its shard."""

    def __init__(self, store: Store, form: Format) -> None:
        """Reads all records; those that are damaged are said, and their units are done again.

        Raises ``OSError``.
        """
        self.store = store
        self.form = form
        self._records: dict[str, UnitRecord] = {}
        self._damaged: set[str] = set()  # units
        self.done = 0  #: units that are not left by :meth:`plan`
        self.skipped = 0  #: rows in them
        self.failed = 0  #: rows in them that failed in an earlier run
        self.outdated = 0  #: units with results of other settings
        start, end = len(RECORDS) + 1, -len(".json")
        files = [file.name for file in store.list(RECORDS) if file.name.endswith(".json")]
        names = [name[start:end] for name in files]
        with ThreadPoolExecutor(_THREADS) as pool:
            for name, record in zip(names, pool.map(self._read, names), strict=True):
                if record is None:
                    self._damaged.add(name)
                else:
                    self._records[name] = record

    def _read(self, name: str) -> UnitRecord | None:
        try:
            return read_record(self.store, name)
        except ValueError as error:
            _say(f"{error}; the unit {name} is done again")
            return None

    def recorded_units(self) -> list[Unit]:
        """The units of image files that earlier runs have begun."""
        return [record.unit for record in self._records.values() if record.unit.kind == "files"]

    def plan(self, units: Sequence[Unit], retry: bool = True) -> list[Unit]:
        """The units that are left to do; the others are counted in :attr:`done`.

        ``retry``: also those that are sealed, but have failed rows or could not be read to their
        end. Temporary files of killed processes are removed from a local folder. Raises
        ``ValueError`` if a result would replace an input or a file of another program,
        and ``OSError``.
        """
        shards = [unit.name + self.form.suffix for unit in units]
        stats = self.store.stat(shards)
        sizes = {unit.name: stat and stat[0] for unit, stat in zip(units, stats, strict=True)}
        self._check_inputs(units)
        if self.form.name == FilesFormat.name:
            self._check_names(units)
        for unit in units:
            self._check_shard(unit, sizes[unit.name])
        with ThreadPoolExecutor(_THREADS) as pool:
            done = pool.map(lambda unit: self._is_done(unit, sizes[unit.name], retry), units)
            left = [unit for unit, is_done in zip(units, done, strict=True) if not is_done]
        if left and isinstance(self.store, LocalStore):
            remove_abandoned(Path(self.store.text))
        for unit in left:
            record = self._records.get(unit.name)
            settings = (self.form.digest, self.form.name)
            self.outdated += record is not None and (record.settings, record.format) != settings
        names = {unit.name for unit in units}.difference(unit.name for unit in left)
        self.done += len(names)
        self.skipped += sum(self._records[name].rows for name in names)
        self.failed += sum(self._records[name].failed for name in names)
        return left

    def open(self, unit: Unit) -> UnitOutput:
        """The results of a unit, to add to."""
        return UnitOutput(self.store, self.form, unit)

    def _is_done(self, unit: Unit, size: int | None, retry: bool) -> bool:
        record = self._records.get(unit.name)
        if record is None or not record.is_of(unit, self.form):
            return False
        if size is None or record.bytes != size:
            return False
        is_over = record.is_complete if retry else record.next_bytes is None
        return is_over and self.form.is_intact(self.store, unit, record.rows)

    def _check_inputs(self, units: Iterable[Unit]) -> None:
        """Raises ``ValueError`` if a result would replace an input."""
        place = self.store.text_of("x")[:-1]
        for unit in units:
            shard = self.store.text_of(unit.name + self.form.suffix)
            for file in unit.files:
                is_inside = file.uri.startswith(place)
                if file.uri == shard or (is_inside and self.form.name == FilesFormat.name):
                    raise ValueError(f"`out` must not be where results replace inputs: {file.uri}")

    def _check_names(self, units: Sequence[Unit]) -> None:
        """Raises ``ValueError`` if files of results might replace files of others."""
        if not self._records and not self._damaged:
            found = [*self.store.folders(), *(f.name for f in self.store.list(recursive=False))]
            if foreign := [name for name in found if not name.startswith(".")]:
                raise ValueError(
                    "`out` must be empty, or have results of an earlier run: got "
                    f"{self.store.text} with {foreign[0]}"
                )
        shards = {unit.name: unit.files[0].name for unit in units if unit.kind != "files"}
        for unit in units:
            for file in unit.files:
                for folder in PurePosixPath(file.name).parents:
                    if str(folder) in shards:
                        raise ValueError(
                            "`inputs` must not have results in one folder: those of "
                            f"{shards[str(folder)]} and of {file.name} go to {folder}/"
                        )

    def _check_shard(self, unit: Unit, size: int | None) -> None:
        """Raises ``ValueError`` if the shard of a unit is of another program or another input."""
        record = self._records.get(unit.name)
        shard = unit.name + self.form.suffix
        known = {record.shard, *record.replaces} if record is not None else set()
        if size is not None and shard not in known and unit.name not in self._damaged:
            raise ValueError(
                f"`out` must hold no {shard} of another program where a result is to be"
            )
        if record is None:
            return
        before, now = record.unit.files, unit.files
        is_shard = unit.kind != "files" and record.unit.kind != "files"
        if is_shard and before[0].uri != now[0].uri and stamps(before) != stamps(now):
            raise ValueError(
                f"`out` must have no results of another input: {shard} is of {before[0].uri}, and "
                f"would be of {now[0].uri}"
            )

    def finish(
        self, units: Iterable[Unit], exists: Callable[[Sequence[str]], Sequence[bool]]
    ) -> None:
        """Removes what is of no use after a run that has done all of its units, and says so.

        These are parts of the units, and shards of image files whose files are now in other units
        or gone. Shards of files that are not among the inputs, but exist, remain.

        ``units``: all of the run. ``exists``: tells which of the files with these URIs exist.
        """
        present = {unit.name: unit for unit in units}
        files = {file.name for unit in present.values() for file in unit.files}
        superseded = []
        for name, record in self._records.items():
            rest = [file.uri for file in record.unit.files if file.name not in files]
            is_other = record.unit.kind == "files" and name not in present
            if is_other and len(rest) < len(record.unit.files) and not any(exists(rest)):
                superseded.append(record)
        self._remove_units(superseded, present.values())
        names = {*present, *(record.unit.name for record in superseded)}
        parts = [file.name for file in self.store.list(PARTS) if file.name.endswith(".tar")]
        start = len(PARTS) + 1
        stale = [part for part in parts if part[start:].rsplit("/", 2)[0] in names]
        if stale:
            self.store.remove(stale)

    def _remove_units(self, records: Sequence[UnitRecord], present: Iterable[Unit]) -> None:
        if not records:
            return
        kept = {
            name
            for unit in present
            if self.form.name == FilesFormat.name
            for name in objects_of(self.store, unit.name + self.form.suffix)
        }
        for record in records:
            try:
                names = {*record.replaces, *objects_of(self.store, record.shard)}
            except FileNotFoundError:  # never sealed
                names = {*record.replaces}
            # The shard names its contents, and the record its shard: they go last.
            self.store.remove(sorted(names - kept - {record.shard}))
            self.store.remove([record.shard])
            self.store.remove([f"{RECORDS}/{record.unit.name}.json"])
            del self._records[record.unit.name]
        shards = "1 shard was" if len(records) == 1 else f"{len(records):,} shards were"
        _say(
            f"{shards} removed: the files are in other shards now, or gone "
            f"(the first: {records[0].shard})"
        )


def _say(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr)
