"""Runs over tar files, tables and object stores: their options, and what runs them."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from typing import TYPE_CHECKING

from ..core.options import WINDOW
from ..util.files import printable
from .choices import OUTPUTS
from .common import check_default, labeler_of, set_threads

if TYPE_CHECKING:
    from ..jobs.cluster import RayOptions
    from ..models.segmenter import Segmenter
    from ..shards import ShardSummary

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".parquet", ".arrow")

_WITH_SHARDS = "with tar files, tables and URLs"
#: The options of `selfment label` that shards do not have, with their defaults.
_OF_FOLDERS = {
    **{"samples": False, "report": None, "grid": None, "images": None, "frames": True, "every": 1},
    **{"window": WINDOW, "overlap": None, "landmarks": None},
}


def add_shards(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe shards."""
    add = parser.add_argument_group("tar files, tables and URLs").add_argument
    to = "how results are stored (as the inputs are)"
    add("--to", choices=OUTPUTS, help=to)
    column = "where the images are: the column of a table, the ending in a tar file (the only one)"
    add("--column", metavar="NAME", help=column)
    add("--key", metavar="NAME", help="the column of a table that names the images")


def are_shards(arguments: argparse.Namespace) -> bool:
    """True if inputs or outputs are no folders of files on this machine."""
    options = (arguments.to, arguments.column, arguments.key)
    urls = any("://" in text for text in [*arguments.inputs, arguments.out])
    return (
        urls
        or any(option is not None for option in options)
        or any(map(_holds_shards, arguments.inputs))
    )


def _holds_shards(text: str) -> bool:
    """True for a shard, a glob of shards, and a folder that has shards and no images."""
    from ..images.suffixes import image_suffixes, is_taken

    if text.lower().endswith(_SUFFIXES):
        return True
    if not os.path.isdir(text):
        return any(file.lower().endswith(_SUFFIXES) for file in glob.iglob(text, recursive=True))
    shards = False
    for folder, _, names in os.walk(text):
        for name in names:
            if is_taken(os.path.join(folder, name), image_suffixes()):
                return False
            shards |= name.lower().endswith(_SUFFIXES)
    return shards


def label_shards(arguments: argparse.Namespace, ray: RayOptions | None) -> int:
    """Runs ``selfment label`` on shards; returns the exit code."""
    from ..core import native
    from ..shards import label_shards

    for name, default in _OF_FOLDERS.items():
        check_default(arguments, name, default, _WITH_SHARDS)
    set_threads(arguments.threads)
    native.cpu()  # a module that cannot be loaded is the run's error, not that of each image
    labeler = labeler_of(arguments)
    summary = label_shards(
        arguments.inputs,
        arguments.out,
        labeler,
        to=arguments.to,
        column=arguments.column,
        key=arguments.key,
        overlays=arguments.overlay,
        formats=arguments.format,
        refine=arguments.refine,
        fill_holes=arguments.fill_holes,
        largest_component=arguments.largest_component,
        ray=ray,
    )
    return _report(summary, "labelled")


def predict_shards(
    arguments: argparse.Namespace, segmenter: Segmenter, ray: RayOptions | None
) -> int:
    """Runs ``selfment predict`` on shards; returns the exit code."""
    from ..shards import predict_shards

    for name, default in {"frames": False, "every": 1}.items():
        check_default(arguments, name, default, _WITH_SHARDS)
    summary = predict_shards(
        arguments.inputs,
        arguments.out,
        segmenter,
        to=arguments.to,
        column=arguments.column,
        key=arguments.key,
        overlays=arguments.overlay,
        binary=arguments.binary,
        ray=ray,
    )
    return _report(summary, "segmented")


def _report(summary: ShardSummary, done: str) -> int:
    from ..util import distributed

    print(printable(summary.describe(done)), file=sys.stderr)
    return 1 if distributed.any_failed(summary.failed + summary.damaged) else 0
