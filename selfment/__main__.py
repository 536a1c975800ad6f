"""The command ``selfment``, also as ``python -m selfment``; both also under ``torchrun``."""

import os
import sys
from typing import NoReturn

from .cli import main
from .util.distributed import world


def run() -> NoReturn:
    """Runs the command line, and ends the process with its exit code."""
    code = main()
    if world()[1] > 1:
        # DistributedDataParallel leaves threads of the process group behind, which abort the
        # process when they meet the end of the interpreter. All files are closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
