"""``selfment export``: a trained head and its backbone as one file."""

from __future__ import annotations

import argparse

from .common import add_head, add_threads, set_threads

EXAMPLES = """\
selfment export --head run/head --out model.onnx
selfment export --head run/head --out model.pt2 --size dynamic
"""

_DYNAMIC = "dynamic"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_head(parser, side=None)
    add = parser.add_argument
    out = "model.onnx for ONNX, or model.pt2 for torch.export.load"
    add("--out", required=True, metavar="FILE", help=out)
    side = (
        "side that the file resizes a photo to (1536, or the nearest multiple of the patch size), "
        "or dynamic: photos are taken as they are, with sides that are multiples of the patch size"
    )
    add("--size", type=_size, metavar="S", help=side)
    add_threads(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from ..models.export import export_segmenter
    from ..models.segmenter import Segmenter

    set_threads(arguments.threads)
    resize = arguments.size != _DYNAMIC
    segmenter = Segmenter.from_pretrained(
        arguments.head,
        backbone=arguments.backbone,
        size=arguments.size if resize else None,
        features=arguments.features,
        weights=arguments.weights,
        positions=arguments.positions,
        device="cpu",
    )
    difference = export_segmenter(segmenter, arguments.out, resize=resize)
    print(f"{arguments.out}: differs from the segmenter by at most {difference:.1e} on two images")
    return 0


def _size(text: str) -> int | str:
    try:
        return text if text == _DYNAMIC else int(text)
    except ValueError:
        message = f"must be a number of pixels or {_DYNAMIC!r}: got {text!r}"
        raise argparse.ArgumentTypeError(message) from None
