"""The training loop takes Adam's steps, learns, and stops where the loss is not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.cases import object_on_ground
from helpers.training import run
from selfment import PatchHead
from selfment.training.loop import Step, fit
from selfment.training.losses import head_loss


def planted(count: int) -> list[tuple[Tensor, Tensor]]:
    """Images whose objects share a prototype, and the truth."""
    inside = torch.zeros(12, 9, dtype=torch.bool)
    inside[3:9, 3:6] = True
    features = object_on_ground(12, 9, 24)
    return [(features + 0.1 * index, inside.flatten()) for index in range(count)]


def test_fit_takes_the_steps_of_adam() -> None:
    samples = planted(3)
    ours, theirs = PatchHead(24), PatchHead(24)
    theirs.load_state_dict(ours.state_dict())
    taken: list[Step] = []
    fit(ours, samples, epochs=2, lr=3e-3, weight_decay=1e-4, seed=5, on_step=taken.append)
    adam = torch.optim.Adam(theirs.parameters(), lr=3e-3, weight_decay=1e-4)
    for step in taken:
        features, labels = samples[step.index]
        loss = head_loss(*theirs(features), labels)
        assert step.total == pytest.approx(loss.total.item(), rel=1e-6)
        assert step.bce == pytest.approx(loss.bce.item(), rel=1e-6)
        adam.zero_grad()
        loss.total.backward()
        adam.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert [(s.epoch, s.step) for s in taken] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert sorted(s.index for s in taken[:3]) == [0, 1, 2]
    assert not ours.training


@pytest.mark.slow
def test_fit_learns() -> None:
    samples = planted(8)
    head = PatchHead(24)
    fit(head, samples, epochs=15)
    features, labels = planted(9)[-1]
    assert ((head.saliency(features) > 0.5) == labels).float().mean() > 0.95


def test_a_loss_that_is_not_finite_ends_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"must be finite: got nan in step \d+, of epoch 1; .*1e\+30"
    ):
        run(folder, tmp_path / "run", lr=1e30)
    assert not (tmp_path / "run/head").exists()
    assert not list((tmp_path / "run").glob("epoch-*.pt"))
