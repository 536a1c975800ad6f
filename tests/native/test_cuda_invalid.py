"""Values that are not finite, or out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import (
    generator,
    smooth,
)
from helpers.cuda import (
    BOTH,
    GRAPHS,
    Target,
    assert_same,
    batch_of,
    edges,
)
from selfment import PseudoLabels
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs, initial_mask
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow


@BOTH
@pytest.mark.parametrize("tau", [0.2, -0.3])
def test_painting_rows_that_are_not_finite(target: Target, tau: float) -> None:
    rows = smooth(6, 13, 20)
    rows[5], rows[71] = float("nan"), float("inf")
    mask = torch.arange(78) % 5 == 0  # the first of the two, and others
    zeroed = rows.masked_fill(mask[:, None], 0)

    def painted(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        made = selfment.affinity(rows, tau=tau).paint(mask)
        return made.bits, made.degrees

    found = target(painted, rows, mask)
    bits, degrees = target(edges, zeroed, tau=tau)[:2]
    assert degrees.isnan().tolist() == [i == 71 for i in range(78)]
    assert torch.equal(found[0], bits)
    assert torch.equal(found[1].nan_to_num(), degrees.nan_to_num())
    assert torch.equal(found[1].isnan(), degrees.isnan())


BAD = [float("nan"), float("inf"), -float("inf"), 0.0, -1.0]


@BOTH
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("grid", [(4, 5), (6, 17)])  # few patches are solved as a whole
def test_a_graph_that_is_not_finite_is_marked(
    target: Target, grid: tuple[int, int], k: int
) -> None:
    """Degrees and weights that no features give: the solver ends, and reads what is there."""
    rows = batch_of(len(BAD) + 1, *grid, 20)
    clean = target(selfment.ncut, rows, k=k)

    def bad_degrees(rows: Tensor) -> Any:
        graph = selfment.affinity(rows)
        graph.degree[torch.arange(len(BAD)), 3] = torch.tensor(BAD).double().to(rows.device)
        pairs = eigenpairs(graph, k)
        return *vars(pairs).values(), *initial_mask(pairs.vectors[:, 0], grid, "corners")

    def bad_weights(rows: Tensor) -> Any:
        graph = selfment.affinity(rows, graph="weighted")
        graph.weights[torch.arange(len(BAD)), 3] = torch.tensor(BAD).to(rows.device)
        return tuple(vars(eigenpairs(graph, k)).values())

    *found, mask, seed = target(bad_degrees, rows)
    for result in found[:4]:
        assert result[:-1].isnan().all()
    assert not found[4][:-1].any()
    assert not mask[:-1].any()
    assert not seed[:-1].any()
    assert torch.equal(found[0][-1], clean[0][-1])
    assert torch.equal(found[1][-1], clean[1][-1].T)
    found = target(bad_weights, rows)
    for result in found[:4]:
        assert result[:3].isnan().all()
        assert result[3:].isfinite().all()
    assert not found[4][:3].any()


@BOTH
@pytest.mark.parametrize(("dtype", "d"), [("bfloat16", 24), ("float32", 24), ("bfloat16", 21)])
@pytest.mark.parametrize("scale", [1e30, 1e17, 1e-13, 1e-30])
def test_products_out_of_range(target: Target, scale: float, dtype: str, d: int) -> None:
    rows = (smooth(9, 15, d) * scale).to(getattr(torch, dtype))
    assert torch.equal(target(edges, rows)[0], selfment.affinity(rows).bits)
    start = torch.rand(135, generator=generator(0)) < 0.5
    assert torch.equal(target(selfment.ipo, rows, start), selfment.ipo(rows, start))


@BOTH
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_an_image_that_is_not_finite_is_marked(target: Target, graph: str, value: float) -> None:
    clean = batch_of(3, 6, 9, 20).double()
    rows = clean.clone()
    rows[1, 17, 3] = value
    options = {"grid": (6, 9), "graph": graph, "tau": "auto", "min_confidence": 0.1}
    label = target(selfment.pseudo_label, rows, **options)
    expected = target(selfment.pseudo_label, clean, **options)
    for image in (0, 2):
        ours, theirs = ([v[image] for v in vars(found).values()] for found in (label, expected))
        assert_same(PseudoLabels(*ours), PseudoLabels(*theirs))
    for field in ("eigenvalue", "gap", "residual", "fiedler", "separation", "confidence"):
        assert getattr(label, field)[1].isnan().all(), field
    for field in ("mask", "ncut_mask", "lanczos_iters", "ipo_iters", "rejected"):
        assert not getattr(label, field)[1].any(), field
    values, vectors = target(selfment.ncut, rows, k=2, graph=graph)
    assert values[1].isnan().all()
    assert vectors[1].isnan().all()
    assert target(edges, rows, graph=graph)[1][1, 17].isnan()
    start = torch.rand(3, 54, generator=generator(0)) < 0.5
    refined, _, separation = target(run_ipo, rows, start, options=IpoOptions())
    assert not refined[1].any()
    assert torch.equal(refined[::2], selfment.ipo(clean, start)[::2])
    assert separation.isnan().tolist() == [False, True, False]
