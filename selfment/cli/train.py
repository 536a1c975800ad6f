"""``selfment train``: a segmentation head, trained on pseudo-labels or on masks that exist."""

from __future__ import annotations

import argparse
import sys

from ..core import options as params
from ..core.options import CutOptions
from ..util.words import count_of
from .choices import DTYPES
from .common import add_images, add_method, check_default, images_of, labeler_of, method_options

EXAMPLES = """\
selfment train photos/ --out run --backbone vit_small_patch16_dinov3.lvd1689m
selfment train photos/ --out run --epochs 10 --resume
selfment train photos/ --out run --labels labels --only chosen.txt --drop-rejected
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    out = "folder for the head, checkpoints and records"
    parser.add_argument("--out", required=True, metavar="RUN", help=out)
    add_images(parser, "train on")
    add_method(parser.add_argument_group("method"))
    group = parser.add_argument_group("labels that exist")
    masks = "train on the masks in DIR, of selfment label or anybody's, instead of new labels"
    group.add_argument("--labels", metavar="DIR", help=masks)
    names = "train only on the images that the lines of this text file name"
    group.add_argument("--only", metavar="FILE", help=names)
    rejected = "leave out images that the labeler rejected (they count as all background)"
    group.add_argument("--drop-rejected", action="store_true", help=rejected)
    add = parser.add_argument_group("training").add_argument
    often = "how often each image is trained on (as often as 3,000 steps take)"
    add("--epochs", type=int, metavar="N", help=often)
    most = "train on so many of the images, chosen by the seed (%(default)s)"
    add("--max-images", type=int, default=1000, metavar="N", help=most)
    add("--lr", type=float, default=1e-3, metavar="R", help="Adam's learning rate (%(default)s)")
    add("--weight-decay", type=float, default=1e-5, metavar="W", help="(%(default)s)")
    add("--seed", type=int, default=111, metavar="N", help="(%(default)s)")
    again = "go on after the last epoch in RUN, as a restart by torchrun does unasked"
    add("--resume", action="store_true", help=again)
    cache = parser.add_argument_group("cache").add_argument
    cache("--cache", metavar="DIR", help="folder for features and labels (RUN/cache)")
    cache("--no-cache", action="store_true", help="compute the features again in each epoch")
    cache("--cache-limit", type=float, metavar="GB", help="let the cache take so much (no limit)")
    kind = "train on features of this precision (%(default)s)"
    cache("--feature-dtype", default="float32", choices=DTYPES, help=kind)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..training.choice import read_names
    from ..training.run import train
    from ..util import distributed

    _check_labels(arguments)
    if arguments.no_cache:
        for name in ("cache", "cache_limit"):
            check_default(arguments, name, None, "with --no-cache")
    only = None if arguments.only is None else read_names(arguments.only)
    images = images_of(arguments)
    limit = arguments.cache_limit
    if limit is not None:
        params.require("cache-limit", limit, "a number >= 0", 0 <= limit < float("inf"))
    summary = train(
        images,
        arguments.out,
        labeler_of(arguments),
        labels=arguments.labels,
        only=only,
        drop_rejected=arguments.drop_rejected,
        epochs=arguments.epochs,
        max_images=arguments.max_images,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
        cache=arguments.cache,
        use_cache=not arguments.no_cache,
        cache_limit=None if limit is None else round(limit * 1e9),
        feature_dtype=arguments.feature_dtype,
        resume=arguments.resume or distributed.restarted(),
    )
    if distributed.world()[0] > 0:
        return 0  # the first process speaks for all
    counts = f"trained on {count_of(summary.images, 'image')}, {summary.failed} failed"
    steps = count_of(summary.steps, "step")
    print(f"{counts}, {steps}; the head is {summary.head}", file=sys.stderr)
    for sentence in summary.sentences():
        print(sentence, file=sys.stderr)
    print(
        f"the head agrees with its labels at IoU {summary.agreement:.2f}, "
        f"foreground {100 * summary.foreground:.1f} %",
        file=sys.stderr,
    )
    if summary.is_constant:
        side = "foreground" if summary.foreground > 0.5 else "background"
        print(
            f"the head has learned nothing: it calls everything {side}; train for more --epochs, "
            "on more images, or with another --tau or --backbone",
            file=sys.stderr,
        )
    return 1 if summary.failed or images.unlisted or summary.is_constant else 0


def _check_labels(arguments: argparse.Namespace) -> None:
    """Raises ``ValueError`` for options of a method where the labels are masks that exist."""
    if arguments.labels is None:
        return
    options = method_options(arguments)
    cut = vars(options.pop("cut", CutOptions()))
    changed = [name for name, value in vars(CutOptions()).items() if cut[name] != value]
    changed += [*options, *(["method"] if arguments.method != "selfment" else [])]
    if changed:
        raise ValueError(
            f"`{changed[0]}` must be left alone with `labels`, which exist already: got "
            f"{getattr(arguments, changed[0])!r}"
        )
