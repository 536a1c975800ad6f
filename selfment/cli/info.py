"""``selfment info``: versions, instruction set and CUDA state."""

from __future__ import annotations

import argparse

EXAMPLES = """\
selfment info
"""


def add_options(_: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(_: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..core import native

    for name, value in native.info().items():
        print(f"{name:<16} {value}")
    return 0
