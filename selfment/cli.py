"""The command line: argument parsing only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from . import __version__, _native
from . import _params as params
from .backbones import DTYPES, FEATURES, WeightsError
from .images import find_images, sample_images
from .labeler import PseudoLabeler
from .labeling import label_images


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 (images failed), 2 (usage), 130 (Ctrl-C)."""
    arguments = _parser().parse_args(argv)
    try:
        return _label(arguments) if arguments.command == "label" else _info()
    except (ValueError, WeightsError, OSError, ImportError) as error:
        print(f"selfment {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"selfment {arguments.command}: interrupted; what was labelled is kept", file=sys.stderr
        )
        return 130


def _label(arguments: argparse.Namespace) -> int:
    if bool(arguments.inputs) == arguments.samples:
        raise ValueError("give either the images to label, INPUT..., or --samples")
    if arguments.threads is not None:
        params.number("threads", arguments.threads, "an integer >= 1", arguments.threads >= 1)
        torch.set_num_threads(arguments.threads)
    _native.cpu()  # what is wrong with it is the run's error, not that of each image
    labeler = PseudoLabeler(
        arguments.backbone,
        arguments.size,
        features=arguments.features,
        weights=arguments.weights,
        device=arguments.device,
        dtype=arguments.dtype,
        tau=arguments.tau,
        eps=arguments.eps,
        graph=arguments.graph,
        orient=arguments.orient,
        batch_size=arguments.batch,
    )
    if arguments.samples:
        images = sample_images()
    else:
        images = find_images(arguments.inputs, out=arguments.out)
    if labeler.note:
        print(labeler.note, file=sys.stderr)
    summary = label_images(images, arguments.out, labeler, overlays=arguments.overlay)
    counts = f"{summary.labelled} labelled, {summary.skipped} already done, {summary.failed} failed"
    print(f"{counts}; see {arguments.out}/labels.jsonl", file=sys.stderr)
    return 1 if summary.failed else 0


def _info() -> int:
    for name, value in _native.info().items():
        print(f"{name:<16} {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="selfment", description="Unsupervised segmentation pseudo-labels.")
    parser.add_argument("--version", action="version", version=f"selfment {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    label = commands.add_parser("label", help="write a mask for each image")
    label.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="images, folders (searched recursively), globs"
    )
    label.add_argument(
        "--samples", action="store_true", help="label the photographs that scikit-image ships"
    )
    label.add_argument("--out", required=True, metavar="DIR", help="folder for masks and records")
    label.add_argument(
        "--backbone",
        default="classic",
        metavar="NAME",
        help="classic, or any timm ViT (%(default)s)",
    )
    label.add_argument(
        "--features", default="tokens", choices=FEATURES, help="what a ViT gives (%(default)s)"
    )
    label.add_argument("--weights", metavar="FILE", help="a local checkpoint of the ViT")
    label.add_argument(
        "--size",
        type=int,
        default=768,
        metavar="S",
        help="side the image is resized to (%(default)s)",
    )
    label.add_argument(
        "--batch", type=int, default=8, metavar="N", help="images per pass (%(default)s)"
    )
    label.add_argument(
        "--tau",
        type=float,
        default=params.TAU,
        metavar="T",
        help="similarity of an edge (%(default)s)",
    )
    label.add_argument(
        "--eps", type=float, default=params.EPS, metavar="E", help="weight of no edge (%(default)s)"
    )
    label.add_argument(
        "--graph", default="binary", choices=params.GRAPHS, help="edge weights (%(default)s)"
    )
    label.add_argument(
        "--orient", choices=params.ORIENTS, help="how foreground is chosen (the backbone's default)"
    )
    label.add_argument("--device", help="torch device of the backbone (CUDA where there is one)")
    label.add_argument("--dtype", choices=DTYPES, help="autocast the ViT to this (float32)")
    label.add_argument(
        "--overlay", action="store_true", help="also draw image, Fiedler vector and masks"
    )
    label.add_argument("--threads", type=int, metavar="N", help="CPU threads (torch's default)")
    commands.add_parser("info", help="print versions, instruction set and CUDA state")
    return parser
