"""The command line: a file for each command, which calls one function of the package."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Container, Sequence
from importlib import import_module
from textwrap import indent
from typing import Any, NoReturn

from .. import __version__
from ..util.files import reason
from ..util.interrupts import CODE

#: The commands: their modules here, and what they do. A module is imported when it is needed.
COMMANDS = {
    "label": ("label", "write a mask for each image and each frame of a video"),
    "report": ("report", "write a page to look through labels"),
    "train": ("train", "train a segmentation head on pseudo-labels"),
    "predict": ("predict", "write the saliency of images and videos"),
    "export": ("export", "write a head and its backbone as one file that runs without selfment"),
    "compare": ("compare", "label by several methods, and score them"),
    "eval": ("evaluate", "score predictions against ground truth"),
    "data": ("data", "say which data sets are there"),
    "reproduce": ("reproduce", "train and score as a recipe says"),
    "info": ("info", "print versions, instruction set and CUDA state"),
}


#: Arguments of the package's functions that have another name on the command line.
_OPTIONS = {
    "max_objects": "objects",
    "batch_size": "batch",
    "formats": "format",
    "overlays": "overlay",
    "path": "out",
}

#: Commands that continue where they were interrupted.
_RESUMABLE = ("label", "train", "predict", "compare", "reproduce")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1, 2 (usage), 130 (Ctrl-C, SIGTERM).

    1: images failed, folders could not be listed, or a data set that is there is not whole. 141,
    without a word: what reads the output has ended, as ``head`` does.
    """
    words = sys.argv[1:] if argv is None else argv
    top = parser(words)
    arguments, unknown = top.parse_known_args(words)
    if unknown:
        top.prog = f"{top.prog} {arguments.command}"  # whose help is to be read
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code: int = _module(arguments.command).run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return 141
    except _expected_errors() as error:
        sentence = reason(error) if isinstance(error, OSError) else _with_options(str(error))
        print(f"selfment {arguments.command}: {sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; what was done is kept" if arguments.command in _RESUMABLE else ""
        print(f"selfment {arguments.command}: interrupted{kept}", file=sys.stderr)
        return CODE


def parser(words: Container[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """Returns the parser; ``command`` is the name of what is to be run.

    Only the commands among ``words`` have their options, so that only their modules are imported.
    """
    top = _Parser(prog="selfment", description="Segmentation without labels.")
    top.add_argument("--version", action="version", version=f"selfment {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, what) in COMMANDS.items():
        command = commands.add_parser(
            name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in words:
            module = _module(name)
            module.add_options(command)
            command.description = f"{what[0].upper()}{what[1:]}."
            command.epilog = "examples:\n" + indent(module.EXAMPLES, "  ")
    return top


def _module(command: str) -> Any:
    return import_module(f".{COMMANDS[command][0]}", __name__)


def _expected_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that are one sentence; called only after a command has failed."""
    from ..backbones import WeightsError

    return ValueError, OSError, ImportError, WeightsError


def _with_options(sentence: str) -> str:
    """Names the argument that a sentence begins with as the option that the user has typed."""
    name = re.match("`([a-z_]+)`", sentence)
    if name is None:
        return sentence
    return f"`{_OPTIONS.get(name[1], name[1])}`{sentence[name.end() :]}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _discard_output() -> None:
    """Lets what is still to be written go nowhere, so that it is not complained about at exit."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
