"""What commands share: arguments, and what is made of them."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..backbones import DTYPES, FEATURES, POSITIONS
from ..core import native
from ..core import options as params
from ..core.confidence import RECOMMENDED_MIN_CONFIDENCE
from ..images.load import ImageEntries, find_images, sample_images
from ..methods import INITS, METHODS
from ..models.labeler import PseudoLabeler


def add_images(parser: argparse.ArgumentParser, verb: str, several: str = "") -> None:
    """The images to ``verb``, and all that their labels depend on.

    ``several``: what else is said of the default backbone.
    """
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="images, folders (searched recursively), globs")
    add("--samples", action="store_true", help=f"{verb} the photographs that scikit-image ships")
    name = f"classic, statistics, or any timm ViT (classic{several})"
    add("--backbone", metavar="NAME", help=name)
    add("--features", default="tokens", choices=FEATURES, help="what a ViT gives (%(default)s)")
    add("--weights", metavar="PATH", help="a checkpoint of the ViT, or a hub folder")
    whose = (
        "resample position embeddings as the authors (of *.dino, *_dinov2) or timm (%(default)s)"
    )
    add("--positions", default="authors", choices=POSITIONS, help=whose)
    side = "side the image is resized to (%(default)s)"
    add("--size", type=int, default=768, metavar="S", help=side)
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    similarity = "similarity of an edge, or auto: one for each image (%(default)s)"
    add("--tau", type=_tau, default=params.TAU, metavar="T", help=similarity)
    add(
        "--eps", type=float, default=params.EPS, metavar="E", help="weight of no edge (%(default)s)"
    )
    add("--graph", default="binary", choices=params.GRAPHS, help="edge weights (%(default)s)")
    orient = "how foreground is chosen (the backbone's default)"
    add("--orient", choices=params.ORIENTS, help=orient)
    least = f"below this confidence masks are empty, as {RECOMMENDED_MIN_CONFIDENCE} (%(default)s)"
    add("--min-confidence", type=float, default=0.0, metavar="C", help=least)
    add("--device", help="torch device of the backbone (CUDA where there is one)")
    add("--dtype", choices=DTYPES, help="autocast the ViT to this (float32)")
    add("--threads", type=int, metavar="N", help="CPU threads (torch's default)")


def add_voters(parser: argparse.ArgumentParser) -> None:
    """The backbones that vote beside the first."""
    voters = "more backbones, with commas, whose clusters vote with the method selfmask"
    add = parser.add_argument
    add("--backbones", type=names_of(), default=[], metavar="NAMES", help=voters)


def add_method(parser: argparse.ArgumentParser) -> None:
    """The method, and the split that Selfment starts from."""
    add = parser.add_argument
    add("--method", default="selfment", choices=METHODS, help="whose labels (%(default)s)")
    split = "what Selfment's IPO starts from (%(default)s)"
    add("--init", default="ncut", choices=INITS, help=split)


def names_of(*choices: str) -> Callable[[str], list[str]]:
    """The type of names with commas between them, of ``choices`` if there are any."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if choices and name not in choices:
                allowed = ", ".join(choices)
                raise argparse.ArgumentTypeError(f"must be of {allowed}: got {name!r}")
        return names

    return parse


def _tau(text: str) -> float | str:
    try:
        return text if text == params.AUTO else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or 'auto': got {text!r}") from None


def images_of(arguments: argparse.Namespace) -> ImageEntries:
    """The images that the arguments name; sets the threads, too."""
    if bool(arguments.inputs) == arguments.samples:
        raise ValueError(f"give either the images to {arguments.command}, INPUT..., or --samples")
    set_threads(arguments.threads)
    native.cpu()  # what is wrong with it is the run's error, not that of each image
    if arguments.samples:
        return sample_images()
    return find_images(arguments.inputs, out=arguments.out)


def labeler_of(arguments: argparse.Namespace, **options: Any) -> PseudoLabeler:
    """The labeler that the arguments describe; prints the note of its backbone."""
    options |= label_options(arguments)
    labeler = PseudoLabeler(**options, method=arguments.method, init=arguments.init)
    if labeler.note:
        print(labeler.note, file=sys.stderr)
    return labeler


def label_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of :class:`selfment.PseudoLabeler` that all methods take."""
    return {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "features": arguments.features,
        "weights": arguments.weights,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "positions": arguments.positions,
        "tau": arguments.tau,
        "eps": arguments.eps,
        "graph": arguments.graph,
        "orient": arguments.orient,
        "min_confidence": arguments.min_confidence,
        "batch_size": arguments.batch,
        "backbones": getattr(arguments, "backbones", ()),  # training has no use for them
    }


def set_threads(threads: int | None) -> None:
    """Sets torch's threads, where a number is given; raises ``ValueError``."""
    if threads is not None:
        params.require("threads", threads, "an integer >= 1", threads >= 1)
        torch.set_num_threads(threads)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, which torchrun and schedulers send, ends the run as Ctrl-C does: in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
