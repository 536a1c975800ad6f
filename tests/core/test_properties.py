"""Properties that hold for any input: drawn by Hypothesis, checked against literal rules.

The same examples each time; HYPOTHESIS_PROFILE=long draws thousands of new ones.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import selfment
from helpers.drawn import EPS, TAUS, checked, grids, layouts, rows
from selfment import reference
from selfment.evaluation import metrics

GRAPHS = st.sampled_from(["binary", "weighted"])
ORIENTS = st.sampled_from(["seed", "corners"])


@st.composite
def problems(draw, least: int = 1) -> tuple[Tensor, Any, tuple[int, int]]:
    """Features, the same in another layout, and their grid."""
    grid = draw(grids())
    n = grid[0] * grid[1]
    assume(n >= least)
    values = draw(rows(n))
    return values, draw(layouts(values)), grid


def exact(unit: Tensor, i: int, j: int) -> Fraction:
    """The inner product of two float32 rows, without any rounding."""
    pairs = zip(unit[i].tolist(), unit[j].tolist(), strict=True)
    return sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))


def simple(values: Tensor) -> bool:
    """Whether the Fiedler value is not repeated, by far: LAPACK's vector is the only one."""
    return bool(values[1] > 1e-6) and (len(values) < 3 or bool(values[2] - values[1] > 1e-4))


def tied(x: Tensor, share: float) -> bool:
    """Whether rounding decides on a patch's side or, between sides, on the seed."""
    margin = share * x.abs().max()
    peaks = x[x.abs() >= x.abs().max() - margin]
    return bool(((x - x.mean()).abs() < margin).any() or peaks.min() * peaks.max() < 0)


def as_torch(value: Any) -> Tensor:
    return torch.as_tensor(value)


@checked
@given(problems(), TAUS, EPS, st.randoms(use_true_random=False))
def test_edges_are_those_of_exact_arithmetic(problem, tau, eps, random) -> None:
    values, given_, _ = problem
    dense = as_torch(selfment.affinity(given_, tau=tau, eps=eps).to_dense())
    edges = dense > (1 + eps) / 2
    expected = reference.affinity(values, tau=tau, eps=eps) > (1 + eps) / 2
    unit = reference.normalize(values)
    n = len(values)
    # Where the reference's own float64 sum may be wrong, and at some other pairs, by fractions.
    wrong = (edges != expected).nonzero().tolist()
    drawn = [(random.randrange(n), random.randrange(n)) for _ in range(5)]
    for i, j in [*wrong[:20], *drawn]:
        assert bool(edges[i, j]) == (exact(unit, i, j) > Fraction(tau)), (i, j)
    torch.testing.assert_close(dense, edges.double().clamp(min=eps), rtol=1e-12, atol=1e-12)
    assert torch.equal(dense, dense.T)


@checked
@given(problems(), st.floats(0.01, 1.0), EPS)
def test_weights_are_the_similarities(problem, tau, eps) -> None:
    values, given_, _ = problem
    graph = selfment.affinity(given_, tau=tau, eps=eps, graph="weighted")
    dense = as_torch(graph.to_dense())
    unit = reference.normalize(values).double()
    similarity = unit @ unit.T
    sure = (similarity - tau).abs() > 1e-12
    expected = torch.where(similarity >= tau, similarity, eps)
    assert ((dense - expected).abs() * sure).max() < 1e-6
    torch.testing.assert_close(as_torch(graph.degrees), dense.sum(1), rtol=1e-11, atol=0)


@checked
@given(problems(least=2), TAUS, EPS, GRAPHS, st.integers(1, 4))
def test_pairs_solve_the_problem(problem, tau, eps, graph, k) -> None:
    values, given_, _ = problem
    assume(k < len(values) and (graph == "binary" or tau > 0))
    made = selfment.affinity(given_, tau=tau, eps=eps, graph=graph)
    A = as_torch(made.to_dense())
    found, vectors = (as_torch(part) for part in selfment.ncut(made, k=k))
    degree = A.sum(1)
    error = degree[:, None] * vectors - A @ vectors - found * degree[:, None] * vectors
    assert (error / degree.sqrt()[:, None]).norm(dim=0).max() < 1e-7
    gram = vectors.T @ (degree[:, None] * vectors)
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-6)
    trivial = (degree / degree.sum().sqrt()) @ vectors
    assert trivial.abs().max() < 1e-6
    scale = degree.rsqrt()
    spectrum = 1 - torch.linalg.eigvalsh(scale[:, None] * A * scale).flip(0)
    torch.testing.assert_close(found, spectrum[1 : k + 1], rtol=0, atol=1e-7)
    peaks = vectors.gather(0, vectors.abs().argmax(0)[None])
    assert (vectors.max(0).values >= peaks.abs() * (1 - 1e-6)).all()


@checked
@given(problems(), st.integers(0, 2**32 - 1), st.integers(0, 25), st.integers(1, 12))
def test_ipo_is_the_references(problem, seed, iters, least) -> None:
    values, given_, grid = problem
    labels = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.4
    unit = reference.normalize(values).double()
    # A tie but for rounding may fall to either side: not of these features.
    state = labels
    for step in range(iters):
        if state.all() or not state.any():
            break
        margin = unit @ (unit[state].mean(0) - unit[~state].mean(0))
        assume(not ((margin.abs() > 1e-15) & ((margin - 1e-12).abs() < 1e-11)).any())
        state = reference.ipo(values, labels, iters=step + 1, min_count=least)
    expected = reference.ipo(values, labels, iters=iters, min_count=least)
    for given_labels in (labels, labels.numpy(), labels.long(), labels.reshape(grid)):
        found = selfment.ipo(given_, given_labels, iters=iters, min_count=least)
        assert type(found) is type(given_labels)
        assert found.dtype == given_labels.dtype
        assert torch.equal(as_torch(found).flatten().bool(), expected)


@checked
@given(problems(least=2), TAUS, EPS, GRAPHS, ORIENTS, st.integers(0, 20), st.integers(1, 12))
def test_labels_are_the_references(problem, tau, eps, graph, orient, iters, least) -> None:
    values, given_, grid = problem
    assume(graph == "binary" or tau > 0)
    options = {"tau": tau, "eps": eps, "graph": graph, "orient": orient}
    options |= {"ipo_iters": iters, "ipo_min_count": least}
    ours = selfment.pseudo_label(given_, grid, **options)
    mask, initial = (as_torch(part) for part in (ours.mask, ours.ncut_mask))
    assert mask.shape == initial.shape == grid
    assert as_torch(ours.residual) < 1e-7
    # From the vector on, whatever the vector is.
    vectors = as_torch(selfment.ncut(given_, tau=tau, eps=eps, graph=graph)[1])
    again, seed = reference._initial_mask(vectors[:, 0], grid, orient)
    if not tied(vectors[:, 0], 1e-12):
        assert torch.equal(initial, again)
        assert as_torch(ours.seed) == seed
    # And as a whole where the vector is determined, and nothing is a tie but for rounding.
    A = as_torch(selfment.affinity(given_, tau=tau, eps=eps, graph=graph).to_dense())
    spectrum, dense = reference._eigenpairs(A)
    x = dense[:, 1]
    # LAPACK's entry of a patch without edges is rounding, magnified: its degree is N * eps.
    assume(eps >= 1e-5 or bool((A.sum(1) > 0.5).all()))
    assume(simple(spectrum) and not tied(x, 1e-5))
    expected = reference.pseudo_label(values, grid, **options)
    assume(torch.equal(reference.affinity(values, tau=tau, eps=eps, graph=graph) > eps, eps < A))
    assert torch.equal(initial, expected.ncut_mask)
    assert abs(float(ours.eigenvalue) - float(expected.eigenvalue)) < 1e-6
    unit = reference.normalize(values).double()
    state = expected.ncut_mask.flatten()
    if iters and state.any() and not state.all():
        scores = unit @ (unit[state].mean(0) - unit[~state].mean(0))
        assume(not ((scores - 1e-12).abs() < 1e-11).any())
        assert torch.equal(mask, expected.mask)


@checked
@given(problems(), GRAPHS, ORIENTS, st.booleans())
def test_objects_are_disjoint_and_counted(problem, graph, orient, split) -> None:
    _, given_, grid = problem
    found = selfment.multi_label(given_, grid, graph=graph, orient=orient, split=split)
    masks, instances = as_torch(found.masks), as_torch(found.instances)
    assert masks.shape == (len(found.eigenvalues), *grid)
    assert (masks.sum(0) <= 1).all()
    for number, (mask, box) in enumerate(zip(masks, as_torch(found.boxes), strict=True), 1):
        assert mask.sum() > 0.01 * mask.numel()
        assert torch.equal(instances == number, mask)
        ys, xs = mask.nonzero().T
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert mask.flatten()[as_torch(found.seeds)[number - 1]]
    assert torch.equal(instances > 0, masks.any(0))
    assert (as_torch(found.eigenvalues) <= 0.5).all()


@checked
@given(problems(), GRAPHS, ORIENTS)
def test_one_frame_is_an_image_alone(problem, graph, orient) -> None:
    _, given_, grid = problem
    joint = selfment.joint_label(given_, [grid], graph=graph, orient=orient)
    alone = selfment.pseudo_label(given_, grid, graph=graph, orient=orient)
    for name in ("mask", "ncut_mask", "fiedler"):
        assert torch.equal(as_torch(getattr(joint, name)[0]), as_torch(getattr(alone, name)))
    assert torch.equal(as_torch(joint.eigenvalue), as_torch(alone.eigenvalue))
    assert torch.equal(as_torch(joint.seed), as_torch(alone.seed))


@settings(checked, max_examples=max(20, checked.max_examples // 3))
@given(problems(least=2), st.integers(2, 5), st.sampled_from(["kmeans", "rotation"]), GRAPHS)
def test_regions_partition_the_grid(problem, k, method, graph) -> None:
    values, given_, grid = problem
    assume(k <= len(values))
    found = as_torch(selfment.regions(given_, grid, k=k, method=method, graph=graph))
    assert found.shape == grid
    numbers = found.flatten().tolist()
    order = list(dict.fromkeys(numbers))
    assert order == list(range(len(order)))
    assert len(order) <= k
    if (values == values[0]).all():
        assert order == [0]


@settings(checked, max_examples=max(20, checked.max_examples // 3))
@given(
    st.integers(0, 2**32 - 1),
    grids(),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.sampled_from([None, "bilateral"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["bool", "float", "empty", "full"]),
)
def test_refined_masks_have_the_images_size(seed, grid, size, method, holes, largest, kind) -> None:
    rng = np.random.RandomState(seed)
    soft = rng.rand(*grid)
    mask = {"bool": soft > 0.5, "float": soft, "empty": soft > 2, "full": soft > -1}[kind]
    image = rng.randint(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    options = {"fill_holes": holes, "largest_component": largest}
    found = selfment.refine_mask(mask, image, method, **options)
    assert found.shape == image.shape[:2]
    assert found.dtype == bool
    if kind in ("empty", "full"):
        assert found.all() == found.any() == (kind == "full")
    if method is None and kind == "bool" and not holes and not largest:
        sides = list(zip(size[::-1], grid, strict=True))
        # Where a pixel's centre is on the border of two patches, either is its nearest.
        assume(all(((2 * np.arange(s) + 1) * g % (2 * s)).all() for s, g in sides))
        ys, xs = ((2 * np.arange(s) + 1) * g // (2 * s) for s, g in sides)
        assert np.array_equal(found, mask[np.ix_(ys, xs)])


@checked
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["noise", "zero", "one", "steps"]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
)
def test_scores_are_their_definitions(seed, size, kind, share, as_tensor) -> None:
    rng = np.random.RandomState(seed)
    noise = rng.rand(*size)
    levels = {"noise": noise, "zero": noise * 0, "one": noise * 0 + 1}
    saliency = levels.get(kind, np.rint(noise * 255) / 255).astype(np.float32)
    truth = rng.rand(*size) < share
    wrap = torch.from_numpy if as_tensor else np.asarray
    scores = [
        score(wrap(saliency), wrap(truth))
        for score in (metrics.iou, metrics.accuracy, metrics.f_max)
    ]
    over = saliency > 0.5
    union = (over | truth).sum()
    assert scores[0] == pytest.approx((over & truth).sum() / union if union else 1.0, abs=1e-6)
    assert scores[1] == pytest.approx((over == truth).mean(), abs=1e-6)
    best = 0.0
    for step in range(255):
        over = saliency > np.float32(step / 255)
        hits = (over & truth).sum()
        precision, recall = hits / (over.sum() + 1e-7), hits / (truth.sum() + 1e-7)
        best = max(best, 1.09 * precision * recall / (0.09 * precision + recall + 1e-7))
    assert 0 <= scores[2] <= 1
    assert scores[2] == pytest.approx(best, abs=0.02 if kind == "steps" else 1e-4)


@checked
@given(problems(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_what_is_not_finite_is_named(problem, value, data) -> None:
    values, _, grid = problem
    place = data.draw(st.integers(0, values.numel() - 1))
    broken = values.clone()
    broken.view(-1)[place] = value
    patch = place // values.shape[1]
    message = rf"`features` must be finite.* in patch {patch} of image 0"
    for call in (
        lambda: selfment.affinity(broken),
        lambda: selfment.pseudo_label(broken, grid),
        lambda: selfment.multi_label(broken, grid),
        lambda: selfment.joint_label(broken, [grid]),
    ):
        with pytest.raises(ValueError, match=message):
            call()
