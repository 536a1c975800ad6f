"""Fixtures: pictures of several objects."""

from __future__ import annotations

import pytest

from helpers.scenes import SIZES, scene


@pytest.fixture
def scenes(tmp_path):
    for seed, (name, size) in enumerate(SIZES.items()):
        scene(tmp_path / "in" / name, size, seed)
    return tmp_path / "in"
