"""The record of a unit in an output folder: which results it has, of what input and settings.

All but the results themselves lies in a hidden folder, which programs that search the output folder
for data pass over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ..util.lines import with_checksum, without_checksum
from .formats import Format
from .rows import SourceFile, Unit
from .store import Store

RECORDS = ".selfment/records"
PARTS = ".selfment/parts"
LOCK = ".selfment/lock"


@dataclass(frozen=True)
class UnitRecord:
    """Describes the state of a unit: it is begun, about to be sealed, or sealed."""

    unit: Unit  #: as it was then, without the keys
    command: str  #: :attr:`selfment.shards.layout.Layout.command`
    settings: str  #: :attr:`Format.digest`
    format: str  #: :attr:`Format.name`
    shard: str  #: the name of the sealed shard
    bytes: int | None = None  #: the size of the sealed shard; None before the first
    #: the size of the sealed shard that is about to replace it; None if the replacement is over
    next_bytes: int | None = None
    rows: int = 0
    failed: int = 0  #: rows with an error
    error: str | None = None  #: why the unit could not be read to its end
    #: :attr:`selfment.shards.rows.Row.start` of the rows that failed, by key; None if these cannot
    #: be read alone, or are too many
    starts: Mapping[str, int] | None = None
    #: names of earlier results, which are removed as soon as the unit is sealed
    replaces: tuple[str, ...] = ()

    def is_of(self, unit: Unit, form: Format) -> bool:
        """True if the unit had the same files then, and the settings and the format are equal."""
        return self.has_settings_of(form) and stamps(self.unit.files) == stamps(unit.files)

    def has_settings_of(self, form: Format) -> bool:
        """True if the settings and the format are equal."""
        return (self.settings, self.format) == (form.digest, form.name)

    def is_sealed(self, size: int | None) -> bool:
        """True if ``size`` is that of a sealed shard of this record."""
        return size is not None and size in (self.bytes, self.next_bytes)

    @property
    def is_complete(self) -> bool:
        """True if the unit is sealed, all of it was read, and no row failed."""
        is_over = self.bytes is not None and self.next_bytes is None
        return is_over and self.error is None and self.failed == 0


Stamp = tuple[str, int, int]


def stamp(file: SourceFile) -> Stamp:
    """The name, the size and the modification time of a file."""
    return file.name, file.bytes, file.mtime_ns


def stamps(files: Iterable[SourceFile]) -> list[Stamp]:
    """The stamp of each file."""
    return list(map(stamp, files))


def write_record(store: Store, record: UnitRecord) -> None:
    """Writes the record of a unit, in one step."""
    fields = asdict(record)
    del fields["unit"]["keys"]
    line = with_checksum(json.dumps(fields))
    store.write(f"{RECORDS}/{record.unit.name}.json", f"{line}\n".encode(), durable=True)


def read_record(store: Store, name: str) -> UnitRecord | None:
    """The record of a unit; None if there is none. Raises ``ValueError`` if it is damaged."""
    file = f"{RECORDS}/{name}.json"
    try:
        data = store.read(file)
    except FileNotFoundError:
        return None
    try:
        fields = json.loads(without_checksum(data.decode().rstrip("\n")) or "")
        unit = fields.pop("unit")
        files = tuple(SourceFile(**each) for each in unit.pop("files"))
        replaces = tuple(fields.pop("replaces"))
        return UnitRecord(unit=Unit(**unit, files=files), replaces=replaces, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {store.text_of(file)}: it is damaged") from error
