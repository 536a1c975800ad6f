"""The command ``selfment``, also as ``python -m selfment``, and under ``torchrun``."""

import os
import sys
from typing import NoReturn

from .cli import main


def run() -> NoReturn:
    """Runs the command line, and ends the process with its exit code."""
    code = main()
    from .util.distributed import world  # after the command: it imports torch

    if world()[1] > 1:
        # Threads of the process group that DistributedDataParallel leaves behind would abort the
        # process when the interpreter ends. All files are closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
