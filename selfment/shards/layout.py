"""The layout of a row's results: its contents, the fields of its record, and their types."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core import options as params
from .rows import RowResult

#: The fields of every record; a layout adds the numbers of its job.
COMMON = {
    "image": "string",
    "width": "int64",
    "height": "int64",
    "error": "string",
    "notes": "list<string>",
}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _text(value: object) -> str:
    """The text, with escapes for what UTF-8 cannot store: parts of broken file names."""
    return str(value).encode(errors="backslashreplace").decode()


#: The types of record fields, in Arrow's words, with the functions that make their values.
TYPES: Mapping[str, Callable[[Any], Any]] = {
    "bool": bool,
    "int64": int,
    "double": _finite,
    "string": _text,
    "list<double>": lambda values: [_finite(value) for value in values],
    "list<string>": lambda values: [_text(value) for value in values],
}


@dataclass(frozen=True)
class Layout:
    """The contents and the record fields that a job makes of each row."""

    command: str  #: that of `selfment` whose results these are
    #: the endings of members of a tar file, by field: {"mask": "png", "overlay": "overlay.jpg"}.
    #: The first is the main one. The last part of an ending says what kind of file it is.
    endings: Mapping[str, str]
    #: the types of further fields of the record: a name of :data:`TYPES`, by field
    numbers: Mapping[str, str]
    #: the name of each content's file, by field, in the output folder; called with the file's key,
    #: which begins with the folder of its unit, if it has one
    paths: Callable[[str], Mapping[str, str]]

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for endings, types and names that cannot be."""
        endings = [*self.endings.values(), "json"]
        params.require("endings", endings, "different endings", len({*endings}) == len(endings))
        for kind in self.numbers.values():
            params.choice("numbers", kind, tuple(TYPES))
        fields = [*COMMON, "key", *self.endings, *self.numbers]
        params.require("fields", fields, "different names", len({*fields}) == len(fields))

    def normal(self, result: RowResult) -> RowResult:
        """Returns a result with all fields in their order and types; None where one is missing.

        Numbers that are not finite become None. Raises ``ValueError`` for a field that the layout
        does not have, or for a row without an error that lacks a content.
        """
        types = {**COMMON, **self.numbers}
        if unknown := sorted(set(result.record) - set(types)):
            raise ValueError(f"`record` must have fields of its layout: got {unknown}")
        expected = set(self.endings) if result.record.get("error") is None else set()
        if set(result.files) != expected:
            raise ValueError(f"`files` must be {sorted(expected)}: got {sorted(result.files)}")
        values = {field: result.record.get(field) for field in types}
        record = {
            field: None if value is None else TYPES[types[field]](value)
            for field, value in values.items()
        }
        files = {field: result.files[field] for field in self.endings if field in expected}
        return RowResult(result.key, {**record, "notes": record["notes"] or []}, files)
