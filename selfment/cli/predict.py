"""``selfment predict``: the saliency of images and videos by a trained head."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    add_engine,
    add_every,
    add_frames,
    add_head,
    add_run,
    ray_options,
    run_ranks,
    set_threads,
)
from .shards import add_shards, are_shards, predict_shards

if TYPE_CHECKING:
    from ..models.segmenter import Segmenter

EXAMPLES = """\
selfment predict photos/ clip.mp4 --head run/head --out saliency --overlay
selfment predict photos/ --head run/head --out masks --binary 0.5 --keep-aspect
selfment predict s3://bucket/photos.parquet --head run/head --out s3://bucket/saliency
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add = parser.add_argument
    inputs = "images, videos, tar files, tables, folders (searched recursively), globs"
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    add_head(parser, side=1536)
    add("--out", required=True, metavar="DIR", help="folder for saliency and records, or its URL")
    group = parser.add_argument_group("files")
    files = group.add_argument
    files("--overlay", action="store_true", help="also draw the mask above T (0.5) on the image")
    mask = "also write a mask where the saliency exceeds T, in [0, 1)"
    files("--binary", type=float, metavar="T", help=mask)
    add_frames(group, "saliency and masks", default=False)
    add_every(parser, "segment")
    add_shards(parser)
    add_run(parser)
    add("--compile", action="store_true", help="compile backbone and head: a slow start")
    add_engine(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..jobs.predict import PredictionSummary, find_inputs, predict_images
    from ..jobs.ranks import Ranks
    from ..util import distributed

    engine = ray_options(arguments)
    set_threads(arguments.threads)
    if are_shards(arguments):
        return predict_shards(arguments, _segmenter(arguments), engine)
    inputs = find_inputs(arguments.inputs, out=arguments.out)
    segmenter = _segmenter(arguments)
    job = partial(
        predict_images,
        inputs,
        arguments.out,
        segmenter,
        overlays=arguments.overlay,
        binary=arguments.binary,
        frames=arguments.frames,
        every=arguments.every,
    )
    records = Path(arguments.out, "predictions.jsonl")
    summaries = run_ranks(Ranks(job, inputs, records, "saliency", arguments.batch), engine)
    summary = sum(summaries, PredictionSummary())
    counts = f"{summary.predicted} segmented, {summary.skipped} already done"
    where = f"{arguments.out}/predictions.jsonl"
    print(f"{counts}, {summary.failed} failed; see {where}", file=sys.stderr)
    return 1 if distributed.any_failed(summary.failed + len(inputs.unlisted)) else 0


def _segmenter(arguments: argparse.Namespace) -> Segmenter:
    """Returns the segmenter that the arguments describe."""
    from ..models.segmenter import Segmenter

    return Segmenter.from_pretrained(
        arguments.head,
        backbone=arguments.backbone,
        size=arguments.size,
        features=arguments.features,
        weights=arguments.weights,
        device=arguments.device,
        dtype=arguments.dtype,
        positions=arguments.positions,
        keep_aspect=arguments.keep_aspect,
        batch_size=arguments.batch,
        compile=arguments.compile,
    )
