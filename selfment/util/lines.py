"""Lines of JSON, each with its checksum: the records of a run."""

from __future__ import annotations

import re
import zlib
from typing import Any

Record = dict[str, Any]

_SUM = re.compile(r', "crc32": "([0-9a-f]{8})"}')
_LENGTH = len(', "crc32": "01234567"}')


def sealed(line: str) -> str:
    """A JSON object of one line, with the CRC-32 of this line as its last key, ``crc32``."""
    return f'{line[:-1]}, "crc32": "{zlib.crc32(line.encode()):08x}"}}'


def unsealed(line: str) -> str | None:
    """What :func:`sealed` was given; None for a line that it has not made, or that has changed."""
    found = _SUM.fullmatch(line, max(0, len(line) - _LENGTH))
    if found is None:
        return None
    content = f"{line[:-_LENGTH]}}}"
    whole = zlib.crc32(content.encode()) == int(found[1], 16)
    return content if whole else None
