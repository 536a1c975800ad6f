"""The scores equal their definitions, threshold by threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cases import generator
from selfment.metrics import f_max, iou


def literal_f_max(saliency: Tensor, truth: Tensor) -> float:
    best = 0.0
    for k in range(255):
        positive = saliency.double() > k / 255
        true = (positive & truth).sum().item()
        precision = true / (positive.sum().item() + 1e-7)
        recall = true / (truth.sum().item() + 1e-7)
        f = 1.09 * precision * recall / (0.09 * precision + recall + 1e-7)
        best = max(best, f)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_f_max_equals_its_definition(seed: int) -> None:
    truth = torch.rand(17, 23, generator=generator(seed)) < 0.3
    saliency = (torch.rand(17, 23, generator=generator(seed + 9)) + 0.6 * truth).clamp(max=1)
    if seed % 2:
        saliency = (saliency * 255).round() / 255  # on the thresholds
    assert f_max(saliency, truth) == pytest.approx(literal_f_max(saliency, truth), rel=1e-12)


def test_f_max_by_hand() -> None:
    truth = torch.tensor([[True, True, False, False]])
    assert f_max(truth, truth) == pytest.approx(1, abs=1e-6)
    assert f_max(torch.tensor([[0.9, 0.8, 0.7, 0.0]]), truth) == pytest.approx(1, abs=1e-6)
    # All foreground: P = 1/2, R = 1.
    assert f_max(torch.ones(1, 4), truth) == pytest.approx(1.09 * 0.5 / 1.045, abs=1e-6)
    # Half of it: P = 1, R = 1/2.
    half = torch.tensor([[True, False, False, False]])
    assert f_max(half, truth) == pytest.approx(1.09 * 0.5 / 0.59, abs=1e-6)
    assert f_max(torch.zeros(1, 4), truth) == 0
    assert f_max(truth, torch.zeros(1, 4)) == 0


def test_iou_by_hand() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.5]])
    assert iou(torch.tensor([[0.6, 0.5, 0.7, 0.0]]), truth) == pytest.approx(1 / 3)
    assert iou(truth > 0.5, truth) == 1
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)) == 1
    assert iou(torch.ones(1, 4), torch.zeros(1, 4)) == 0
