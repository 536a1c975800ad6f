"""``selfment report``: a page to look through labels, to accept and to reject."""

from __future__ import annotations

import argparse
import sys

from ..util.files import printable

EXAMPLES = """\
selfment report labels
selfment report labels --images moved/photos --out labels.html
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the output folder of label")
    add("--out", metavar="F.html", help="the page (FOLDER/report.html)")
    where = "folder of the photographs, if they have moved since they were labelled"
    add("--images", metavar="DIR", help=where)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..jobs.report import report_labels

    summary = report_labels(arguments.folder, arguments.out, images=arguments.images)
    print(printable(str(summary)), file=sys.stderr)
    return 0
