"""Keys of rows: each is unique in its shard, and can be the name of a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..images.search import unique_names
from .rows import Row

_LONGEST = 200  # bytes of a part, so that endings can follow: file systems allow 255


def image_keys(names: Sequence[str]) -> list[str]:
    """Returns a key for each of the unique names of image files: without suffix, if unique."""
    return unique_names([os.path.splitext(name)[0] for name in names], names)


def key_error(key: str) -> str | None:
    """Returns why a key cannot be the relative name of a file, as a sentence; None if it can."""
    rule = f"relative, without empty parts, '.', '..' and NUL, at most {_LONGEST} bytes a part"
    parts = key.split("/")
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        return f"its key must be {rule}: got {key!r}"
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return f"its key must be UTF-8: got {key!r}"
    if longest > _LONGEST:
        return f"its key must be {rule}: got a part of {longest:,} bytes in {key[:_LONGEST]!r}..."
    return None


class RowKeys:
    """The keys of a shard's rows, in their order."""

    def __init__(self, total: int | None = None) -> None:
        """``total``: the number of rows, if it is known."""
        self._total = total
        self._used: set[str] = set()
        self._rows = 0

    def start(self, key: str | None, name: str) -> Row:
        """Returns the next row, without data; a bad key is replaced, and is the row's error.

        ``key``: None if the shard has none for the row. ``name``: its image file.
        """
        if key is None:
            error: str | None = "it has no key"
        elif key in self._used:
            error = f"an earlier row of the shard has its key {key!r}"
        else:
            error = key_error(key)
        if error is not None or key is None:
            key = f"row-{self._rows:09d}"
            while key in self._used:
                key += "-"
        share = self._rows / self._total if self._total else None
        self._used.add(key)
        self._rows += 1
        shown = name.encode(errors="surrogateescape").decode(errors="replace")
        return Row(key, shown, error=error, share=share)
