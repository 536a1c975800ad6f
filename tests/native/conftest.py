"""Fixtures: where the CUDA twin runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from helpers.cuda import Target, need_cuda


@pytest.fixture
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    if request.param == "emulated":
        return Target(request.getfixturevalue("emulated"), monkeypatch)
    need_cuda()
    return Target(None, monkeypatch)


@pytest.fixture
def device() -> Iterator[torch.device]:
    need_cuda()
    yield torch.device("cuda", torch.cuda.current_device())
    torch.cuda.synchronize()
