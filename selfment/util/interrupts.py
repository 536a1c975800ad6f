"""Ctrl-C: how the process of a command ends, whatever it is doing."""

from __future__ import annotations

import os
import signal
from types import FrameType

CODE = 130  #: the exit code after an interrupt


def catch_interrupts() -> None:
    """Makes :func:`interrupt` the handler of SIGINT, unless a shell's background job ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raises ``KeyboardInterrupt``, as the handler of a signal.

    While modules are being imported, the process is ended at once instead: modules that are loaded
    in part fail, or crash, in whatever uses them afterwards.
    """
    del number
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            os.write(2, b"selfment: interrupted\n")
            os._exit(CODE)
        frame = frame.f_back
    raise KeyboardInterrupt


def end_at_interrupts(code: int) -> None:
    """Makes a later SIGINT end the process at once, with the code that it would end with anyway."""
    if signal.getsignal(signal.SIGINT) is interrupt:
        signal.signal(signal.SIGINT, lambda *_: os._exit(code))
