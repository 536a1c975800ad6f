"""Cuts by landmarks: against the dense reference and the exact cut, and what they promise."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, Case, generator, noise, object_on_ground, smooth
from helpers.joint_rules import flat, frames_of
from helpers.landmark_cases import FRAMES, QUIET, Frames, assert_same, fields_of
from selfment import JointLabels, LandmarkLabels, reference
from selfment.core import block_ops, blocks
from selfment.core.landmarks import fewest, side_margin, stratified
from selfment.core.options import CutOptions

NUMBERS = ("eigenvalue", "gap", "residual", "separation", "confidence", "angle", "turn", "tau")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (64, 64))


# --- The cut ---


@QUIET
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("orient", ["seed", "corners"])
@pytest.mark.parametrize("share", [0.4, 0.75, 1.0])
@pytest.mark.parametrize("name", FRAMES)
def test_follows_the_reference(name: str, share: float, orient: str) -> None:
    features, grids = FRAMES[name]
    count = min(len(features) - 1, int(share * len(features)))
    options: dict[str, Any] = {"orient": orient, "landmarks": count, "landmark_seed": 7}
    ours = selfment.joint_label(features, grids, **options)
    theirs = reference.joint_label(features, grids, **options)
    assert isinstance(ours, LandmarkLabels)
    assert isinstance(theirs, LandmarkLabels)
    a, b = fields_of(ours), fields_of(theirs)
    assert a.keys() == b.keys()
    for field in ("mask", "ncut_mask", "seed", "peaks", "landmarks", "changing", "ipo_iters"):
        assert torch.equal(a[field], b[field]), field
    assert (a["fiedler"] - b["fiedler"]).abs().max() < 1e-5 * b["fiedler"].abs().max()
    for field in NUMBERS:
        assert a[field].item() == pytest.approx(b[field].item(), rel=1e-5, abs=1e-5), field


@QUIET
@pytest.mark.parametrize("tau", [0.0, 0.35, "auto"])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_options_reach_the_cut(tau: Any, eps: float) -> None:
    features, grids = FRAMES["smooth"]
    options: dict[str, Any] = {"tau": tau, "eps": eps, "landmarks": 200, "ipo_iters": 3}
    ours = fields_of(selfment.joint_label(features, grids, **options))
    theirs = fields_of(reference.joint_label(features, grids, **options))
    assert torch.equal(ours["mask"], theirs["mask"])
    assert ours["eigenvalue"].item() == pytest.approx(theirs["eigenvalue"].item(), abs=1e-7)
    assert ours["tau"].item() == theirs["tau"].item()
    if tau == "auto":
        assert torch.equal(ours["tau"], selfment.joint_label(features, grids, tau=tau).tau[None])


def test_all_patches_as_landmarks_are_the_exact_cut() -> None:
    features, grids = FRAMES["different grids"]
    exact = selfment.joint_label(features, grids)
    for count in (len(features), 10**9):
        label = selfment.joint_label(features, grids, landmarks=count)
        assert type(label) is JointLabels
        assert_same(label, exact)
        frames = Frames(features, grids)
        assert_same(selfment.joint_label(frames, grids, landmarks=count), exact)


def test_nearly_all_patches_nearly_give_the_exact_cut() -> None:
    features, grids = frames_of(object_on_ground, (20, 21), (18, 25))
    exact = fields_of(selfment.joint_label(features, grids))
    label = selfment.joint_label(features, grids, landmarks=len(features) - 1)
    ours = fields_of(label)
    assert torch.equal(ours["mask"], exact["mask"])
    assert torch.equal(ours["ncut_mask"], exact["ncut_mask"])
    assert ours["eigenvalue"].item() == pytest.approx(exact["eigenvalue"].item(), rel=1e-3)
    assert ours["angle"].item() < 1
    assert ours["turn"].item() < 1
    assert ours["changing"].item() == 0


def test_a_tenth_of_the_patches_finds_the_object() -> None:
    features, grids = frames_of(object_on_ground, *[(24, 24)] * 4)
    exact = fields_of(selfment.joint_label(features, grids))
    for seed in range(3):
        label = selfment.joint_label(features, grids, landmarks=230, landmark_seed=seed)
        ours = fields_of(label)
        assert (ours["mask"] != exact["mask"]).float().mean() < 0.01
        x, y = ours["fiedler"].double(), exact["fiedler"].double()
        assert (x @ y).abs() / (x.norm() * y.norm()) > 0.98
        assert x.norm().item() == pytest.approx(y.norm().item(), rel=0.1)


def test_landmarks_are_one_of_each_run() -> None:
    grids = [(9, 20), (1, 7), (30, 11)]
    n = sum(h * w for h, w in grids)
    for count in (2, 50, n - 1):
        chosen = stratified(grids, count, generator(3))
        assert len(chosen.unique()) == count
        assert torch.equal(chosen, chosen.sort().values)
        assert int(chosen[0]) >= 0
        assert int(chosen[-1]) < n
        for first, size in ((0, 180), (180, 7), (187, 330)):
            inside = int(((chosen >= first) & (chosen < first + size)).sum())
            assert abs(inside - count * size / n) <= 1
    assert not torch.equal(stratified(grids, 50, generator(3)), stratified(grids, 50, generator(4)))


# --- The kernel ---


def ties() -> Tensor:
    """Rows of small integers: thousands of similarities are exactly 1 / 2."""
    rows = torch.randint(-1, 2, (700, 8), generator=generator(1)).float()
    rows[::50] = 0
    return rows


KERNEL_CASES: dict[str, Case] = {
    "ties": (ties(), (7, 100)),
    "large": CASES["large"],
    "outlier channels": CASES["outlier channels"],
    "d = 1": CASES["d = 1"],
    "all equal": DEGENERATE["all equal"],
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.5, 0.2, -0.3])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_edges_are_those_of_the_graph(name: str, tau: float, dtype: torch.dtype) -> None:
    features = KERNEL_CASES[name][0].to(dtype)
    n, cut = len(features), CutOptions(tau=tau, eps=1e-3)
    dense = selfment.affinity(features, tau=tau, eps=1e-3).to_dense()
    chosen = torch.arange(n)[1::3]
    x = torch.randn(3, len(chosen), dtype=torch.float64, generator=generator(2))
    means = torch.empty(3, n, dtype=torch.float64)
    gathered = block_ops.LandmarkSums.zeros(3, len(chosen), features.device)
    for first in range(0, n, 130):
        rows, part = features[first : first + 130], means[:, first : first + 130]
        assert block_ops.landmarks(rows, features[chosen], cut, x, part, gathered) == -1
    A = dense[:, chosen]
    edges = (A > 0.5).double()
    assert torch.equal(gathered.edges, edges.sum(0).long())
    torch.testing.assert_close(means, (A @ x.T / A.sum(1, keepdim=True)).T)
    torch.testing.assert_close(gathered.sums, means @ edges)
    torch.testing.assert_close(gathered.totals, means.sum(1))


def test_landmarks_that_do_not_fit_into_the_scratch_memory_at_once() -> None:
    """Panels of d = 60,000 hold 3 words of landmarks at a time."""
    features = torch.randn(400, 60_000, generator=generator(5))
    features[:, :20] *= 40
    gathered = block_ops.LandmarkSums.zeros(1, 400, features.device)
    means = torch.ones(1, 400, dtype=torch.float64)
    cut = CutOptions(tau=0.2)
    assert block_ops.landmarks(features, features, cut, None, means, gathered) == -1
    bits = selfment.affinity(features)
    assert torch.equal(gathered.edges.double(), (bits.degrees / (1 - 1e-5)).floor())
    assert torch.equal(gathered.sums[0], gathered.edges.double())


@pytest.mark.parametrize("size", [64, 200, 5000])
def test_ipo_in_blocks_is_ipo(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (size, size))
    features, grids = FRAMES["smooth"]
    start = torch.rand(1, len(features), generator=generator(3)) < 0.4
    parts = blocks.array_blocks(selfment.core.frames.as_frames(features, grids)[0])
    options = selfment.core.options.IpoOptions()
    ours = selfment.core.ipo.run_ipo(parts, start, options)
    theirs = selfment.core.ipo.run_ipo(features[None], start, options)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2])


@QUIET
def test_threads_do_not_matter() -> None:
    """More than one block and many strips, on 1 to 5 threads."""
    features, grids = smooth(90, 105, 24, seed=3), [(45, 105), (45, 105)]
    before = torch.get_num_threads()
    labels = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            labels.append(selfment.joint_label(features, grids, landmarks=900))
    finally:
        torch.set_num_threads(before)
    for label in labels[1:]:
        assert_same(label, labels[0])


# --- Inputs without a good answer ---


@pytest.mark.parametrize("name", ["all equal", "all zero"])
def test_patches_without_a_difference_are_not_cut(name: str) -> None:
    features, (h, w) = DEGENERATE[name]
    with pytest.warns(RuntimeWarning, match="all patches have the same landmark neighbours"):
        label = selfment.joint_label(features, [(h, w)], landmarks=h * w // 2)
    assert label.confidence.item() == 0
    assert label.gap.item() == 0
    assert flat(label.mask).all() or not flat(label.mask).any()


@QUIET
@pytest.mark.parametrize("count", [2, 3, 4, 5, 50, 99])
@pytest.mark.parametrize("name", [name for name in CASES | DEGENERATE if name != "one patch"])
def test_any_number_of_landmarks_has_finite_results(name: str, count: int) -> None:
    features, (h, w) = (CASES | DEGENERATE)[name]
    label = selfment.joint_label(features, [(h, w)], landmarks=count)
    repeated = selfment.joint_label(features, [(h, w)], landmarks=count)
    assert_same(label, repeated)
    if isinstance(label, LandmarkLabels):
        for value in fields_of(label).values():
            assert value.double().isfinite().all()
        assert 0 <= label.eigenvalue.item() <= 2
        assert 0 <= label.changing.item() <= 1
        assert 0 <= label.angle.item() <= 90


@QUIET
def test_a_value_that_no_eigenvalue_has_is_not_chosen() -> None:
    """Some combination is nearly constant at these eight landmarks, and only there."""
    features, grid = CASES["large"]
    label = selfment.joint_label(features, [grid], landmarks=8)
    assert 0.1 < label.eigenvalue.item() < 0.9


def test_a_group_with_few_landmarks_is_said() -> None:
    """40 of 1,200 patches, of which about a tenth are landmarks."""
    rows = 0.3 * torch.randn(1200, 16, generator=generator(0))
    rows[:, 0] += 1
    rows[500:540] = 0.1 * torch.randn(40, 16, generator=generator(1))
    rows[500:540, 1] += 1
    with pytest.warns(RuntimeWarning, match=r"^the cut separates a group with only \d of the 120"):
        selfment.joint_label(rows, [(20, 20)] * 3, landmarks=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selfment.joint_label(rows, [(20, 20)] * 3, landmarks=1000)


def test_the_fewest_landmarks_are_in_the_initial_mask_or_on_the_other_side() -> None:
    mask, upper = (torch.arange(9) < count for count in (2, 5))
    landmarks = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    assert fewest(landmarks, mask, upper, 1) == 2
    assert fewest(landmarks[:5], mask, upper, 1) == 1
    assert fewest(landmarks, upper, upper, 1) == 3


@QUIET
def test_too_few_landmarks_say_so() -> None:
    features, grids = frames_of(smooth, *[(20, 20)] * 6)
    with pytest.warns(RuntimeWarning, match="30 landmarks do not determine the eigenvector"):
        label = selfment.joint_label(features, grids, landmarks=30)
    assert label.angle.item() == 90


@QUIET
def test_a_side_that_was_hardly_chosen_is_said() -> None:
    features = smooth(20, 20, 24, 12)
    with pytest.warns(RuntimeWarning, match=r"nearly chosen .*: side_margin is 0\.031$"):
        label = selfment.joint_label(features, [(20, 20)], landmarks=200)
    assert label.side_margin.item() == pytest.approx(0.031, abs=5e-4)


@QUIET
def test_equal_eigenvalues_determine_no_vector() -> None:
    """Most patches have no neighbour: the gap and the residual are both rounding."""
    features = torch.nn.functional.normalize(object_on_ground(16, 16, 24), dim=1)
    features += 0.16 * noise(16, 16, 24)
    with pytest.warns(RuntimeWarning, match="landmarks do not determine the eigenvector"):
        label = selfment.joint_label(features, [(16, 16)], tau=0.95, landmarks=200)
    assert label.gap.item() < 1e-9
    assert label.residual.item() < label.gap.item()
    assert label.angle.item() == 90


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bad", [0, 99, 299])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(bad: int, value: float) -> None:
    features = smooth(15, 20, 12)
    features[bad, 3] = value
    for count in (20, 299):
        with pytest.raises(ValueError, match=f"patch {bad % 100} of image {bad // 100}$"):
            selfment.joint_label(features, [(5, 20)] * 3, landmarks=count)


def test_margin_of_the_side() -> None:
    x = torch.tensor([4.0, 3.0, -1.0, -3.0, -2.0, -1.0], dtype=torch.float64)
    assert side_margin(x, x > 0, [(2, 3)], False) == 0.25
    # The corners have 4, -1, -3, -1: a quarter is on the side of the seed.
    assert side_margin(x, x > 0, [(2, 3)], True) == 0.5
    # 4, 3, -2, -1: half of them are, so the seed decides too.
    assert side_margin(x, x > 0, [(3, 2)], True) == 0.25


F = smooth(4, 6, 3)


@pytest.mark.parametrize(
    ("features", "grid", "options", "message"),
    [
        (F, [(4, 6)], {"landmarks": 1}, "`landmarks` must be an integer >= 2: got 1"),
        (F, [(4, 6)], {"landmarks": 2.5}, "`landmarks` must be an integer >= 2: got 2.5"),
        (F, [(4, 6)], {"landmarks": 9, "landmark_seed": -1}, "`landmark_seed` must be .*: got -1"),
        (F, [(4, 6)], {"landmarks": 9, "graph": "weighted"}, "None with a weighted graph: got 9"),
        (F, [(4, 6)], {"landmark_seed": 7}, "`landmark_seed` must be 0 without `landmarks`: got 7"),
        ([F, F], [(4, 6)], {"landmarks": 9}, "got 1 for 2 frames"),
        (Frames(F, [(2, 6)] * 2), [(2, 6)] * 3, {"landmarks": 9}, "got 3 for 2 frames"),
        (Frames(F, [(2, 6)] * 2), (2, 6), {"landmarks": 9}, "features that have no length"),
        ([F, F[:8]], (4, 6), {"landmarks": 9}, r"got \(4, 6\) for N = 8 in frame 1"),
        ([F, F.double()], (4, 6), {"landmarks": 9}, "one d, dtype and device .* for frame 1"),
        ([F, F[None]], (4, 6), {"landmarks": 9}, r"got shape \(1, 24, 3\) for frame 1"),
        ([], (4, 6), {"landmarks": 9}, "got no frames"),
    ],
)
def test_errors_name_the_rule(
    features: Any, grid: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        selfment.joint_label(features, grid, **options)
