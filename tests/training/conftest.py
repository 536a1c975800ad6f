"""Fixtures: a folder of photographs."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.training import pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("photos"), 6)
