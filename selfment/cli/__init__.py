"""The command line: a file for each command, which calls one function of the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..backbones import WeightsError
from . import compare, data, evaluate, export, info, label, predict, reproduce, train

COMMANDS: dict[str, ModuleType] = {
    "label": label,
    "train": train,
    "predict": predict,
    "export": export,
    "compare": compare,
    "eval": evaluate,
    "data": data,
    "reproduce": reproduce,
    "info": info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1, 2 (usage), 130 (Ctrl-C or SIGTERM).

    1: images failed, folders could not be listed, or a data set that is there is not whole. 141,
    without a word: what reads the output has ended, as ``head`` does.
    """
    arguments = parser().parse_args(argv)
    try:
        code: int = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return 141
    except (ValueError, WeightsError, OSError, ImportError) as error:
        print(f"selfment {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "" if arguments.command == "eval" else "; what was done is kept"
        print(f"selfment {arguments.command}: interrupted{kept}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser; ``command`` is the name of what is to be run."""
    top = _Parser(prog="selfment", description="Segmentation without labels.")
    top.add_argument("--version", action="version", version=f"selfment {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_options(commands.add_parser(name, help=command.HELP))
    return top


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _discard_output() -> None:
    """Lets what is still to be written go nowhere, so that it is not complained about at exit."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
