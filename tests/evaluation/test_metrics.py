"""The scores equal their definitions, threshold by threshold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.cases import generator
from helpers.scores import literal_f_max, literal_tokencut
from selfment.evaluation.metrics import accuracy, as_map, f_curves, f_max, iou, tokencut_curves


def maps(name: str) -> tuple[Tensor, Tensor]:
    """A saliency map and a mask."""
    shape = {"tiny": (1, 1), "row": (1, 7), "large": (300, 400)}.get(name, (17, 23))
    truth = torch.rand(shape, generator=generator(1)) < 0.3
    saliency = (torch.rand(shape, generator=generator(2)) + 0.6 * truth).clamp(max=1)
    if name == "levels":
        saliency = (saliency * 255).round() / 255  # on the thresholds
    elif name == "beside":
        levels = (saliency * 255).round() / 255
        saliency = torch.nextafter(levels, torch.rand(shape, generator=generator(3)))
    elif name == "constant":
        saliency = torch.full(shape, 0.4)
    elif name in ("zeros", "ones"):
        saliency = torch.full(shape, float(name == "ones"))
    elif name in ("empty", "full"):
        truth = torch.full(shape, name == "full")
    return saliency, truth


NAMES = ("random", "levels", "beside", "constant", "zeros", "ones", "empty", "full", "tiny", "row")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*NAMES, "large"])
def test_f_max_equals_its_definition(name: str, dtype: torch.dtype) -> None:
    saliency, truth = maps(name)
    expected = literal_f_max(saliency.to(dtype), truth)
    assert f_max(saliency.to(dtype), truth) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_f_max_of_bytes_equals_that_of_their_levels(name: str) -> None:
    saliency, truth = maps(name)
    levels = (saliency * 255).round()
    expected = literal_f_max(levels.double() / 255, truth)
    for same in (levels.byte(), levels / 255, levels.double() / 255, levels.byte().numpy()):
        assert f_max(same, truth) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert f_max(levels.byte(), truth.byte() * 255) == f_max(levels.byte(), truth)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_tokencut_equals_its_definition(name: str, kind: str) -> None:
    saliency, truth = (values.numpy() for values in maps(name))
    given = np.rint(255 * saliency).astype(np.uint8) if kind == "uint8" else saliency.astype(kind)
    values = given / 255 if kind == "uint8" else given
    precision, recall = literal_tokencut(values, truth)
    found = tokencut_curves(given, truth)
    np.testing.assert_allclose(found.precision, precision, rtol=1e-12)
    np.testing.assert_allclose(found.recall, recall, rtol=1e-12)
    with np.errstate(invalid="ignore"):
        f = np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall))
    np.testing.assert_allclose(found.f, f, rtol=1e-12)


def test_tokencut_takes_all_that_is_not_black_for_true() -> None:
    saliency, truth = torch.tensor([[1.0, 0.0]]), torch.tensor([[1, 1]], dtype=torch.uint8)
    assert tokencut_curves(saliency, truth).recall[0] == 0.5
    assert f_curves(saliency, truth).recall[0] == 0  # half is needed


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


def test_iou_and_accuracy_by_hand() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0, 0.5]])
    saliency = torch.tensor([[0.6, 0.5, 0.7, 0.0]])
    assert iou(saliency, truth) == pytest.approx(1 / 3)
    assert accuracy(saliency, truth) == 0.5
    assert iou(truth > 0.5, truth) == accuracy(truth > 0.5, truth) == 1
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)) == 1
    assert iou(torch.ones(1, 4), torch.zeros(1, 4)) == 0
    levels = torch.tensor([[128, 127]], dtype=torch.uint8)
    assert accuracy(levels, torch.tensor([[True, False]])) == 1


def test_half_precision_and_a_leading_axis() -> None:
    saliency, truth = maps("random")
    for dtype in (torch.float16, torch.bfloat16):
        half = saliency.to(dtype)
        assert f_max(half[None], truth) == f_max(half.float(), truth)
    assert f_max(half.float().numpy().astype(np.float16), truth) == f_max(half.half(), truth)


@pytest.mark.parametrize(
    ("saliency", "truth", "error", "sentence"),
    [
        (torch.full((2, 2), 1.5), None, ValueError, "`saliency` must lie in [0, 1]: got values"),
        (torch.full((2, 2), torch.nan), None, ValueError, "got values from nan to nan"),
        (torch.ones(2, 2, 2), None, ValueError, "must be (H, W), not empty: got shape (2, 2, 2)"),
        (torch.ones(0, 2), None, ValueError, "must be (H, W), not empty: got shape (0, 2)"),
        (torch.ones(2, 2).long(), None, TypeError, "must hold floats, bools or uint8: got int64"),
        ([[1]], None, TypeError, "must be a torch tensor or a numpy array: got list"),
        (torch.ones(2, 2), torch.ones(2, 3), ValueError, "the saliency's shape (2, 2): got shape"),
    ],
)
def test_errors(saliency, truth, error, sentence) -> None:
    with pytest.raises(error) as raised:
        f_max(saliency, torch.ones(2, 2) if truth is None else truth)
    assert sentence in str(raised.value)


def test_floats_may_leave_their_range_by_rounding():
    values = np.array([[-2e-7, 0.5, 1.0000002]], np.float32)
    assert as_map(values, "saliency").tolist() == [[0, 0.5, 1]]
    with pytest.raises(ValueError, match=r"in \[0, 1\]: got values from 0 to 1\.00000203"):
        as_map(np.array([[0, 1.000002]], np.float32), "saliency")
