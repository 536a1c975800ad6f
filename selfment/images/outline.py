"""Outlines of masks as polygons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Bools = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int64]


def polygon(mask: Bools) -> Points:
    """Returns one closed polygon whose inside, by the even-odd rule, is an (H, W) mask.

    The polygon runs along the edges of the pixels, and is exact. Outlines of further parts and of
    holes are joined to it by bridges without width between their nearest corners. The result is
    (n, 2): x in 0..W and y in 0..H of the corners, without the first one again at the end; empty
    for an empty mask.
    """
    loops = sorted(_loops(mask), key=len, reverse=True)
    if not loops:
        return np.zeros((0, 2), dtype=np.int64)
    path = loops[0]
    for loop in loops[1:]:
        distance, nearest = cKDTree(path).query(loop)
        end = int(distance.argmin())
        start = int(nearest[end])
        path = np.concatenate([path[: start + 1], loop[end:], loop[: end + 1], path[start:]])
    return path


def _loops(mask: Bools) -> Iterator[Points]:
    """Yields the outline of each part of a mask, and of each hole, as (n, 2) corners (x, y).

    Pixels that touch at a corner only are of different parts.
    """
    padded = np.pad(mask, 1)
    above, below = padded[:-1], padded[1:]
    left, right = above[:, :-1] != above[:, 1:], below[:, :-1] != below[:, 1:]
    falls = above[:, :-1] & below[:, 1:]  # of two pixels that touch here: upper left, lower right
    touch = left & right & (above[:, :-1] != below[:, :-1])
    y, x = np.nonzero((left != right) | touch)
    twice = np.repeat(np.arange(len(y)), 1 + touch[y, x])
    y, x = y[twice], x[twice]
    # Along a row, and along a column, every other corner begins an edge that ends at the next. Of
    # two corners at one place the first in the row ends an edge. In the column it comes first, too,
    # if the pixel that it belongs to is above.
    second = np.concatenate([[False], twice[1:] == twice[:-1]])
    in_column = np.lexsort((second == falls[y, x], y, x))
    across = np.arange(len(y)) ^ 1
    along = np.empty_like(across)
    along[in_column] = in_column[across]
    corners = np.stack([x, y], axis=1)
    left_over = set(range(0, len(y), 2))
    while left_over:
        at = left_over.pop()
        loop: list[int] = []
        while not loop or at != loop[0]:
            loop += [at, int(across[at])]
            left_over.discard(at & ~1)
            at = int(along[loop[-1]])
        yield corners[loop]
