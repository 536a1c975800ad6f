"""``selfment compare``: several methods, scored in one table."""

from __future__ import annotations

import argparse
import sys

from ..core import options as params
from .choices import METHODS
from .common import (
    add_images,
    add_voters,
    check_default,
    images_of,
    make_method,
    method_options,
    model_options,
    names_of,
)

EXAMPLES = """\
selfment compare photos/ --gt masks/ --out compared --methods selfment,tokencut,maskcut
selfment compare photos/ --tau 0.1,0.2,0.3,auto --out thresholds
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_images(parser, "label", several_taus=True)
    add_voters(parser)
    add = parser.add_argument
    add("--gt", metavar="DIR", help="folder of ground truth of the same names")
    add("--gt-suffix", default="", metavar="S", help="of the ground truths' names: _mask")
    add("--out", required=True, metavar="DIR", help="folder for the masks and the table")
    whose = f"how to label: {','.join(METHODS)} (all that the backbone allows)"
    add("--methods", type=names_of(*METHODS), metavar="NAMES", help=whose)
    add("--allow-missing", action="store_true", help="score what has both files")
    add("--workers", type=int, default=1, metavar="N", help="processes that score (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    taus = arguments.tau
    if len(taus) > 1:
        return _compare_taus(arguments, taus)
    arguments.tau = taus[0]
    return _compare_methods(arguments)


def _compare_methods(arguments: argparse.Namespace) -> int:
    from ..experiments.compare import compare
    from ..methods import METHODS as KINDS

    if arguments.gt is None:
        raise ValueError("give the ground truth, --gt DIR, or several thresholds, --tau T,T,...")
    images = images_of(arguments)
    options = method_options(arguments)
    kinds = [KINDS[name] for name in arguments.methods or METHODS]
    for name in options:
        if not any(kind.known({name: None}) for kind in kinds):
            make_method(kinds[0], {name: options[name]})  # which says that it has no such option
    comparison = compare(
        images,
        arguments.gt,
        arguments.out,
        methods=[kind(**kind.known(options)) for kind in kinds],
        leave_out=arguments.methods is None,
        gt_suffix=arguments.gt_suffix,
        allow_missing=arguments.allow_missing,
        workers=arguments.workers,
        **model_options(arguments),
    )
    print(comparison.to_text(), end="")
    print(f"see {arguments.out}/comparison.md, .csv, .json and .tex", file=sys.stderr)
    return 1 if images.unlisted else 0


def _compare_taus(arguments: argparse.Namespace, taus: list[float | str]) -> int:
    from ..experiments.taus import PAGE, compare_taus
    from ..methods import Selfment

    when = f"with several thresholds, --tau {','.join(map(str, taus))}"
    unused = {"gt": None, "methods": None, "gt_suffix": "", "allow_missing": False, "workers": 1}
    for name, default in unused.items():
        check_default(arguments, name, default, when)
    images = images_of(arguments)
    arguments.tau = params.TAU
    method = make_method(Selfment, method_options(arguments))
    assert isinstance(method, Selfment)
    comparison = compare_taus(
        images, arguments.out, taus, method=method, **model_options(arguments)
    )
    print(comparison.table.to_text(), end="")
    print(f"see {arguments.out}/{PAGE}", file=sys.stderr)
    return 1 if comparison.failed or images.unlisted else 0
