"""One line about a result: numbers by their values, arrays by their types and shapes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


class Summarized:
    """A dataclass of arrays whose ``repr`` is one line and prints no array."""

    def __repr__(self) -> str:
        names = [item.name for item in fields(self) if item.repr]  # type: ignore[arg-type]
        values = (f"{name}={_summary(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({', '.join(values)})"


def _summary(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {len(value)}"
    if not hasattr(value, "dtype"):
        return repr(value)
    if not value.shape:
        number = value.item()
        return f"{number:.4g}" if isinstance(number, float) else repr(number)
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
