"""Results of rows as jobs make them, small; and stores that are killed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from selfment.shards.formats import Format, output_format
from selfment.shards.layout import Layout
from selfment.shards.rows import RowResult, SourceFile, Unit


def paths(key: str) -> dict[str, str]:
    """Returns the file names of a row's contents."""
    folders = {"overlay": f"overlays/{key}.jpg", "annotations": f"annotations/{key}.json"}
    return {"mask": f"{key}.png", **folders}


LAYOUT = Layout(
    command="label",
    endings={"mask": "png", "overlay": "overlay.jpg", "annotations": "annotations.json"},
    numbers={
        "confidence": "double",
        "ipo_iters": "int64",
        "rejected": "bool",
        "eigenvalues": "list<double>",
    },
    paths=paths,
)
SETTINGS = {"size": 160, "method": {"name": "selfment", "tau": 0.2}}
ALL = ("tar", "parquet", "files")


def form(to: str, **settings: object) -> Format:
    """Returns a format with the layout of these results."""
    return output_format(to, LAYOUT, {**SETTINGS, **settings})


def unit(name: str = "set/00000", kind: str = "tar", mtime_ns: int = 5) -> Unit:
    """Returns a unit with one file."""
    file = SourceFile(f"/data/{name}.{kind}", f"{name}.{kind}", 10240, mtime_ns)
    return Unit(name, kind, (file,))


def mask(number: int) -> np.ndarray[Any, Any]:
    """Returns the mask of a row, (6, 8) uint8."""
    pixels = np.zeros((6, 8), np.uint8)
    pixels.flat[: number % 48] = 255
    return pixels


@cache
def _encoded(number: int, kind: str) -> bytes:
    pixels = mask(number) if kind == "PNG" else np.stack([mask(number)] * 3, axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def good(key: str, number: int = 0, **record: object) -> RowResult:
    """Returns the result of a row; ``number`` changes its mask and its numbers."""
    fields = {
        "image": f"{key}.jpg",
        "width": 8,
        "height": 6,
        "error": None,
        "notes": ["Übergröße"] if number % 3 == 0 else [],
        "confidence": number / 7,
        "ipo_iters": number,
        "rejected": number % 2 == 1,
        "eigenvalues": [number / 3, 1.0],
    }
    files = {
        "mask": _encoded(number, "PNG"),
        "overlay": _encoded(number, "JPEG"),
        "annotations": json.dumps({"width": 8, "annotations": [number]}).encode(),
    }
    return RowResult(key, {**fields, **record}, files)


def bad(key: str, error: str = "cannot label it: it is no image") -> RowResult:
    """Returns the result of a row that failed."""
    return RowResult(key, {"image": f"{key}.jpg", "error": error}, {})


def rows(count: int, failed: Sequence[int] = ()) -> list[RowResult]:
    """Returns results with the keys ``00000`` and so on; those with the numbers ``failed`` fail."""
    return [
        bad(f"{number:05d}") if number in failed else good(f"{number:05d}", number)
        for number in range(count)
    ]


OPERATIONS = ("list", "open", "read", "remove", "stat", "upload", "write")


class Killed(BaseException):
    """Stands for the end of a process."""


class MortalStore:
    """A store that raises :class:`Killed` at the n-th operation and at all later ones."""

    def __init__(self, store: Any, nth: int = 10**9) -> None:
        self._store = store
        self._left = nth
        self.operations: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return self._counted(name, value) if name in OPERATIONS else value

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if name == "remove" and len(arguments[0]) > 1:  # may be killed between two files
                for each in arguments[0]:
                    counted([each])
                return None
            self._left -= 1
            if self._left < 0:
                raise Killed
            self.operations.append(name)
            return method(*arguments, **options)

        return counted
