"""Small pictures for pages: thumbnails as data URLs, and masks as paths of SVG."""

from __future__ import annotations

import base64
import io
import os
from collections import defaultdict

import numpy as np
import numpy.typing as npt
from PIL import Image

from .load import load_image

SIDE = 200  #: pixels of a thumbnail's longer side at most

# Steps along the edges of pixels, clockwise: to the right, down, to the left, up.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
_NAMES = "hvhv"


def read_thumbnail(path: str | os.PathLike[str], side: int = SIDE) -> Image.Image:
    """Reads an image as RGB, shrunk so that no side exceeds ``side`` pixels.

    Raises :class:`selfment.images.ImageError`.
    """
    picture = load_image(path, least_side=side)[0]
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return picture


def data_url(picture: Image.Image, kind: str = "JPEG") -> str:
    """Returns a picture as the text of a ``data:`` URL; ``kind``: "JPEG" or "PNG"."""
    file = io.BytesIO()
    options = {"quality": 76} if kind == "JPEG" else {"optimize": True}
    picture.save(file, kind, **options)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{data}"


def outline(mask: npt.NDArray[np.bool_], most: int = 6000) -> str:
    """Returns the outline of an (h, w) mask as a path of SVG, in pixels; empty for an empty mask.

    The path runs along the edges of the pixels, clockwise around the foreground and the other way
    around holes, so that it can also be filled. Pixels that touch at a corner alone are parted. A
    mask whose path would have more than ``most`` characters is simplified: of 2 x 2 pixels, of
    4 x 4 and so on, the first counts.
    """
    scale = 1
    path = _trace(mask, scale)
    while len(path) > most and min(mask.shape) > 1:
        mask, scale = mask[::2, ::2], 2 * scale
        path = _trace(mask, scale)
    return path


def _trace(mask: npt.NDArray[np.bool_], scale: int) -> str:
    padded = np.pad(mask, 1)
    here, above, before = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    # The vertices at which edges of each direction start, by x and y.
    starts = (
        (here & ~above, 0, 0),
        (before & ~here, 0, 0),
        (above & ~here, 1, 0),
        (here & ~before, 0, 1),
    )
    leaving: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for direction, (edges, right, down) in enumerate(starts):
        for y, x in zip(*(axis.tolist() for axis in np.nonzero(edges)), strict=True):
            leaving[x + right, y + down].append(direction)
    parts = []
    while leaving:
        x, y = start = next(iter(leaving))
        direction = leaving[start][0]
        parts.append(f"M{x * scale} {y * scale}")
        length = 0
        while (x, y) in leaving:
            directions = leaving[x, y]
            turned = (direction + 1) % 4
            following = turned if turned in directions else directions[0]
            directions.remove(following)
            if not directions:
                del leaving[x, y]
            if following != direction and length:
                parts.append(_run(direction, length * scale))
                length = 0
            direction = following
            length += 1
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
        parts.append(_run(direction, length * scale) + "z")
    return "".join(parts)


def _run(direction: int, length: int) -> str:
    return f"{_NAMES[direction]}{length if direction < 2 else -length}"
