"""The output folder of runs over shards: which units are done, and which results are of no use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ..util.files import RealPaths, printable, remove_abandoned
from .formats import SUFFIXES, FilesFormat, Format, is_result, objects_of
from .rows import Unit
from .sources import Sources
from .store import Store
from .stores import LocalStore
from .unit_record import PARTS, RECORDS, UnitRecord, read_record, stamps

_THREADS = 16  # that read records
_RECORDS_OF_FOLDERS = ("labels.jsonl", "predictions.jsonl")


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
        self.retried = 0  #: units of which failed rows are tried again
        self.reread = 0  #: those among them that are read from their beginning
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

    def plan(self, units: Sequence[Unit], form: Format, sources: Sources) -> list[Unit]:
        """The units that are left to do; the others are counted in :attr:`done`.

        A unit with failed rows is left, and so is one that could not be read to its end. Temporary
        files of killed processes are removed from a local folder. Raises ``ValueError`` if a result
        would replace an input, a result of an input that exists, or a file of another program, and
        ``OSError``.

        ``sources``: the file systems of the inputs.
        """
        stats = self.store.stat([unit.name + form.suffix for unit in units])
        sizes = {unit.name: stat and stat[0] for unit, stat in zip(units, stats, strict=True)}
        self._check_folder(form)
        self._check_inputs(units, form)
        if form.name == FilesFormat.name:
            self._check_foreign()
            self._check_names(units, sources)
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
                if record is not None and record.is_of(unit, form) and record.failed:
                    self.retried += 1
                    self.reread += record.starts is None and unit.kind in ("tar", "arrow")
        if left and isinstance(self.store, LocalStore):
            remove_abandoned(Path(self.store.text))
        return left

    def _is_done(self, unit: Unit, form: Format, size: int | None) -> bool:
        record = self._records.get(unit.name)
        if record is None or not record.is_of(unit, form) or not record.is_complete:
            return False
        return record.bytes == size and form.is_intact(self.store, unit, record.rows)

    def _check_folder(self, form: Format) -> None:
        """Raises ``ValueError`` for results of another command, or of a run over a folder."""
        stats = self.store.stat(_RECORDS_OF_FOLDERS)
        for file in (f for f, stat in zip(_RECORDS_OF_FOLDERS, stats, strict=True) if stat):
            raise ValueError(
                "`out` must be another folder than that of a run over a folder of images: got "
                f"{self.store.text} with {file}"
            )
        for record in self._records.values():
            if record.command != form.layout.command:
                raise ValueError(
                    "`out` must have the results of one command: got "
                    f"{self.store.text} with those of `selfment {record.command}`"
                )

    def _check_inputs(self, units: Iterable[Unit], form: Format) -> None:
        """Raises ``ValueError`` if a result would replace an input."""
        real_path = RealPaths()

        def real(text: str) -> str:
            return text if "://" in text else real_path(text)

        place = real(self.store.text_of("x"))[:-1]
        for unit in units:
            shard = real(self.store.text_of(unit.name + form.suffix))
            for file in unit.files:
                uri = real(file.uri)
                if uri == shard or (uri.startswith(place) and form.name == FilesFormat.name):
                    raise ValueError(f"`out` must not be where results replace inputs: {file.uri}")

    def _check_foreign(self) -> None:
        """Raises ``ValueError`` if files might replace others that no run has written as files."""
        records = self._records.values()
        if any(record.format == FilesFormat.name for record in records):
            return
        if any(is_result(self.store, name + FilesFormat.suffix) for name in self._damaged):
            return
        shards = [name + suffix for name in self._damaged for suffix in SUFFIXES]
        shards += [record.shard for record in records]
        known = {shard.partition("/")[0] for shard in shards}
        found = [*self.store.folders(), *(f.name for f in self.store.list(recursive=False))]
        if foreign := [name for name in found if not name.startswith(".") and name not in known]:
            raise ValueError(
                "`out` must be empty, or have results of an earlier run: got "
                f"{self.store.text} with {foreign[0]}"
            )

    def _check_names(self, units: Sequence[Unit], sources: Sources) -> None:
        """Raises ``ValueError`` if files of one result would replace those of another."""
        present = {unit.name for unit in units}
        earlier = [
            record.unit
            for record in self._records.values()
            if record.format == FilesFormat.name and record.unit.name not in present
        ]
        everything = [*units, *earlier]
        shards = {unit.name: unit.files[0].name for unit in everything if unit.kind != "files"}
        for unit in everything:
            for file in unit.files:
                for folder in map(str, PurePosixPath(file.name).parents):
                    if folder in shards:
                        raise ValueError(
                            "`inputs` must not have results in one folder: those of "
                            f"{shards[folder]} and of {file.name} go to {folder}/"
                        )
        images = {file.name: file.uri for unit in units for file in unit.files}
        for unit in earlier:
            for file in unit.files:
                uri = images.get(file.name, file.uri)
                if uri != file.uri and sources.any_exists([file]):
                    raise ValueError(
                        f"`out` must have no results of another input: {file.name} is of "
                        f"{file.uri}, and would be of {uri}"
                    )

    def _check_shard(self, unit: Unit, shard: str, size: int | None) -> None:
        """Raises ``ValueError`` if the shard of a unit is of another program or another input."""
        record = self._records.get(unit.name)
        known = {record.shard, *record.replaces} if record is not None else set()
        if unit.name in self._damaged and is_result(self.store, shard):
            return
        if size is not None and shard not in known:
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
        inputs = [file for unit in present.values() for file in unit.files]
        names, uris = {file.name for file in inputs}, {file.uri for file in inputs}
        superseded = []
        for name, record in self._records.items():
            files = record.unit.files
            is_other = record.unit.kind == "files" and name not in present
            rest = [file for file in files if file.uri not in uris]
            is_here = any(file.name in names for file in files)
            if is_other and is_here and not sources.any_exists(rest):
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
        for name, own in parts.items():
            is_gone = any(record.unit.name == name for record in superseded)
            if is_gone or (name in present and self._is_sealed(name)):
                self.store.remove(own)

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


def _say(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr)
