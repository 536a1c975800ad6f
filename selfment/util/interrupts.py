"""Ctrl-C and SIGTERM: how the process of a command ends, whatever it is doing."""

from __future__ import annotations

import os
import signal
from types import FrameType

CODE = 130  #: the exit code after an interrupt

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def catch_interrupts() -> None:
    """Makes :func:`interrupt` the handler of SIGINT, and of SIGTERM, as schedulers send it.

    A signal that is ignored, as SIGINT is by a shell's background job, stays so.
    """
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, interrupt)


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
    """Makes a later signal end the process at once, with the code that it would end with anyway."""
    for number in _USUAL:
        if signal.getsignal(number) is interrupt:
            signal.signal(number, lambda *_: os._exit(code))
