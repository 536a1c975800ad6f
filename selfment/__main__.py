"""The command ``selfment``, also as ``python -m selfment``, and under ``torchrun``.

Little is imported before an interrupt is handled.
"""

from __future__ import annotations

import os
import sys

from .util.interrupts import CODE, catch_interrupts, end_at_interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Runs the command line, and ends the process with its exit code."""
    code = CODE
    try:
        catch_interrupts()
        from .cli import main

        code = main()
    except KeyboardInterrupt:  # before there is a command, or after it
        print("selfment: interrupted", file=sys.stderr)
    end_at_interrupts(code)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # Threads of the process group that DistributedDataParallel leaves behind would abort the
        # process when the interpreter ends. All files are closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
