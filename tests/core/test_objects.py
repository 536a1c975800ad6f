"""Several objects of an image: a dense float64 loop as it is specified, and planted scenes."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, generator, smooth
from selfment import Objects, multi_label

Boxes = list[tuple[int, int, int, int]]
SMALL = [name for name in CASES if name not in ("large", "deep")]


def first_peak(values: NDArray[np.float64]) -> int:
    return int(np.argmax(values >= values.max() - 1e-7 * abs(values.max())))


def unit(rows: Tensor) -> NDArray[np.float64]:
    wide = rows.double().numpy()
    norms = np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return (wide / norms).astype(np.float32).astype(np.float64)


def dense_ipo(
    f: NDArray[np.float64], label: NDArray[np.bool_], iters: int, min_count: int
) -> NDArray[np.bool_]:
    if label.all() or not label.any():
        return label
    first = f[label].mean(0) - f[~label].mean(0)
    for _ in range(iters):
        if min(label.sum(), (~label).sum()) < min_count:
            break
        label = f @ (f[label].mean(0) - f[~label].mean(0)) > 1e-12
        if label.all() or not label.any():
            break
        if (f[label].mean(0) - f[~label].mean(0)) @ first < 0:
            label = ~label
    return label


@dataclass
class Found:
    """What the dense loop finds, and why it ended."""

    masks: list[NDArray[np.bool_]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    eigenvalues: list[float] = field(default_factory=list)
    end: str = "count"


def dense_loop(
    rows: Tensor,
    grid: tuple[int, int],
    *,
    max_objects: int = 3,
    max_cut: float = 0.5,
    min_area: float = 0.01,
    split: bool = False,
    tau: float = 0.2,
    eps: float = 1e-5,
    graph: str = "binary",
    orient: str = "corners",
    ipo_iters: int = 20,
    ipo_min_count: int = 10,
) -> Found:
    h, w = grid
    n = h * w
    f = unit(rows)
    taken = np.zeros(n, dtype=bool)
    found = Found()
    while len(found.masks) < max_objects:
        painted = np.where(taken[:, None], 0, f)
        s = painted @ painted.T
        A = np.where(s > tau, 1, eps) if graph == "binary" else np.where(s >= tau, s, eps)
        D = np.diag(A.sum(axis=1))
        values, vectors = scipy.linalg.eigh(D - A, D, subset_by_index=[0, min(2, n - 1)])
        value, x = values[1], vectors[:, 1]
        if value > max_cut:
            found.end = "cut"
            break
        repeated = len(values) > 2 and values[2] - value < 1e-7
        if repeated or abs(x - x.mean())[~taken].min() < 1e-8 * abs(x).max():
            found.end = "undetermined"
            break
        x = x * np.sign(x[first_peak(abs(x))])
        side, depth = x > x.sum() / n, x
        corners = [side[0], side[w - 1], side[n - w], side[n - 1]]
        if orient == "corners" and np.sum(corners) >= 3:
            side, depth = ~side, -x
        start = side & ~taken
        if not start.any():
            found.end = "nothing"
            break
        if not split:
            labels = scipy.ndimage.label(start.reshape(grid))[0].ravel()
            start = labels == labels[first_peak(np.where(start, depth, -np.inf))]
        refined = np.zeros(n, dtype=bool)
        refined[~taken] = dense_ipo(f[~taken], start[~taken], ipo_iters, ipo_min_count)
        labels, count = scipy.ndimage.label(refined.reshape(grid))
        parts = [labels.ravel() == k for k in range(1, count + 1)]
        if not split and parts:
            parts = [parts[int(np.argmax([(part & start).sum() for part in parts]))]]
        parts = [part for part in parts if part.sum() > min_area * n]
        if not parts:
            found.end = "area"
            break
        order = np.argsort([-part.sum() for part in parts], kind="stable")
        parts = [parts[k] for k in order][: max_objects - len(found.masks)]
        if np.any([taken, *parts], axis=0).all():
            found.end = "background"
            break
        for part in parts:
            found.masks.append(part.reshape(grid))
            found.seeds.append(int(np.flatnonzero(part)[first_peak(depth[part])]))
            found.eigenvalues.append(value)
            taken = taken | part
    return found


def check(rows: Tensor, grid: tuple[int, int], **options: Any) -> Found:
    """Compares with the dense loop as far as its cuts are determined; returns what that found."""
    found = dense_loop(rows, grid, **options)
    count = len(found.masks)
    if found.end == "undetermined":
        if count == 0:
            return found
        options["max_objects"] = count
    ours = multi_label(rows, grid, **options)
    assert isinstance(ours, Objects)
    assert ours.masks.shape == (count, *grid)
    assert ours.masks.dtype == torch.bool
    for mask, expected in zip(ours.masks.numpy(), found.masks, strict=True):
        assert np.array_equal(mask, expected)
    assert ours.seeds.tolist() == found.seeds
    # float32 weights move an eigenvalue.
    tolerance = 1e-6 if options.get("graph") == "weighted" else 1e-9
    np.testing.assert_allclose(ours.eigenvalues, found.eigenvalues, rtol=0, atol=tolerance)
    f = unit(rows)
    instances = np.zeros(grid, dtype=np.int64)
    for k, expected in enumerate(found.masks):
        instances[expected] = k + 1
        y, x = np.nonzero(expected)
        assert ours.boxes[k].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        inside = expected.ravel()
        separation = np.linalg.norm(f[inside].mean(0) - f[~inside].mean(0))
        assert ours.separations[k].item() == pytest.approx(separation, abs=1e-9)
    assert np.array_equal(ours.instances, instances)
    for name in ("instances", "boxes", "seeds"):
        assert getattr(ours, name).dtype == torch.int64
    for name in ("eigenvalues", "separations"):
        assert getattr(ours, name).dtype == torch.float64
        assert getattr(ours, name).shape == (count,)
    assert ours.boxes.shape == (count, 4)
    return found


def planted(
    grid: tuple[int, int], boxes: Boxes, kinds: list[int], spread: float = 0.05, seed: int = 0
) -> Tensor:
    """Boxes (x1, y1, x2, y2) of some kinds, 1 and up, on a ground; a direction for each kind."""
    rng = generator(seed)
    centres = torch.linalg.qr(torch.randn(64, 5, generator=rng))[0].T
    kind = torch.zeros(grid, dtype=torch.int64)
    for (x1, y1, x2, y2), k in zip(boxes, kinds, strict=True):
        kind[y1:y2, x1:x2] = k
    return centres[kind.flatten()] + spread * torch.randn(kind.numel(), 64, generator=rng)


GRID = (24, 27)
BOXES: Boxes = [(3, 3, 9, 9), (14, 4, 20, 11), (6, 14, 15, 21)]

# None of the rules ends the rounds but their number.
FREE = {"max_cut": 2.0, "min_area": 0.0, "max_objects": 4}


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_equals_the_dense_loop(name: str, split: bool, graph: str) -> None:
    rows, grid = CASES[name]
    for rules in ({}, FREE, {"ipo_iters": 0, "max_cut": 1.0}, {"orient": "seed", "max_cut": 1.0}):
        check(rows, grid, split=split, graph=graph, **rules)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.15, 0.0, -0.1])
@pytest.mark.parametrize("split", [False, True])
def test_other_thresholds(tau: float, split: bool) -> None:
    """Below 0 a painted patch is joined to all others."""
    counts = []
    for seed in range(4):
        found = check(smooth(9, 14, 24, seed=seed), (9, 14), tau=tau, split=split, **FREE)
        counts.append(len(found.masks))
    assert min(counts) >= 1
    assert max(counts) > 1 or (tau == 0 and not split)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_finds_what_is_planted_and_stops(count: int, graph: str) -> None:
    kinds = [1, 2, 3][:count]
    rows = planted(GRID, BOXES[:count], kinds)
    found = check(rows, GRID, max_objects=6, graph=graph)
    assert found.end in ("cut", "nothing", "background")
    ours = multi_label(rows, GRID, max_objects=6, graph=graph)
    assert isinstance(ours, Objects)
    assert sorted(map(tuple, ours.boxes.tolist())) == sorted(BOXES[:count])
    assert ours.masks.sum() == sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in BOXES[:count])


@pytest.mark.slow
def test_touching_objects() -> None:
    boxes = [(4, 4, 11, 12), (11, 6, 19, 15)]
    rows = planted(GRID, boxes, [1, 2])
    check(rows, GRID)
    ours = multi_label(rows, GRID)
    assert isinstance(ours, Objects)
    assert sorted(map(tuple, ours.boxes.tolist())) == boxes
    assert (ours.instances > 0).sum() == 7 * 8 + 8 * 9


def test_split_tells_things_of_one_kind_apart() -> None:
    rows = planted(GRID, BOXES, [1, 1, 2])
    check(rows, GRID, split=True)
    ours = multi_label(rows, GRID, split=True)
    assert isinstance(ours, Objects)
    assert sorted(map(tuple, ours.boxes.tolist())) == sorted(BOXES)
    pair = [k for k, box in enumerate(ours.boxes.tolist()) if tuple(box) != BOXES[2]]
    assert ours.eigenvalues[pair[0]] == ours.eigenvalues[pair[1]]
    assert ours.masks[pair[0]].sum() > ours.masks[pair[1]].sum()  # 42 patches and 36
    assert len(multi_label(rows, GRID, split=True, max_objects=1).masks) == 1


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
def test_each_rule_ends_the_rounds(split: bool) -> None:
    """Each decides somewhere, as in the dense loop."""
    cases = [(smooth(10, 13, 24, seed=seed), (10, 13)) for seed in range(12)]
    cases += [(planted(GRID, BOXES, [1, 2, 3]), GRID), CASES["two components"]]
    rules: tuple[dict[str, Any], ...] = ({}, {"max_cut": 1.0}, {"min_area": 0.2}, FREE)
    ends = {check(*case, split=split, **rule).end for case in cases for rule in rules}
    assert ends >= {"cut", "nothing", "area", "count", *(["background"] if split else [])}


def test_an_object_takes_no_patch_of_an_earlier_one() -> None:
    for seed in range(6):
        ours = multi_label(smooth(15, 16, 32, seed=seed), (15, 16), **FREE)
        assert isinstance(ours, Objects)
        assert ours.masks.sum(dim=0).max() == 1
        assert torch.equal(ours.instances > 0, ours.masks.any(dim=0))
        assert all(mask.flatten()[s] for mask, s in zip(ours.masks, ours.seeds, strict=True))


@pytest.mark.slow
def test_photographs(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("statistics")
    counts = set()
    for path in photos[::100]:
        image, _ = load_image(path)
        rows = backbone(backbone.preprocess(image, 320)[None])[0]
        h, w = backbone.grid(320)
        crop = rows.reshape(h, w, -1)[3:].reshape((h - 3) * w, -1)
        for split in (False, True):
            counts.add(len(check(crop, (h - 3, w), split=split).masks))
        counts.add(len(check(rows, (h, w), graph="weighted", max_cut=1.0).masks))
    assert len(counts) > 1


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_features(name: str, split: bool) -> None:
    rows, grid = DEGENERATE[name]
    ours = multi_label(rows, grid, split=split)
    assert isinstance(ours, Objects)
    if name.startswith(("all equal", "all zero", "one patch")):
        assert len(ours.masks) == 0
    free = multi_label(rows, grid, split=split, **FREE)
    again = multi_label(rows, grid, split=split, **FREE)
    assert_same(free, again)
    assert isinstance(free, Objects)
    assert not free.masks.any(dim=0).all()
    assert free.separations.isfinite().all()


def test_nothing_is_left_of_the_background() -> None:
    """Three bands: the last of them is no object, although no other rule forbids it."""
    rows, grid = CASES["three components"]
    ours = multi_label(rows, grid, **FREE | {"max_objects": 10})
    assert isinstance(ours, Objects)
    assert 1 <= len(ours.masks) <= 2
    assert not ours.masks.any(dim=0).all()


def assert_same(ours: Any, expected: Any) -> None:
    for name in (f.name for f in fields(Objects)):
        assert np.array_equal(getattr(ours, name), getattr(expected, name)), name


@pytest.mark.parametrize("graph", ["binary", "weighted"])
def test_batch_equals_single(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [planted(GRID, BOXES[:count], [1, 2, 3][:count], seed=count) for count in range(4)]
    rows = torch.stack([*images, smooth(*GRID, 64)])
    options: dict[str, Any] = {"graph": graph, "split": True}
    singles = [multi_label(image, GRID, **options) for image in rows]
    batch = multi_label(rows, GRID, **options)
    maps = multi_label(rows.transpose(1, 2).unflatten(2, GRID), **options)
    monkeypatch.setattr(selfment.core.ops, "images_at_once", lambda rows, weighted: 2)
    for found in (batch, maps, multi_label(rows, GRID, **options)):
        assert isinstance(found, list)
        for ours, single in zip(found, singles, strict=True):
            assert_same(ours, single)
    assert len({len(single.masks) for single in singles if isinstance(single, Objects)}) >= 3


@pytest.mark.parametrize("count", [0, 2])
def test_numpy_in_numpy_out(count: int) -> None:
    rows = planted(GRID, BOXES[:count], [1, 2][:count])
    ours = multi_label(rows.numpy(), GRID)
    for value in vars(ours).values():
        assert isinstance(value, np.ndarray)
    assert isinstance(ours, Objects)
    assert len(ours.masks) == count
    assert_same(ours, multi_label(rows, GRID))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check(planted(GRID, BOXES, [1, 2, 3]).to(dtype), GRID)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_objects": 0}, "`max_objects` must be an integer >= 1: got 0"),
        ({"max_objects": 1.5}, "`max_objects` must be an integer >= 1: got 1.5"),
        ({"max_cut": -0.1}, "`max_cut` must be a number >= 0: got -0.1"),
        ({"min_area": float("nan")}, "`min_area` must be a number >= 0: got nan"),
        ({"min_area": "half"}, "`min_area` must be a number >= 0: got 'half'"),
        ({"orient": "up"}, "`orient` must be 'seed' or 'corners': got 'up'"),
        ({"tau": float("inf")}, "`tau` must be a finite number: got inf"),
        ({"ipo_iters": -1}, "`ipo_iters` must be an integer from 0"),
        ({"grid": None}, "`grid` is needed with"),
    ],
)
def test_wrong_parameters(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multi_label(torch.ones(20, 3), **{"grid": (4, 5), **arguments})


def test_not_finite() -> None:
    rows = torch.ones(2, 20, 3)
    rows[1, 7, 0] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite.*patch 7 of image 1"):
        multi_label(rows, (4, 5))
