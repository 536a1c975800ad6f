"""The peak of the resident memory while something runs."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def peak_mib(run: Callable[[], T]) -> tuple[T, float | None]:
    """What ``run`` returns, and by how many MiB memory grew at its peak; None but on Linux."""
    gc.collect()
    try:
        # What was freed but kept for later would hide what is taken again.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _resident("VmRSS")
    except (AttributeError, OSError):
        return run(), None
    result = run()
    return result, (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])
