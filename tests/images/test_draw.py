"""Eigenvectors are drawn as colours, and saliency as a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfment.images import rgb
from selfment.images.draw import tint, tint_saliency


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_saliency_is_drawn_as_a_mask(threshold: float) -> None:
    picture = Image.new("RGB", (12, 8), (20, 200, 20))
    saliency = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
    expected = tint(picture, saliency > threshold)
    drawn = tint_saliency(picture, torch.from_numpy(saliency), threshold)
    assert drawn.tobytes() == expected.tobytes()
    assert len(drawn.getcolors()) == 2


def test_eigenvectors_as_colours() -> None:
    groups = np.repeat([0, 1, 2], [20, 20, 24])
    vectors = np.stack([groups == 1, groups == 2, groups == 0], 1) - 0.3
    colours = np.array(rgb(torch.from_numpy(vectors), (8, 8))).reshape(64, 3)
    assert len(np.unique(colours, axis=0)) == 3
    for k in (1, 2, 3, 7):
        picture = rgb(np.random.default_rng(k).normal(size=(24, k)), (4, 6))
        assert (picture.size, picture.mode) == ((6, 4), "RGB")
    greys = np.array(rgb(np.linspace(-1, 1, 24)[:, None], (4, 6))).reshape(24, 3).astype(int)
    assert np.ptp(greys, axis=1).max() <= 1
    assert np.all(np.diff(greys.sum(1)) >= 0)
    assert greys[-1].sum() > greys[0].sum() + 200
    flat = np.array(rgb(np.ones((24, 2)), (4, 6)))
    assert np.ptp(flat.reshape(24, 3), axis=0).max() == 0


@pytest.mark.parametrize(
    ("vectors", "grid", "message"),
    [
        (np.zeros(6), (2, 3), r"`vectors` must be \(N, k\), N and k >= 1: got \(6,\)"),
        (np.zeros((6, 0)), (2, 3), r"`vectors` must be \(N, k\), N and k >= 1: got \(6, 0\)"),
        (np.zeros((6, 2)), (3, 3), r"`grid` must satisfy h\*w == N: got \(3, 3\) for N = 6"),
        (np.full((6, 2), np.nan), (2, 3), "`vectors` must be finite"),
    ],
)
def test_eigenvectors_that_have_no_colours(
    vectors: Any, grid: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rgb(vectors, grid)
