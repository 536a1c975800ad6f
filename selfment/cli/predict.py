"""``selfment predict``: the saliency of images and videos by a trained head."""

from __future__ import annotations

import argparse
import sys

from ..backbones import DTYPES, FEATURES, POSITIONS
from ..util import distributed
from .common import BACKBONES, add_frames, set_threads, terminable

HELP = "write the saliency of images and videos"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    add = parser.add_argument
    inputs = "images and videos, folders (searched recursively), globs"
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    head = "a trained head: a file, a folder, or owner/repository on the Hugging Face hub"
    add("--head", required=True, metavar="CKPT", help=head)
    add("--out", required=True, metavar="DIR", help="folder for saliency and records")
    name = f"{BACKBONES} (the one that the head was trained on)"
    add("--backbone", metavar="NAME", help=name)
    features = "what a ViT gives (what the head was trained on)"
    add("--features", choices=FEATURES, help=features)
    add("--weights", metavar="PATH", help="a checkpoint of the ViT, or a hub folder")
    whose = "whose way to resample position embeddings (that of the head's training)"
    add("--positions", choices=POSITIONS, help=whose)
    side = "side the image is resized to (1536, or the nearest multiple of the patch size)"
    add("--size", type=int, metavar="S", help=side)
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    aspect = "make the longer side S instead, and leave the aspect ratio as it is"
    add("--keep-aspect", action="store_true", help=aspect)
    add("--overlay", action="store_true", help="also draw the saliency on the image")
    mask = "also write a mask where the saliency exceeds T, in [0, 1)"
    add("--binary", type=float, metavar="T", help=mask)
    add_frames(parser, "saliency and masks", default=False)
    add("--device", help="torch device of backbone and head (CUDA where there is one)")
    add("--dtype", choices=DTYPES, help="autocast the ViT to this (float32)")
    add("--compile", action="store_true", help="compile backbone and head: a slow start")
    add("--threads", type=int, metavar="N", help="CPU threads (torch's default)")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..jobs.predict import find_inputs, predict_images
    from ..models.segmenter import Segmenter

    set_threads(arguments.threads)
    inputs = find_inputs(arguments.inputs, out=arguments.out)
    segmenter = Segmenter.from_pretrained(
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
    if segmenter.note:
        print(segmenter.note, file=sys.stderr)
    with terminable():
        summary = predict_images(
            inputs,
            arguments.out,
            segmenter,
            overlays=arguments.overlay,
            binary=arguments.binary,
            frames=arguments.frames,
            shard=distributed.world(),
        )
    counts = f"{summary.predicted} segmented, {summary.skipped} already done"
    where = f"{arguments.out}/predictions.jsonl"
    print(f"{counts}, {summary.failed} failed; see {where}", file=sys.stderr)
    return 1 if distributed.any_failed(summary.failed + len(inputs.unlisted)) else 0
