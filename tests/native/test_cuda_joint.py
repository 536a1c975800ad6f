"""Joint labels of several frames."""

from __future__ import annotations

import pytest
import torch

import selfment
from helpers.cases import (
    generator,
    smooth,
)
from helpers.cuda import (
    BOTH,
    GRAPHS,
    ORIENTS,
    Target,
    batch_of,
)
from selfment.core import native as _native
from selfment.core import ops as _ops
from selfment.core import options as _params

pytestmark = pytest.mark.slow


FRAMES = [(5, 7), (9, 4), (1, 6), (12, 12), *[(1, 2)] * 140]


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("orient", ORIENTS)
def test_joint_labels(target: Target, graph: str, orient: str) -> None:
    rows = smooth(1, sum(h * w for h, w in FRAMES), 32)
    options = {"grid": FRAMES, "graph": graph, "orient": orient}
    ours = target(selfment.joint_label, rows, **options)
    expected = selfment.joint_label(rows, **options)
    for name in ("mask", "ncut_mask"):
        assert all(map(torch.equal, getattr(ours, name), getattr(expected, name))), name
    for name in ("seed", "peaks", "ipo_iters"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    torch.testing.assert_close(ours.eigenvalue, expected.eigenvalue, rtol=0, atol=1e-7)


@BOTH
def test_joint_masks_of_vectors_with_equal_values(target: Target) -> None:
    for trial in range(24):
        rng = generator(trial)
        count = 130 if trial % 8 == 0 else trial % 5 + 1
        grids = [(h, w) for h, w in torch.randint(1, 7, (count, 2), generator=rng).tolist()]
        n, levels = sum(h * w for h, w in grids), trial % 8 + 1
        x = torch.randint(-levels, levels + 1, (3, n), generator=rng).double() / 8
        for corners in (False, True):
            found = target(_ops.components, x, grids=grids, corners=corners)
            wanted = _ops.components(x, grids, corners)
            assert all(map(torch.equal, found, wanted)), (trial, corners)


@BOTH
def test_joint_frames_that_are_not_finite_are_marked(target: Target) -> None:
    rows = batch_of(3, 6, 9, 20)
    rows[1, 17, 3] = float("nan")
    label = target(selfment.joint_label, rows, grid=(6, 9))
    assert not label.mask.any()
    assert not label.ncut_mask.any()
    assert label.peaks.tolist() == [-1] * 3
    assert label.eigenvalue.isnan()
    assert label.fiedler.isnan().all()


@BOTH
def test_the_rules_for_ties_are_the_same(target: Target) -> None:
    module = target.emulated or _native.cuda()
    assert module.PEAK_TIE == _params.SEED_TIE
    assert module.IPO_TIE == _params.IPO_TIE
    assert module.DTYPES == _native.cpu().DTYPES
    assert module.__version__ == selfment.__version__
