"""Polygons of masks: filled again, they are the masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from selfment.images.outline import polygon


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fills a polygon by the even-odd rule, at the centres of the pixels."""
    height, width = shape
    odd = np.zeros(shape, dtype=bool)
    y, x = np.mgrid[:height, :width] + 0.5
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (min(y0, y1) < y) & (y < max(y0, y1))
            odd ^= crosses & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def masks() -> dict[str, np.ndarray]:
    stream = np.random.RandomState(0)
    ring = np.ones((7, 9), dtype=bool)
    ring[2:5, 3:6] = False
    island = ring.copy()
    island[3, 4] = True
    stairs = np.eye(6, dtype=bool)
    return {
        "one pixel": np.ones((1, 1), dtype=bool),
        "a ring": ring,
        "an island in a hole": island,
        "pixels that touch at corners": stairs,
        "and the other way": stairs[::-1],
        "a chessboard": np.indices((5, 6)).sum(0) % 2 == 0,
        "noise": stream.rand(25, 31) < 0.5,
        "blobs": gaussian_filter(stream.randn(60, 50), 3) > 0.05,
    }


@pytest.mark.parametrize("name", masks())
def test_a_polygon_is_its_mask(name: str) -> None:
    mask = masks()[name]
    assert np.array_equal(filled(polygon(mask), mask.shape), mask)


def test_a_box_has_four_corners_and_parts_are_joined_by_bridges() -> None:
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:5, 3:7] = True
    assert sorted(map(tuple, polygon(mask))) == [(3, 2), (3, 5), (7, 2), (7, 5)]
    mask[2:5, 9:11] = True
    points = polygon(mask)
    assert label(mask)[1] == 2
    assert len(points) == 4 + 4 + 2
    steps = np.abs(np.diff(points, axis=0, append=points[:1]))
    assert sorted(steps.max(axis=1).tolist()) == [2, 2, 2, 2, 3, 3, 3, 3, 4, 4]


def test_an_empty_mask_has_no_corners() -> None:
    assert polygon(np.zeros((4, 5), dtype=bool)).shape == (0, 2)
