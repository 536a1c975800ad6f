"""The pictures of scored images: photograph, ground truth and prediction, small enough to embed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from ..images.load import ImageError
from ..images.maps import Levels, read_saliency, read_truth
from ..images.thumbnails import SIDE, data_url, read_thumbnail
from .report import ImageScores, Report


def worst_first(report: Report) -> list[int]:
    """Returns the places of the images that have files, the worst by the first score first.

    A score that is not a number is worse than any other.
    """
    key = next(iter(report.scores))
    sign = -1 if key == "MAE" else 1
    ranks = {
        place: -math.inf if math.isnan(image.scores[key]) else sign * image.scores[key]
        for place, image in enumerate(report.images)
        if image.prediction is not None
    }
    return sorted(ranks, key=ranks.__getitem__)


def pictures_of(image: ImageScores, photograph: Path | None) -> dict[str, Any]:
    """Returns the pictures of an image as ``data:`` URLs, all of one size, ready for JSON.

    The fields are ``photo``, ``truth`` and ``prediction``, None where there is no file or it cannot
    be read, and ``missing``, a sentence for each that cannot be read. Ground truth and prediction
    are in lossless grey, 255 for 1.
    """
    missing: list[str] = []
    truth = _read(image.truth, lambda path: _shrunk(read_truth(path)[0]), missing)
    size = None if truth is None else truth.size
    prediction = _read(
        image.prediction, lambda path: _shrunk(read_saliency(path)[0], size), missing
    )
    photo = _read(photograph, read_thumbnail, missing)
    return {
        "photo": photo and data_url(photo),
        "truth": truth and data_url(truth, "PNG"),
        "prediction": prediction and data_url(prediction, "PNG"),
        "missing": missing,
    }


def _read(
    path: Path | None, read: Callable[[Path], Image.Image], missing: list[str]
) -> Image.Image | None:
    """Reads a picture if there is a file; adds a sentence to ``missing`` if that fails."""
    try:
        return None if path is None else read(path)
    except ImageError as error:  # the file has changed since it was scored
        missing.append(str(error))
        return None


def _shrunk(levels: Levels, size: tuple[int, int] | None = None) -> Image.Image:
    """Shrinks levels to a ``size``, or so that no side exceeds that of a thumbnail."""
    picture = Image.fromarray(levels)
    if size is not None:
        return picture.resize(size, Image.Resampling.BOX)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return picture
