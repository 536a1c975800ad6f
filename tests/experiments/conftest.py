"""Fixtures: a folder of photographs and masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.recipes import pictures


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of one's own with six pairs."""
    pictures(tmp_path / "own", "images", "masks", list("abcdef"))
    return tmp_path / "own"
