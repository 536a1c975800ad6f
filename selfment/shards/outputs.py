"""The output folder of runs over shards: which units are done, and which results are of no use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ..util.files import printable, remove_abandoned
from .formats import FilesFormat, Format, objects_of
from .rows import SourceFile, Unit
from .stores import LocalStore, Sources, Store
from .unit_record import PARTS, RECORDS, UnitRecord, read_record, stamps

_THREADS = 16  # that read records


class Outputs:
    """The results of runs in one place: a record of each unit that was begun, and its shard."""

    def __init__(self, store: Store) -> None:
        """Reads all records; those that are damaged are said, and their units are done again.

        Raises ``OSError``.
        """
        self.store = store
        self._records: dict[str, UnitRecord] = {}
        self._damaged: set[str] = set()  # units
        self.done = 0  #: units that are not left by :meth:`plan`
        self.skipped = 0  #: rows in them
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
        """The units of image files that earlier runs have begun, whatever their settings.

        :func:`selfment.shards.units.Inputs.units` leaves the files of each together.
        """
        return [record.unit for record in self._records.values() if record.unit.kind == "files"]

    def plan(self, units: Sequence[Unit], form: Format) -> list[Unit]:
        """The units that are left to do; the others are counted in :attr:`done`.

        A unit with failed rows is left, and so is one that could not be read to its end. Temporary
        files of killed processes are removed from a local folder. Raises ``ValueError`` if a result
        would replace an input or a file of another program, and ``OSError``.
        """
        stats = self.store.stat([unit.name + form.suffix for unit in units])
        sizes = {unit.name: stat and stat[0] for unit, stat in zip(units, stats, strict=True)}
        self._check_inputs(units, form)
        if form.name == FilesFormat.name:
            self._check_names(units)
        for unit in units:
            self._check_shard(unit, unit.name + form.suffix, sizes[unit.name])
        with ThreadPoolExecutor(_THREADS) as pool:
            done = list(pool.map(lambda unit: self._is_done(unit, form, sizes[unit.name]), units))
        left = []
        for unit, is_done in zip(units, done, strict=True):
            record = self._records.get(unit.name)
            if is_done and record is not None:
                self.done += 1
                self.skipped += record.rows
            else:
                left.append(unit)
                self.outdated += record is not None and not record.has_settings_of(form)
        if left and isinstance(self.store, LocalStore):
            remove_abandoned(Path(self.store.text))
        return left

    def _is_done(self, unit: Unit, form: Format, size: int | None) -> bool:
        record = self._records.get(unit.name)
        if record is None or not record.is_of(unit, form) or not record.is_complete:
            return False
        return record.bytes == size and form.is_intact(self.store, unit, record.rows)

    def _check_inputs(self, units: Iterable[Unit], form: Format) -> None:
        """Raises ``ValueError`` if a result would replace an input."""
        place = self.store.text_of("x")[:-1]
        for unit in units:
            shard = self.store.text_of(unit.name + form.suffix)
            for file in unit.files:
                is_inside = file.uri.startswith(place)
                if file.uri == shard or (is_inside and form.name == FilesFormat.name):
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
                for folder in map(str, PurePosixPath(file.name).parents):
                    if folder in shards:
                        raise ValueError(
                            "`inputs` must not have results in one folder: those of "
                            f"{shards[folder]} and of {file.name} go to {folder}/"
                        )

    def _check_shard(self, unit: Unit, shard: str, size: int | None) -> None:
        """Raises ``ValueError`` if the shard of a unit is of another program or another input."""
        record = self._records.get(unit.name)
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

    def finish(self, units: Iterable[Unit], sources: Sources) -> None:
        """Removes what is of no use at the end of a run, and says so.

        These are parts of units that are sealed, and shards of image files whose files are now in
        other units or gone; the latter only if all units of image files are sealed. Shards of files
        that are not among the inputs, but exist, remain.

        ``units``: all of the run. ``sources``: the file systems of the inputs. Raises ``OSError``.
        """
        present = {unit.name: unit for unit in units}
        inputs = {file.name for unit in present.values() for file in unit.files}
        superseded = []
        for name, record in self._records.items():
            rest = [file for file in record.unit.files if file.name not in inputs]
            is_other = record.unit.kind == "files" and name not in present
            if is_other and len(rest) < len(record.unit.files) and not _any_exists(rest, sources):
                superseded.append(record)
        images = [name for name, unit in present.items() if unit.kind == "files"]
        if superseded and not all(map(self._is_sealed, images)):
            superseded = []
        if superseded:
            self._remove_units(superseded, present.values())
        parts: dict[str, list[str]] = {}  # by unit
        for file in self.store.list(PARTS):
            if file.name.endswith(".tar"):
                name = file.name[len(PARTS) + 1 :].rsplit("/", 2)[0]
                parts.setdefault(name, []).append(file.name)
        for name, files in parts.items():
            is_gone = any(record.unit.name == name for record in superseded)
            if is_gone or (name in present and self._is_sealed(name)):
                self.store.remove(files)

    def _is_sealed(self, name: str) -> bool:
        """True if this run or an earlier one has sealed a unit."""
        record = self._read(name)
        return record is not None and record.bytes is not None

    def _remove_units(self, records: Sequence[UnitRecord], present: Iterable[Unit]) -> None:
        """Removes results, but not the files that also belong to units of the run."""
        kept = {
            name
            for unit in present
            for name in objects_of(self.store, unit.name + FilesFormat.suffix)
        }
        for record in records:
            names = {*record.replaces, *objects_of(self.store, record.shard)}
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


def _any_exists(files: Iterable[SourceFile], sources: Sources) -> bool:
    """True if one of the files exists, or lies where the run had no input."""
    for file in files:
        try:
            store, name = sources.locate(file)
        except KeyError:
            return True
        if store.stat([name]) != [None]:
            return True
    return False


def _say(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr)
