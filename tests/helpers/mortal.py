"""`selfment` commands that are killed, or wait, at the n-th call of a function of the package."""

from __future__ import annotations

import sys
from pathlib import Path

# Runs `python -m selfment`, and dies or waits at the n-th call of a function, in the process of the
# given rank or in any, unless torchrun has restarted it.
_SCRIPT = """
import functools, importlib, os, runpy, signal, sys, time

where, nth, rank, what, before, *sys.argv[1:] = sys.argv[1:]
exec(before)
module, _, path = where.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
original = getattr(owner, name)
calls = 0
first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
mine = first and rank in ("any", os.environ.get("RANK", "0"))

@functools.wraps(original)
def counted(*arguments, **options):
    global calls
    calls += 1
    if mine and what == "dies" and calls == int(nth):
        os.kill(os.getpid(), signal.SIGKILL)
    if mine and what == "waits" and calls >= int(nth):
        time.sleep(10**6)
    return original(*arguments, **options)

setattr(owner, name, counted)
runpy.run_module("selfment", run_name="__main__", alter_sys=True)
"""


def command(
    folder: Path,
    where: str,
    nth: int,
    *arguments: object,
    rank: str = "any",
    what: str = "dies",
    before: str = "",
) -> list[str]:
    """Returns the words of a command, without the interpreter.

    Args:
        folder: The folder to which the script is written.
        where: The function, as "module:Class.method".
        nth: The number of the call, from 1.
        arguments: Arguments of ``selfment``.
        rank: The rank of the process, or "any".
        what: "dies", by SIGKILL; or "waits", until a signal, in this call and all later ones.
        before: Code that is run first.
    """
    script = folder / "mortal.py"
    script.write_text(_SCRIPT)
    return [str(script), where, str(nth), rank, what, before, *map(str, arguments)]


def alone(*arguments: object) -> list[str]:
    """Returns the words of an undisturbed command, with the interpreter."""
    return [sys.executable, "-m", "selfment", *map(str, arguments)]
