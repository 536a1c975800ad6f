"""The labels are the reference's, whatever the features come in and however they are computed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, noise, object_on_ground, smooth
from selfment import PseudoLabels, reference

GRAPHS = ("binary", "weighted")
ORIENTS = ("seed", "corners")
EXACT = ("mask", "ncut_mask", "seed", "ipo_iters", "rejected", "tau")


def assert_same(a: PseudoLabels, b: PseudoLabels) -> None:
    for field in fields(PseudoLabels):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), field.name


@pytest.mark.slow
@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, graph: str, orient: str) -> None:
    features, grid = CASES[name]
    ours = selfment.pseudo_label(features, grid, graph=graph, orient=orient)
    expected = reference.pseudo_label(features, grid, graph=graph, orient=orient)
    for field in EXACT:
        assert torch.equal(getattr(ours, field), getattr(expected, field)), field
    assert ours.eigenvalue.item() == pytest.approx(expected.eigenvalue.item(), abs=1e-7)
    assert ours.residual.item() < 1e-7
    assert ours.separation.item() == pytest.approx(expected.separation.item(), rel=1e-12)
    assert ours.confidence.item() == pytest.approx(expected.confidence.item(), rel=0.02, abs=1e-5)
    if len(features) > 3:
        assert ours.gap.item() == pytest.approx(expected.gap.item(), rel=0.05, abs=1e-5)
    scale = expected.fiedler.abs().max().item()
    # float32 weights move a vector by 1e-8 over its gap.
    tolerance = 1e-6 if graph == "binary" else max(1e-6, 1e-8 / ours.gap.item())
    assert (ours.fiedler - expected.fiedler).abs().max().item() < tolerance * scale


@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_cuts_are_deterministic_and_follow_from_their_vector(
    name: str, graph: str, orient: str
) -> None:
    features, grid = DEGENERATE[name]
    label = selfment.pseudo_label(features, grid, graph=graph, orient=orient)
    assert_same(label, selfment.pseudo_label(features, grid, graph=graph, orient=orient))
    assert label.residual.item() < 1e-9
    vector = selfment.ncut(features, graph=graph)[1][:, 0] if len(features) > 1 else None
    if vector is None:
        assert label.mask.item()
        assert label.ncut_mask.item()
        assert label.eigenvalue.item() == 0
        expected = reference.pseudo_label(features, grid, graph=graph, orient=orient)
        assert torch.equal(label.fiedler, expected.fiedler)
        return
    mask, seed = reference._initial_mask(vector, grid, orient)
    assert torch.equal(label.ncut_mask, mask)
    assert label.seed.item() == seed.item()
    assert torch.equal(label.mask.flatten(), reference.ipo(features, mask.flatten()))


def test_finds_an_object() -> None:
    truth = torch.zeros(24, 18, dtype=torch.bool)
    truth[6:18, 6:12] = True
    label = selfment.pseudo_label(object_on_ground(24, 18, 40), (24, 18))
    assert (label.mask == truth).float().mean() > 0.97


def test_shapes_and_dtypes() -> None:
    features = torch.stack([smooth(6, 9, 20, seed=s) for s in range(3)])
    label = selfment.pseudo_label(features, (6, 9))
    single = selfment.pseudo_label(features[0], (6, 9))
    kinds = {
        "mask": torch.bool,
        "ncut_mask": torch.bool,
        "fiedler": torch.float32,
        "eigenvalue": torch.float64,
        "gap": torch.float64,
        "residual": torch.float64,
        "seed": torch.int64,
        "lanczos_iters": torch.int64,
        "ipo_iters": torch.int64,
        "separation": torch.float64,
        "confidence": torch.float64,
        "rejected": torch.bool,
        "tau": torch.float64,
    }
    for field, dtype in kinds.items():
        map_ = field in ("mask", "ncut_mask", "fiedler")
        assert getattr(label, field).shape == ((3, 6, 9) if map_ else (3,))
        assert getattr(single, field).shape == ((6, 9) if map_ else ())
        assert getattr(label, field).dtype == dtype
        assert getattr(single, field).dtype == dtype


def test_layouts_agree() -> None:
    features = torch.stack([smooth(6, 9, 20, seed=s) for s in range(3)])
    label = selfment.pseudo_label(features, (6, 9))
    maps = features.transpose(1, 2).reshape(3, 20, 6, 9)
    assert_same(label, selfment.pseudo_label(maps))
    assert_same(label, selfment.pseudo_label(maps, (6, 9)))
    assert_same(label, selfment.pseudo_label(maps.to(memory_format=torch.channels_last)))
    wide = torch.zeros(3, 54, 40)
    wide[..., ::2] = features
    assert_same(label, selfment.pseudo_label(wide[..., ::2], (6, 9)))
    grown = features.clone().requires_grad_()
    assert not selfment.pseudo_label(grown, (6, 9)).fiedler.requires_grad


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes_equal_the_reference(dtype: torch.dtype) -> None:
    features = smooth(14, 11, 48).to(dtype)
    ours = selfment.pseudo_label(features, (14, 11))
    expected = reference.pseudo_label(features, (14, 11))
    for field in EXACT:
        assert torch.equal(getattr(ours, field), getattr(expected, field)), field


def test_numpy_in_numpy_out() -> None:
    features = smooth(6, 9, 20)
    expected = selfment.pseudo_label(features, (6, 9))
    arrays = {
        "plain": features.numpy(),
        "reversed twice": features.numpy()[::-1].copy()[::-1],
        "read-only": np.frombuffer(features.numpy().tobytes(), np.float32).reshape(54, 20),
        "fortran": np.asfortranarray(features.numpy()),
    }
    for array in arrays.values():
        label = selfment.pseudo_label(array, (6, 9))
        assert all(
            isinstance(getattr(label, f.name), (np.ndarray, np.generic)) for f in fields(label)
        )
        assert_same(label, expected)


class Foreign:
    """An array of some other library that speaks DLPack and the array API."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: object) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self) -> type[Foreign]:
        return Foreign

    @staticmethod
    def from_dlpack(tensor: Tensor) -> Foreign:
        return Foreign(tensor)


def test_dlpack_in_the_same_kind_out() -> None:
    features = smooth(6, 9, 20)
    label = selfment.pseudo_label(Foreign(features), (6, 9))
    expected = selfment.pseudo_label(features, (6, 9))
    assert isinstance(label.mask, Foreign)
    assert torch.equal(label.mask.tensor, expected.mask)


def test_a_batch_too_large_for_one_go_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.stack([smooth(8, 9, 16, seed=s) for s in range(5)])
    whole = selfment.pseudo_label(features, (8, 9))
    monkeypatch.setattr("selfment.core.twins._CPU_BYTES", 1)
    assert_same(selfment.pseudo_label(features, (8, 9)), whole)
    features[4, 3, 0] = float("inf")
    with pytest.raises(ValueError, match="in patch 3 of image 4"):
        selfment.pseudo_label(features, (8, 9))


@pytest.mark.slow
def test_parameters_are_passed_on() -> None:
    features, grid = CASES["large"]
    for arguments in ({"tau": 0.4}, {"eps": 0.1}, {"ipo_iters": 1}, {"ipo_min_count": 700}):
        ours = selfment.pseudo_label(features, grid, **arguments)
        expected = reference.pseudo_label(features, grid, **arguments)
        assert torch.equal(ours.mask, expected.mask)
    plain = selfment.pseudo_label(features, grid, ipo_iters=0)
    assert torch.equal(plain.mask, plain.ncut_mask)


@pytest.mark.slow
def test_photographs_equal_the_reference(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("classic")
    for path in photos[::20]:
        image, _ = load_image(path)
        tokens = backbone(backbone.preprocess(image, 320)[None])
        grid = backbone.grid(320)
        for graph in GRAPHS:
            ours = selfment.pseudo_label(tokens, grid, graph=graph)
            expected = reference.pseudo_label(tokens, grid, graph=graph)
            for field in EXACT:
                assert torch.equal(getattr(ours, field), getattr(expected, field)), (path, field)


F = noise(4, 5, 3)


@pytest.mark.parametrize(
    ("features", "grid", "error", "message"),
    [
        (F, (4, 4), ValueError, r"`grid` must satisfy h\*w == N: got \(4, 4\) for N = 20"),
        (F, None, ValueError, r"`grid` is needed with \(N, d\).*here N = 20"),
        (
            F,
            (4, 5, 1),
            ValueError,
            r"`grid` must be two positive integers \(h, w\): got \(4, 5, 1\)",
        ),
        (F, (4.5, 5), ValueError, r"`grid` must be two positive integers"),
        (F, (-4, -5), ValueError, r"`grid` must be two positive integers"),
        (F, 20, ValueError, r"`grid` must be two positive integers \(h, w\): got 20"),
        (F[:, 0], (4, 5), ValueError, r"`features` must be \(N, d\).*got shape \(20,\)"),
        (F[:0], (4, 5), ValueError, r"`features` must not be empty: got shape \(0, 3\)"),
        (F.reshape(1, 3, 4, 5), (5, 4), ValueError, r"`grid` must equal the last two axes"),
        (F.long(), (4, 5), TypeError, "`features` must be float16, bfloat16.*got int64"),
        (F.numpy().astype("complex64"), (4, 5), TypeError, "native numbers: got dtype complex64"),
        (F.tolist(), (4, 5), TypeError, "`features` must be a torch tensor, .*: got list"),
        (F.to("meta"), (4, 5), ValueError, "`features` must be on the CPU.*got meta"),
    ],
)
def test_wrong_features(features: object, grid: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        selfment.pseudo_label(features, grid)


def test_wrong_orient() -> None:
    with pytest.raises(ValueError, match="`orient` must be 'seed' or 'corners': got 'left'"):
        selfment.pseudo_label(F, (4, 5), orient="left")


def test_not_finite() -> None:
    features = torch.stack([F, F])
    features[1, 19, 2] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite.*in patch 19 of image 1"):
        selfment.pseudo_label(features, (4, 5))


def test_huge_norm_is_named() -> None:
    features = F.double()
    features[7] = 1e200
    with pytest.raises(ValueError, match="overflow in patch 7 of image 0"):
        selfment.pseudo_label(features, (4, 5))
