"""Fixtures: pairs of saliency maps and masks, and folders of them."""

from __future__ import annotations

import pytest

from helpers.scores import pair, save


@pytest.fixture
def pairs():
    """Six pairs: two ordinary ones, a flat map, an empty and a full mask, a low maximum."""
    found = [pair(0), pair(1, (40, 17)), pair(2), pair(3), pair(4), pair(5)]
    found[2][0][:] = 90
    found[3][1][:] = 0
    found[4][1][:] = 255
    found[5] = (found[5][0] // 3, found[5][1])
    return found


@pytest.fixture
def folders(pairs, tmp_path):
    for index, (saliency, truth) in enumerate(pairs):
        save(tmp_path / f"pred/sub/{index}_saliency.png", saliency)
        save(tmp_path / f"gt/sub/{index}.png", truth)
    return tmp_path / "pred", tmp_path / "gt"
