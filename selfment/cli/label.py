"""``selfment label``: a mask for each image and each frame of a video."""

from __future__ import annotations

import argparse
import sys

from ..core.windows import WINDOW, WindowOptions
from ..images.refine import METHODS as REFINEMENTS
from ..jobs.exports import FORMATS
from ..jobs.label import label_images
from ..jobs.predict import find_inputs
from ..util import distributed
from .common import (
    add_frames,
    add_images,
    add_method,
    add_voters,
    images_of,
    labeler_of,
    names_of,
    terminable,
)

HELP = "write a mask for each image and each frame of a video"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_images(parser, "label", several="; with --objects statistics", kinds="images and videos")
    add_method(parser)
    add_voters(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder for masks and records")
    add("--overlay", action="store_true", help="also draw image, Fiedler vector and masks")
    objects = "label up to N objects of each image; PNG files hold their numbers, not for eval"
    add("--objects", type=int, dest="max_objects", metavar="N", help=objects)
    kinds = f"what to write, with commas: {','.join(FORMATS)} (png)"
    add("--format", type=names_of(*FORMATS), default=["png"], metavar="NAMES", help=kinds)
    window = "frames of a video that are labelled together (%(default)s)"
    add("--window", type=int, default=WINDOW, metavar="N", help=window)
    shared = "frames that a window shares with the one before (a quarter of --window)"
    add("--overlap", type=int, metavar="N", help=shared)
    add_frames(parser, "masks", default=True)
    add("--refine", choices=REFINEMENTS, help="let masks follow the edges of their image")
    add("--fill-holes", action="store_true", help="fill the holes of masks")
    add("--largest-component", action="store_true", help="keep the largest component of a mask")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    windows = WindowOptions(arguments.window, arguments.overlap)
    images = images_of(arguments, find_inputs)
    labeler = labeler_of(arguments)
    with terminable():
        summary = label_images(
            images,
            arguments.out,
            labeler,
            overlays=arguments.overlay,
            formats=arguments.format,
            refine=arguments.refine,
            fill_holes=arguments.fill_holes,
            largest_component=arguments.largest_component,
            windows=windows,
            frames=arguments.frames,
            shard=distributed.world(),
        )
    counts = f"{summary.labelled} labelled, {summary.skipped} already done, {summary.failed} failed"
    print(f"{counts}; see {arguments.out}/labels.jsonl", file=sys.stderr)
    return 1 if distributed.any_failed(summary.failed + len(images.unlisted)) else 0
