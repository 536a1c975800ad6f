"""The arguments of the command line: names, defaults and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from .. import __version__
from ..backbones import DTYPES, FEATURES, POSITIONS
from ..core import options as params
from ..core.confidence import RECOMMENDED_MIN_CONFIDENCE
from ..images.refine import METHODS as REFINEMENTS
from ..jobs.exports import FORMATS
from ..methods import INITS, METHODS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _tau(text: str) -> float | str:
    try:
        return text if text == params.AUTO else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or 'auto': got {text!r}") from None


def parser() -> argparse.ArgumentParser:
    """The parser; ``command`` is the name of what is to be run."""
    top = _Parser(prog="selfment", description="Segmentation without labels.")
    top.add_argument("--version", action="version", version=f"selfment {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    label = commands.add_parser("label", help="write a mask for each image")
    _add_labels(label, "label")
    _add_method(label)
    _add_voters(label)
    label.add_argument("--out", required=True, metavar="DIR", help="folder for masks and records")
    label.add_argument(
        "--overlay", action="store_true", help="also draw image, Fiedler vector and masks"
    )
    _add_outputs(label)
    _add_training(commands.add_parser("train", help="train a segmentation head on pseudo-labels"))
    _add_prediction(commands.add_parser("predict", help="write the saliency of images and videos"))
    _add_comparison(commands.add_parser("compare", help="label by several methods, and score them"))
    _add_evaluation(commands.add_parser("eval", help="score predictions against ground truth"))
    _add_data(commands.add_parser("data", help="say which data sets are there"))
    _add_reproduce(commands.add_parser("reproduce", help="train and score as a recipe says"))
    commands.add_parser("info", help="print versions, instruction set and CUDA state")
    return top


def _add_labels(parser: argparse.ArgumentParser, verb: str) -> None:
    """The inputs, and all that their labels depend on."""
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="images, folders (searched recursively), globs")
    add("--samples", action="store_true", help=f"{verb} the photographs that scikit-image ships")
    several = "; with --objects statistics" if verb == "label" else ""
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


def _names(*choices: str) -> Callable[[str], list[str]]:
    """The type of names with commas between them, of ``choices`` if there are any."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if choices and name not in choices:
                allowed = ", ".join(choices)
                raise argparse.ArgumentTypeError(f"must be of {allowed}: got {name!r}")
        return names

    return parse


def _add_voters(parser: argparse.ArgumentParser) -> None:
    voters = "more backbones, with commas, whose clusters vote with the method selfmask"
    add = parser.add_argument
    add("--backbones", type=_names(), default=[], metavar="NAMES", help=voters)


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", default="selfment", choices=METHODS, help="whose labels (%(default)s)")
    split = "what Selfment's IPO starts from (%(default)s)"
    add("--init", default="ncut", choices=INITS, help=split)


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    _add_labels(parser, "label")
    _add_voters(parser)
    add = parser.add_argument
    add("--gt", required=True, metavar="DIR", help="folder of ground truth of the same names")
    add("--gt-suffix", default="", metavar="S", help="of the ground truths' names: _mask")
    add("--out", required=True, metavar="DIR", help="folder for the masks and the table")
    whose = f"whose labels: {','.join(METHODS)} (all that the backbone allows)"
    add("--methods", type=_names(*METHODS), metavar="NAMES", help=whose)
    splits = f"what Selfment's IPO starts from: {','.join(INITS)} (all that the backbone allows)"
    add("--inits", type=_names(*INITS), metavar="NAMES", help=splits)
    add("--allow-missing", action="store_true", help="score what has both files")
    add("--workers", type=int, default=1, metavar="N", help="processes that score (%(default)s)")


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """What becomes of the labels."""
    add = parser.add_argument
    objects = "label up to N objects of each image; PNG files hold their numbers, not for eval"
    add("--objects", type=int, metavar="N", help=objects)
    kinds = f"what to write, with commas: {','.join(FORMATS)} (png)"
    add("--format", type=_names(*FORMATS), default=["png"], metavar="NAMES", help=kinds)
    add("--refine", choices=REFINEMENTS, help="let masks follow the edges of their image")
    add("--fill-holes", action="store_true", help="fill the holes of masks")
    add("--largest-component", action="store_true", help="keep the largest component of a mask")


def _add_training(parser: argparse.ArgumentParser) -> None:
    _add_labels(parser, "train on")
    _add_method(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="RUN", help="folder for the head, checkpoints and records")
    add("--epochs", type=int, default=3, metavar="N", help="(%(default)s)")
    most = "train on so many of the images, chosen by the seed (%(default)s)"
    add("--max-images", type=int, default=1000, metavar="N", help=most)
    add("--lr", type=float, default=1e-3, metavar="R", help="Adam's learning rate (%(default)s)")
    add("--weight-decay", type=float, default=1e-5, metavar="W", help="(%(default)s)")
    add("--seed", type=int, default=111, metavar="N", help="(%(default)s)")
    add("--cache", metavar="DIR", help="folder for features and labels (RUN/cache)")
    add("--no-cache", action="store_true", help="compute the features again in each epoch")
    add("--cache-limit", type=float, metavar="GB", help="let the cache take so much (no limit)")
    kind = "train on features of this precision (%(default)s)"
    add("--feature-dtype", default="float32", choices=DTYPES, help=kind)
    again = "go on after the last epoch in RUN, as a restart by torchrun does unasked"
    add("--resume", action="store_true", help=again)


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    inputs = "images and videos, folders (searched recursively), globs"
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    head = "a trained head: a file, a folder, or owner/repository on the Hugging Face hub"
    add("--head", required=True, metavar="CKPT", help=head)
    add("--out", required=True, metavar="DIR", help="folder for saliency and records")
    name = "classic, statistics, or any timm ViT (the one that the head was trained on)"
    add("--backbone", metavar="NAME", help=name)
    features = "what a ViT gives (what the head was trained on)"
    add("--features", choices=FEATURES, help=features)
    add("--weights", metavar="PATH", help="a checkpoint of the ViT, or a hub folder")
    whose = "whose way to resample position embeddings (that of the head's training)"
    add("--positions", choices=POSITIONS, help=whose)
    side = "side the image is resized to (%(default)s)"
    add("--size", type=int, default=1536, metavar="S", help=side)
    add("--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)")
    aspect = "make the longer side S instead, and leave the aspect ratio as it is"
    add("--keep-aspect", action="store_true", help=aspect)
    add("--overlay", action="store_true", help="also draw the saliency on the image")
    mask = "also write a mask where the saliency exceeds T, in [0, 1)"
    add("--binary", type=float, metavar="T", help=mask)
    add("--device", help="torch device of backbone and head (CUDA where there is one)")
    add("--dtype", choices=DTYPES, help="autocast the ViT to this (float32)")
    add("--compile", action="store_true", help="compile backbone and head: a slow start")
    add("--threads", type=int, metavar="N", help="CPU threads (torch's default)")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--pred", required=True, metavar="DIR", help="folder of saliency maps or masks")
    add("--gt", required=True, metavar="DIR", help="folder of ground truth of the same names")
    protocols = ("paper", "pysod", "tokencut", "all")
    add("--protocol", default="all", choices=protocols, help="whose scores (%(default)s)")
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


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say which data sets are there and whole")
    check.add_argument("root", metavar="ROOT", help="the folder of all data sets")


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
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
