"""The arguments of ``selfment label`` on files of patch features."""

from __future__ import annotations

import argparse
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from .common import check_default, images_of

if TYPE_CHECKING:
    from ..backbones.files import FeatureFiles
    from ..images.load import ImageEntries

#: The options that describe how features are computed from images, with their defaults.
_OF_IMAGES: dict[str, object] = {
    "samples": False,
    "backbone": None,
    "features": "tokens",
    "weights": None,
    "positions": "authors",
    "size": None,
    "keep_aspect": False,
    "dtype": None,
    "voters": (),
}
_OF_FILES: dict[str, object] = {"images": None, "array": None, "prefix_tokens": 0}


def add_features(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe files of features."""
    add = parser.add_argument_group("features from files").add_argument
    grid = "the inputs are files of patch features (npy, npz, safetensors, pt): the patches of each"
    add("--grid", type=_grid, metavar="HxW", help=grid)
    images = "their images, by the names of the files: masks have the size of the image, not HxW"
    add("--images", metavar="DIR", help=images)
    add("--array", metavar="NAME", help="the features in a file with several arrays")
    tokens = "tokens such as CLS before those of the patches, left out (%(default)s)"
    add("--prefix-tokens", type=int, default=0, metavar="K", help=tokens)


def feature_files(arguments: argparse.Namespace) -> FeatureFiles | None:
    """Returns how features are read; None if the inputs are images. Raises ``ValueError``."""
    from ..backbones.files import SUFFIXES, FeatureFiles
    from ..models.image_model import device_of

    if arguments.grid is None:
        for name, default in _OF_FILES.items():
            check_default(arguments, name, default, "without `grid`, which describes features")
        for name in arguments.inputs:
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                raise ValueError(
                    f"`grid` must be given with files of features, as --grid 48x48: got {name}"
                )
        return None
    for name, default in _OF_IMAGES.items():
        check_default(arguments, name, default, "with `grid`, as features are read from files")
    return FeatureFiles(
        arguments.grid,
        array=arguments.array,
        prefix_tokens=arguments.prefix_tokens,
        device=device_of(arguments.device),
    )


def features_of(arguments: argparse.Namespace) -> ImageEntries:
    """Returns the files of features that the arguments name, with their images if there are any."""
    from ..jobs.features import find_features

    return images_of(arguments, partial(find_features, images=arguments.images))


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.lower())
    h, w = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(h, w) < 1:
        raise argparse.ArgumentTypeError(
            f"must be HxW, the rows and columns of patches, as 48x48: got {text!r}"
        )
    return h, w
