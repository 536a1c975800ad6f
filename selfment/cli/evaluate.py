"""``selfment eval``: the scores of predictions against ground truth."""

from __future__ import annotations

import argparse
import sys

from .choices import PROTOCOLS
from .common import check_default

EXAMPLES = """\
selfment eval --pred saliency --gt masks --protocol paper --report scores.html
"""

_PICTURES = 200


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("--pred", required=True, metavar="DIR", help="folder of saliency maps or masks")
    add("--gt", required=True, metavar="DIR", help="folder of ground truth of the same names")
    add("--protocol", default="all", choices=PROTOCOLS, help="whose scores (%(default)s)")
    add("--metrics", nargs="+", metavar="NAME", help="only these of the protocol's scores")
    suffix = "of the predictions' names after the ground truth's: _saliency, _mask, '' (found out)"
    add("--suffix", metavar="S", help=suffix)
    add("--gt-suffix", default="", metavar="S", help="of the ground truths' names: _mask")
    add("--workers", type=int, default=1, metavar="N", help="processes (%(default)s)")
    add("--allow-missing", action="store_true", help="score what has both files")
    for name, what in (("json", "JSON"), ("csv", "CSV"), ("markdown", "Markdown")):
        add(f"--{name}", metavar="F", help=f"also write the scores as {what}")
    add("--latex", metavar="F", help="also write the scores as a LaTeX table")
    add("--report", metavar="F.html", help="also write a page with curves and pictures")
    add("--images", metavar="DIR", help="folder of the photographs, for the page")
    most = "put the pictures of so many images in the page (%(default)s)"
    add("--pictures", type=int, default=_PICTURES, metavar="N", help=most)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..evaluation.folders import evaluate
    from ..evaluation.html import write_html
    from ..evaluation.report import FORMATS
    from ..util.files import PAGES, output_file

    if arguments.images is not None and arguments.report is None:
        raise ValueError("`images` must come with a page to show them on, --report F.html")
    if arguments.report is None:
        check_default(arguments, "pictures", _PICTURES, "without a page, --report F.html")
    for name in (*FORMATS, "report"):  # before the scores are computed
        if getattr(arguments, name) is not None:
            output_file(name, getattr(arguments, name), PAGES if name == "report" else ())
    report = evaluate(
        arguments.pred,
        arguments.gt,
        protocol=arguments.protocol,
        metrics=arguments.metrics,
        workers=arguments.workers,
        allow_missing=arguments.allow_missing,
        suffix=arguments.suffix,
        gt_suffix=arguments.gt_suffix,
    )
    print(report.to_text(), end="")
    for name in FORMATS:
        path = getattr(arguments, name)
        if path is not None:
            report.save(path, name)
    if arguments.report is not None:
        page = write_html(
            report, arguments.report, images=arguments.images, pictures=arguments.pictures
        )
        if page.remark:
            print(page.remark, file=sys.stderr)
    for sentence in report.failed:
        print(f"selfment eval: {sentence}", file=sys.stderr)
    return 1 if report.failed else 0
