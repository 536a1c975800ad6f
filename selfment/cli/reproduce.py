"""``selfment reproduce``: from a recipe to a table."""

from __future__ import annotations

import argparse
import sys

from .common import check_default, set_threads

EXAMPLES = """\
selfment reproduce cod --data DATASETS --out cod
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a recipe's name, or a .toml file")
    add("--list", action="store_true", help="list the recipes")
    data = "the folder of all data sets, or one with images/ and masks/"
    add("--data", metavar="ROOT", help=data)
    add("--out", metavar="DIR", help="folder for the head, predictions and results")
    most = "take so many images of each data set, for a quick check"
    add("--limit", type=int, metavar="N", help=most)
    add("--weights", metavar="PATH", help="a checkpoint of the ViT, or a hub folder")
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    add("--device", help="torch device of the backbone (CUDA where there is one)")
    add("--threads", type=int, metavar="N", help="CPU threads (torch's default)")
    workers = "processes that evaluate (%(default)s)"
    add("--workers", type=int, default=1, metavar="N", help=workers)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..experiments.recipes import find_recipe, packaged
    from ..experiments.reproduce import reproduce

    if arguments.list:
        for name in ("recipe", "data", "out"):
            check_default(arguments, name, None, "with --list")
        for recipe in packaged():
            print(f"{recipe.name:<16} {recipe.title}")
        return 0
    if None in (arguments.recipe, arguments.data, arguments.out):
        raise ValueError("give RECIPE, --data ROOT and --out DIR, or --list")
    set_threads(arguments.threads)
    found = reproduce(
        find_recipe(arguments.recipe),
        arguments.data,
        arguments.out,
        limit=arguments.limit,
        weights=arguments.weights,
        device=arguments.device,
        batch_size=arguments.batch,
        workers=arguments.workers,
    )
    print(found.table, end="")
    print(f"see {arguments.out}/results.md and results.json", file=sys.stderr)
    return 1 if found.unlabelled else 0
