"""``selfment data``: which data sets are there, and whole."""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """\
selfment data check DATASETS
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say which data sets are there and whole")
    check.add_argument("root", metavar="ROOT", help="the folder of all data sets")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..evaluation.datasets import check, describe

    found = check(arguments.root)
    print("\n".join(describe(found, arguments.root)))
    if not any(one.there for one in found):
        print(f"no data set lies in {arguments.root}", file=sys.stderr)
        return 1
    return 1 if any(one.there and not one.whole for one in found) else 0
