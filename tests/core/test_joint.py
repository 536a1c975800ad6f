"""One cut through several frames: against a literal dense re-implementation, and its promises."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers import processes
from helpers.cases import CASES, DEGENERATE, generator, isolated, noise, outliers, smooth
from helpers.folders import ROOT
from helpers.joint_rules import (
    NOTHING,
    Grids,
    assert_follows,
    box,
    expected,
    flat,
    frames_of,
    initial_masks,
)
from selfment import JointLabels, PseudoLabels, reference
from selfment.core import ops as _ops

EXAMPLE = ROOT / "examples" / "joint_frames.py"
GRAPHS = ("binary", "weighted")
ORIENTS = ("seed", "corners")
MAPS = ("mask", "ncut_mask", "fiedler")


def planted(*frames: Tensor, spread: float = 0.6) -> tuple[Tensor, Grids]:
    """Frames of three orthogonal kinds of patch, the same in all frames but for noise."""
    kinds = torch.cat([frame.flatten() for frame in frames])
    centres = torch.linalg.qr(torch.randn(40, 3, generator=generator(5)))[0].T * math.sqrt(40)
    own = spread * torch.randn(len(kinds), 40, generator=generator(6))
    return centres[kinds] + own, [(16, 18)] * len(frames)


FRAMES: dict[str, tuple[Tensor, Grids]] = {
    "smooth": frames_of(smooth, (12, 12), (12, 12), (12, 12)),
    "different grids": frames_of(smooth, (5, 7), (9, 4), (1, 6), (12, 12)),
    "noise, N = 129": frames_of(noise, (3, 20), (23, 3)),
    "one patch per frame": frames_of(smooth, (3, 30), *[(1, 1)] * 70),
    "isolated patches": frames_of(isolated, (9, 11), (10, 8), (7, 7)),
    "outlier channels": frames_of(outliers, (8, 8), (9, 9)),
    "one frame": (CASES["object"][0], [CASES["object"][1]]),
    "a frame without the object": planted(
        box(slice(4, 12), slice(5, 11)), NOTHING, box(slice(2, 9), slice(3, 16))
    ),
    "three quarters of the corners": planted(
        box(slice(0, 6), slice(0, 18)), box(slice(0, 9), slice(0, 5)), spread=0.2
    ),
    "130 frames": (smooth(4, 130, 24, seed=2), [(2, 2)] * 130),
}


def assert_same(ours: Any, theirs: Any, kind: type = PseudoLabels) -> None:
    for field in fields(kind):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        assert len(a) == len(b) if isinstance(a, list) else True
        pairs = zip(a, b, strict=True) if isinstance(a, list) else [(a, b)]
        for x, y in pairs:
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y)), field.name


@pytest.mark.slow
@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", FRAMES)
def test_follows_the_rules(name: str, graph: str, orient: str) -> None:
    features, grids = FRAMES[name]
    wanted = expected(features, grids, graph, orient)
    for joint_label in (selfment.joint_label, reference.joint_label):
        label = joint_label(features, grids, graph=graph, orient=orient)
        assert isinstance(label, JointLabels)
        assert [part.shape for part in label.mask] == grids
        assert_follows(label, wanted)
        assert label.eigenvalue.item() == pytest.approx(wanted["eigenvalue"], abs=1e-7)
        assert label.residual.item() < 1e-7
        error = (flat(label.fiedler).numpy() - wanted["fiedler"]) / np.abs(wanted["fiedler"]).max()
        # float32 weights move a vector by 1e-8 over its gap.
        assert np.abs(error).max() < max(1e-6, 1e-8 / label.gap.item())


@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", [name for name in DEGENERATE if name != "one patch"])
def test_degenerate_cuts_follow_from_their_vector(name: str, graph: str, orient: str) -> None:
    features, (h, w) = DEGENERATE[name]
    grids = [(h - 2, w), (1, w), (1, w)]
    x = selfment.ncut(features, graph=graph)[1][:, 0].numpy()
    label = selfment.joint_label(features, grids, graph=graph, orient=orient)
    assert_follows(label, expected(features, grids, graph, orient, x))


@pytest.mark.slow
@pytest.mark.parametrize("orient", ORIENTS)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", CASES | DEGENERATE)
def test_one_frame_is_the_image_alone(name: str, graph: str, orient: str) -> None:
    features, grid = (CASES | DEGENERATE)[name]
    options: Any = {"graph": graph, "orient": orient}
    alone = selfment.pseudo_label(features, grid, **options)
    joint = selfment.joint_label(features, [grid], **options)
    assert_same(joint.frame(0), alone)
    assert torch.equal(joint.seed, alone.seed)
    assert_same(
        reference.joint_label(features, [grid], **options).frame(0),
        reference.pseudo_label(features, grid, **options),
    )


def test_a_single_patch_in_all_is_foreground() -> None:
    label = selfment.joint_label(torch.ones(1, 4), [(1, 1)])
    assert label.mask[0].item()
    assert label.eigenvalue.item() == 0


def test_equal_frames_stacked() -> None:
    features, grids = FRAMES["smooth"]
    listed = selfment.joint_label(features, grids)
    rows = features.unflatten(0, (3, -1))
    maps = rows.transpose(1, 2).unflatten(2, (12, 12))
    for stacked in (
        selfment.joint_label(rows, (12, 12)),
        selfment.joint_label(maps),
        selfment.joint_label(maps, (12, 12)),
    ):
        for name in MAPS:
            assert torch.equal(getattr(stacked, name), torch.stack(getattr(listed, name)))
        for field in fields(JointLabels):
            if field.name not in MAPS:
                assert torch.equal(getattr(stacked, field.name), getattr(listed, field.name))
        assert_same(stacked.frame(1), listed.frame(1))
    assert not torch.equal(stacked.mask, selfment.pseudo_label(maps).mask)


def test_a_list_of_frames_is_the_same_as_all_their_patches() -> None:
    features, grids = FRAMES["different grids"]
    parts = list(features.split([h * w for h, w in grids]))
    for joint_label in (selfment.joint_label, reference.joint_label):
        assert_same(joint_label(parts, grids), joint_label(features, grids), JointLabels)
    numpy = selfment.joint_label([part.numpy() for part in parts], grids)
    assert isinstance(numpy.mask[1], np.ndarray)
    assert_same(numpy, selfment.joint_label(features, grids), JointLabels)
    equal, (grid, *_) = FRAMES["smooth"]
    of_one_grid = selfment.joint_label(tuple(equal.chunk(3)), grid)
    assert_same(of_one_grid, selfment.joint_label(equal, [grid] * 3), JointLabels)


def test_numpy_in_numpy_out() -> None:
    features, grids = FRAMES["different grids"]
    torch_label = selfment.joint_label(features, grids)
    for grid in (grids, tuple(grids), np.array(grids)):
        label = selfment.joint_label(features.numpy(), grid)
        for field in fields(JointLabels):
            found = getattr(label, field.name)
            for part in found if isinstance(found, list) else [found]:
                assert isinstance(part, np.ndarray | np.generic), field.name
        assert_same(label, torch_label, JointLabels)
        assert label.frame(2).mask.shape == (1, 6)
        assert label.frame(2).seed == label.peaks[2] != label.seed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    features, grids = FRAMES["different grids"]
    rows = features.to(dtype)
    assert_follows(selfment.joint_label(rows, grids), expected(rows, grids, "binary", "seed"))


def test_parameters_are_passed_on() -> None:
    features, grids = FRAMES["smooth"]
    for arguments in ({"tau": 0.4}, {"eps": 0.1}, {"ipo_iters": 1}, {"ipo_min_count": 200}):
        ours = selfment.joint_label(features, grids, **arguments)
        dense = reference.joint_label(features, grids, **arguments)
        assert torch.equal(flat(ours.mask), flat(dense.mask)), arguments
        assert torch.equal(ours.ipo_iters, dense.ipo_iters)
    plain = selfment.joint_label(features, grids, ipo_iters=0)
    assert torch.equal(flat(plain.mask), flat(plain.ncut_mask))


def accuracy(mask: Tensor, truth: Tensor) -> float:
    return (mask == truth).float().mean().item()


def test_a_frame_that_alone_gives_the_other_side_follows_the_first() -> None:
    kinds = (box(slice(5, 11), slice(7, 12)), box(slice(1, 15), slice(2, 16)))
    features, grids = planted(*kinds)
    alone = selfment.pseudo_label(features[16 * 18 :], grids[1])
    assert accuracy(alone.mask, kinds[1] == 1) < 0.03
    label = selfment.joint_label(features, grids)
    for mask, kind in zip(label.mask, kinds, strict=True):
        assert accuracy(mask, kind == 1) > 0.97


def test_an_object_that_a_frame_alone_misses_is_found() -> None:
    """In the second frame there is more of another thing than of the object."""
    large, small = box(slice(5, 11), slice(7, 12)), box(slice(8, 10), slice(8, 11))
    kinds = (large, box(slice(0, 4), slice(13, 18), 2, of=small))
    features, grids = planted(*kinds, spread=0.1)
    alone = selfment.pseudo_label(features[16 * 18 :], grids[1])
    assert torch.equal(alone.ncut_mask, kinds[1] == 2)
    label = selfment.joint_label(features, grids)
    for mask, kind in zip(label.ncut_mask, kinds, strict=True):
        assert torch.equal(mask, kind == 1)
    assert label.mask[1][kinds[1] == 1].all()


def test_a_frame_without_the_side_is_empty() -> None:
    object_ = box(slice(4, 12), slice(5, 11))
    label = selfment.joint_label(*planted(object_, NOTHING))
    assert torch.equal(label.ncut_mask[0], object_ == 1)
    assert label.peaks[1].item() == -1
    assert not label.ncut_mask[1].any()
    assert not label.mask[1].any()


def test_initial_masks_of_any_vector() -> None:
    """Few values: many components, equal peaks, patches on the mean; in 1 to 70 frames."""
    rng = np.random.default_rng(0)
    met = set()
    for trial in range(300):
        count = 70 if trial % 50 == 0 else trial % 5 + 1
        sides = rng.integers(1, 7, (count, 2)).tolist()
        grids = [(h, w) for h, w in sides]
        levels = int(rng.integers(1, 9))
        x = rng.integers(-levels, levels + 1, sum(h * w for h, w in grids)) / 8
        x += (trial % 3 - 1) * (rng.random(len(x)) < 0.7)
        for orient in ORIENTS:
            wanted = initial_masks(x, grids, orient)
            mask, seed, peaks = _ops.components(
                torch.from_numpy(x)[None], grids, orient == "corners"
            )
            assert mask[0].tolist() == wanted[0].tolist()
            assert (seed.item(), peaks[0].tolist()) == wanted[1:]
            dense = reference._initial_masks(torch.from_numpy(x), grids, orient == "corners")
            assert all(map(torch.equal, dense, (mask[0], seed[0], peaks[0])))
            met.add((orient, x[wanted[1]] > x.mean(), -1 in wanted[2]))
    assert len(met) == 8


def test_the_seed_stands_for_its_frame() -> None:
    """Also where rounding makes another patch of its side the first among nearly equal ones."""
    x = np.array([0.99999988, -0.2, 0.99999995, -0.2, -1.0, 0.3, -0.9])
    for grids in ([(1, 7)], [(1, 5), (1, 2)]):
        mask, seed, peaks = _ops.components(torch.from_numpy(x)[None], grids, False)
        assert mask[0, :5].tolist() == [False, False, True, False, False]
        assert (seed.item(), peaks[0, 0].item()) == (2, 2)


@pytest.mark.slow
def test_photographs_follow_the_rules(photos: list[Path]) -> None:
    from selfment.backbones import load_backbone
    from selfment.images.load import load_image

    backbone = load_backbone("classic")
    tokens = torch.cat(
        [backbone(backbone.preprocess(load_image(p)[0], 320)[None]) for p in photos[::25][:4]]
    )
    grid = backbone.grid(320)
    for graph in GRAPHS:
        for orient in ORIENTS:
            label = selfment.joint_label(tokens, grid, graph=graph, orient=orient)
            rows = tokens.flatten(0, 1)
            assert_follows(label, expected(rows, [grid] * len(tokens), graph, orient))


F = noise(4, 5, 3)


@pytest.mark.parametrize(
    ("features", "grid", "message"),
    [
        (
            F,
            [(2, 5), (3, 5)],
            r"`grid` must satisfy h\*w == N, summed over the frames: "
            r"got 25 patches in 2 frames for N = 20",
        ),
        (F, (4, 5), r"`grid` must be a list of \(h, w\), one for each frame.*got \(4, 5\)"),
        (F, None, r"`grid` must be a list of \(h, w\).*got None"),
        (F, [], r"`grid` must be a list of \(h, w\).*got \[\]"),
        (F, [(2, 5), (2, 5, 1)], r"`grid` must be two positive integers.*got \(2, 5, 1\)"),
        (F, [(4, 5), (0, 3)], r"`grid` must be two positive integers.*got \(0, 3\)"),
        (F[None], [(4, 5)], r"`grid` must be one \(h, w\), that of every frame.*got \[\(4, 5\)\]"),
        (F[None], (4, 4), r"`grid` must satisfy h\*w == N: got \(4, 4\) for N = 20"),
        (F[None], None, r"`grid` is needed with \(N, d\) and \(B, N, d\) features"),
        (F.reshape(1, 3, 4, 5), (5, 4), r"`grid` must equal the last two axes"),
        (F.reshape(1, 3, 4, 5), [(4, 5)], r"`grid` must be one \(h, w\)"),
        ([], [], "`features` must not be empty: got a list of no frames"),
        ([F, F], None, r"`grid` must be two positive integers \(h, w\): got None"),
        ([F, F], [(4, 5)], r"`grid` must be one .*: got 1 for 2 frames"),
        ([F, F[:8]], (4, 5), r"h\*w == N: got \(4, 5\) for N = 8 in frame 1"),
        ([F, F[None]], (4, 5), r"a list of \(N, d\).*: got shape \(1, 20, 3\) for frame 1"),
        (
            [F, F[:, :2]],
            (4, 5),
            "one d, dtype and device .*: got d = 3, float32 on cpu for frame 0 and "
            "d = 2, float32 on cpu for frame 1",
        ),
        ([F, F.double()], (4, 5), "got d = 3, float32 on cpu for frame 0 and d = 3, float64"),
    ],
)
def test_errors(features: Any, grid: Any, message: str) -> None:
    for joint_label in (selfment.joint_label, reference.joint_label):
        with pytest.raises(ValueError, match=message):
            joint_label(features, grid)


def test_a_list_of_grids_is_for_joint_cuts() -> None:
    with pytest.raises(ValueError, match=r"`grid` must be two positive integers \(h, w\)"):
        selfment.pseudo_label(F, [(2, 5), (2, 5)])
    with pytest.raises(ValueError, match="`orient` must be 'seed' or 'corners': got 'up'"):
        selfment.joint_label(F, [(4, 5)], orient="up")
    with pytest.raises(TypeError, match="`features` must be float16"):
        selfment.joint_label(F.int(), [(4, 5)])


def test_a_patch_that_is_not_finite_is_named_with_its_frame() -> None:
    features, grids = (
        part.copy() if isinstance(part, list) else part.clone()
        for part in FRAMES["different grids"]
    )
    features[35 + 36 + 4, 2] = math.nan
    with pytest.raises(ValueError, match="in patch 4 of image 2"):
        selfment.joint_label(features, grids)


@pytest.mark.slow
def test_the_example_finds_the_disc_in_all_frames(tmp_path: Path) -> None:
    done = processes.run([sys.executable, EXAMPLE, "--out", tmp_path], check=True)
    shares = re.findall(r"frame \d: (\d+)% foreground, (\d+)% alone", done.stdout)
    joint, alone = zip(*(map(int, pair) for pair in shares), strict=True)
    assert list(joint) == sorted(joint)
    assert joint[-1] > 50 > alone[-1]
    assert len(list(tmp_path.glob("frame*.jpg"))) == len(joint) == 5
    again = processes.run(
        [sys.executable, EXAMPLE, *sorted(tmp_path.iterdir())[:2], "--size", "160"],
        check=True,
    )
    assert again.stdout.startswith("2 frames of 10 x 10: Ncut ")
