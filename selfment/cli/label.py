"""``selfment label``: a mask for each image and each frame of a video."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ..core.options import WINDOW, LandmarkOptions, WindowOptions, require
from ..util.files import printable
from .choices import FORMATS, REFINEMENTS
from .common import (
    add_engine,
    add_every,
    add_frames,
    add_images,
    add_method,
    add_voters,
    images_of,
    labeler_of,
    names_of,
    ray_options,
    run_ranks,
)
from .features import add_features, feature_files, features_of
from .shards import add_shards, are_shards, label_shards

EXAMPLES = """\
selfment label photos/ --out labels --backbone vit_small_patch16_dinov3.lvd1689m --overlay
selfment label photos/ --out labels --report labels.html
selfment label clip.mp4 --out labels --window 16 --overlay
selfment label film.mp4 --out labels --landmarks 10000
selfment label photos/ --out objects --objects 5 --format png,coco --refine guided
selfment label features/ --out labels --grid 48x48 --images photos/
selfment label "shards/{0000..0123}.tar" --out s3://bucket/labels
selfment label photos/ --out labels --engine ray --address auto --workers 64 --gpus 1
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    out = "folder for masks and records, or its URL"
    parser.add_argument("--out", required=True, metavar="DIR", help=out)
    kinds = "images, videos, tar files, tables"
    add_images(parser, "label", several="; with --objects statistics", kinds=kinds)
    method = parser.add_argument_group("method")
    add_method(method)
    add_voters(method)
    objects = "label up to N objects of each image; PNG files hold their numbers, not for eval"
    method.add_argument("--objects", type=int, dest="max_objects", metavar="N", help=objects)
    add_features(parser)
    add_shards(parser)
    video = parser.add_argument_group("video")
    window = "frames that are labelled together (%(default)s)"
    video.add_argument("--window", type=int, default=WINDOW, metavar="N", help=window)
    shared = "frames that a window shares with the one before (a quarter of --window)"
    video.add_argument("--overlap", type=int, metavar="N", help=shared)
    one = "one cut through all frames, from M patches, in the place of windows (10000 is usual)"
    video.add_argument("--landmarks", type=int, metavar="M", help=one)
    drawn = "which patches --landmarks draws (%(default)s)"
    video.add_argument("--landmark-seed", type=int, default=0, metavar="N", help=drawn)
    add_every(video, "label")
    add_frames(video, "masks", default=True)
    add = parser.add_argument_group("files").add_argument
    kinds = f"what to write, with commas: {','.join(FORMATS)} (png)"
    add("--format", type=names_of(*FORMATS), default=["png"], metavar="NAMES", help=kinds)
    add("--overlay", action="store_true", help="also draw image, Fiedler vector and masks")
    add("--refine", choices=REFINEMENTS, help="let masks follow the edges of their image")
    add("--fill-holes", action="store_true", help="fill the holes of masks")
    add("--largest-component", action="store_true", help="keep the largest component of a mask")
    page = "also write a page to look through the labels, and keep Fiedler vectors for it"
    add("--report", metavar="F.html", help=page)
    add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..jobs.label import LabelSummary, label_images
    from ..jobs.label_job import LabelJob
    from ..jobs.predict import find_inputs
    from ..jobs.ranks import Ranks
    from ..util import distributed

    engine = ray_options(arguments)
    if are_shards(arguments):
        return label_shards(arguments, engine)
    cuts = _video_cuts(arguments)
    files = feature_files(arguments)
    images = images_of(arguments, find_inputs) if files is None else features_of(arguments)
    labeler = labeler_of(arguments, files)
    job = partial(
        label_images,
        images,
        arguments.out,
        labeler,
        overlays=arguments.overlay,
        formats=arguments.format,
        refine=arguments.refine,
        fill_holes=arguments.fill_holes,
        largest_component=arguments.largest_component,
        report=arguments.report,
        video_cuts=cuts,
        frames=arguments.frames,
        every=arguments.every,
    )
    records = Path(arguments.out, "labels.jsonl")
    summaries = run_ranks(Ranks(job, images, records, LabelJob.key, arguments.batch), engine)
    summary = sum(summaries, LabelSummary())
    counts = f"{summary.labelled} labelled, {summary.skipped} already done, {summary.failed} failed"
    print(f"{counts}; see {arguments.out}/labels.jsonl", file=sys.stderr)
    if summary.report is not None:
        print(printable(str(summary.report)), file=sys.stderr)
    return 1 if distributed.any_failed(summary.failed + len(images.unlisted)) else 0


def _video_cuts(arguments: argparse.Namespace) -> WindowOptions | LandmarkOptions:
    """Returns how the frames of videos are cut together; raises ``ValueError``."""
    landmarks, seed = arguments.landmarks, arguments.landmark_seed
    windows = WindowOptions(arguments.window, arguments.overlap)
    if landmarks is None:
        require("landmark_seed", seed, "left alone without `landmarks`", seed == 0)
        return windows
    for name, default in (("window", WINDOW), ("overlap", None)):
        value = getattr(arguments, name)
        rule = "left alone with `landmarks`, which cut all frames together"
        require(name, value, rule, value == default)
    return LandmarkOptions(landmarks, seed)
