"""What the race detector of tests/emulation has found, with files and lines."""

from __future__ import annotations

import shutil
from pathlib import Path

from helpers import processes


def place(offset: str) -> str:
    """FILE:LINE of MODULE+OFFSET; where addr2line is not there, the offset."""
    module, plus, address = offset.rpartition("+")
    if not plus or shutil.which("addr2line") is None:
        return offset
    done = processes.run(["addr2line", "-i", "-e", module, address])
    # Innermost first: what is inlined from the emulation is not where the kernel is.
    lines = [line.split(" ")[0] for line in done.stdout.splitlines()]
    own = [line for line in lines if "/tests/emulation/emulation" not in line and "?" not in line]
    file, _, line = (own or lines or [offset])[0].rpartition(":")
    return f"{Path(file).name}:{line}"


def reports(log: Path) -> list[str]:
    """The races of a log, each once: "shared write-after-read at FILE:LINE after FILE:LINE"."""
    if not log.exists():
        return []
    found = {}
    for line in log.read_text().splitlines():
        _, memory, what, now, before, _, _ = line.split("\t")
        after = "" if before == "-" else f" after {place(before)}"
        found[f"{memory} {what} at {place(now)}{after}"] = None
    return list(found)
