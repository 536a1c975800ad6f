"""Fixtures: a small ViT with random weights, and its features."""

from __future__ import annotations

import pytest
import torch

from helpers.vits import TINY, State, features, random_state, save


@pytest.fixture(scope="module")
def tiny() -> State:
    return random_state(TINY)


@pytest.fixture(scope="module")
def expected(tiny: State, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return features(TINY, save(tiny, tmp_path_factory.mktemp("plain") / "plain.pth"))
