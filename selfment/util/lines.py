"""Records: lines of JSON, each with its own checksum."""

from __future__ import annotations

import re
import zlib
from typing import Any

Record = dict[str, Any]

_SUM = re.compile(r', "crc32": "([0-9a-f]{8})"}')
_LENGTH = len(', "crc32": "01234567"}')


def with_checksum(line: str) -> str:
    """A JSON object in one line, with the CRC-32 of this line added as its last key, ``crc32``."""
    return f'{line[:-1]}, "crc32": "{zlib.crc32(line.encode()):08x}"}}'


def without_checksum(line: str) -> str | None:
    """The line that :func:`with_checksum` was called with; None if its result has been changed."""
    checksum = _SUM.fullmatch(line, max(0, len(line) - _LENGTH))
    if checksum is None:
        return None
    content = f"{line[:-_LENGTH]}}}"
    return content if zlib.crc32(content.encode()) == int(checksum[1], 16) else None
