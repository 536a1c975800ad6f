"""Eigenpairs, checked by their residual on an independently built matrix and against LAPACK."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

import selfment
from helpers.cases import CASES, DEGENERATE, noise, ring, smooth
from selfment import reference
from selfment.backbones import load_backbone
from selfment.core.graph import Graph
from selfment.core.ncut import eigenpairs, initial_mask
from selfment.images.load import load_image

GRAPHS = ("binary", "weighted")
COMPONENTS = ("two components", "three components", "four equal components")


def residuals(A: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
    """|(D - A) x - lambda D x| for each pair, in the norm in which |x| is 1."""
    degree = A.sum(1)
    error = degree[:, None] * vectors - A @ vectors - values * degree[:, None] * vectors
    return (error / degree.sqrt()[:, None]).norm(dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", [name for name in CASES | DEGENERATE if name != "one patch"])
def test_pairs_solve_the_problem(name: str, graph: str) -> None:
    features, _ = (CASES | DEGENERATE)[name]
    n = len(features)
    k = min(4, n - 1)
    A = reference.affinity(features, graph=graph)
    values, vectors = selfment.ncut(features, k=k, graph=graph)
    assert values.shape == (k,)
    assert vectors.shape == (n, k)
    # Weights are kept in float32.
    assert residuals(A, values, vectors).max() < (1e-6 if graph == "weighted" else 1e-9)
    gram = vectors.T @ (A.sum(1)[:, None] * vectors)
    torch.testing.assert_close(gram, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (vectors.T @ A.sum(1)).abs().max() < 1e-6 * A.sum(1).sqrt().sum()
    expected, _ = reference.ncut(features, k=k, graph=graph)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)


def test_lapack_agrees_with_the_reference() -> None:
    """The reference's standard problem is the generalised one that everybody else solves."""
    features, _ = CASES["smooth"]
    A = reference.affinity(features).numpy()
    D = np.diag(A.sum(1))
    values, vectors = scipy.linalg.eigh(D - A, D, subset_by_index=[1, 3])
    ours, x = selfment.ncut(features, k=3)
    np.testing.assert_allclose(ours.numpy(), values, atol=1e-12)
    np.testing.assert_allclose(np.abs(x.numpy()), np.abs(vectors), atol=1e-9)
    np.testing.assert_allclose(np.einsum("nk,nm,mk->k", x.numpy(), D, x.numpy()), 1, atol=1e-9)


def count_signs(features: Tensor, graph: str, tau: float) -> int:
    """Compares the signs of two vectors with LAPACK's; returns how many are determined."""
    A = reference.affinity(features, graph=graph, tau=tau).numpy()
    D = np.diag(A.sum(1))
    values, vectors = scipy.linalg.eigh(D - A, D, subset_by_index=[1, min(3, len(A) - 1)])
    k = min(2, len(values))
    _, x = selfment.ncut(features, k=k, graph=graph, tau=tau, sign="lapack")
    y = np.sqrt(np.diag(D))[:, None] * x.numpy()
    apart = np.diff(values, prepend=-np.inf, append=np.inf)
    compared = 0
    for i in range(k):
        # A vector that is 0 at the first patch lies outside of what the reflections reach first;
        # LAPACK gives it the sign of a rounding error.
        if min(apart[i], apart[i + 1]) > 1e-7 and abs(y[0, i]) > 1e-9:
            assert x[:, i].numpy() @ vectors[:, i] > 0, i
            compared += 1
    return compared


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_signs_are_those_of_lapack(graph: str) -> None:
    compared = 0
    for name, (features, _) in CASES.items():
        if 2 < len(features) <= 1000:  # two patches are opposite: rounding picks the larger
            compared += sum(count_signs(features, graph, tau) for tau in (0.15, 0.2, 0.3))
        assert compared > 0, name
    sizes = np.random.default_rng(0).integers((3, 1), (200, 20), (60, 2))
    for seed, (n, d) in enumerate(sizes.tolist()):
        compared += count_signs(noise(n, 1, d, seed=seed), graph, 0.2)
        compared += count_signs(smooth(n // 3 + 1, 3, d, seed=seed), graph, 0.2)
    assert compared > 200
    if graph == "binary":  # sparse: the largest entry comes so late that weights' rounding counts
        assert sum(count_signs(noise(140, 1, 18, seed=seed), graph, 0.5) for seed in range(10)) > 5


def test_the_last_direction_of_a_small_graph_has_lapacks_sign() -> None:
    """The space of the first patch ends one vector before that of all: the rest is known."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    A = reference.affinity(features).numpy()
    D = np.diag(A.sum(1))
    expected = scipy.linalg.eigh(D - A, D, subset_by_index=[1, 2])[1]
    _, x = selfment.ncut(features, k=2, sign="lapack")
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-9)


@pytest.mark.slow
def test_signs_on_photographs_are_those_of_lapack(photos: list[Path]) -> None:
    backbone = load_backbone("classic")
    for path in photos[::20]:
        image, _ = load_image(path)
        features = backbone(backbone.preprocess(image, 320)[None])[0]
        for graph, tau in (("binary", 0.15), ("binary", 0.2), ("weighted", 0.2)):
            assert count_signs(features, graph, tau) == 2
            assert count_signs(features[20:], graph, tau) == 2  # a rectangle


def test_signs_do_not_depend_on_batch_or_pairs() -> None:
    features = torch.stack([smooth(14, 11, 24, seed=seed) for seed in range(6)])
    for graph in GRAPHS:
        _, one = selfment.ncut(features, graph=graph, sign="lapack")
        _, four = selfment.ncut(features, k=4, graph=graph, sign="lapack")
        assert ((one * four[..., :1]).sum(1) > 0).all()
        for image, x in zip(features, four, strict=True):
            assert torch.equal(selfment.ncut(image, k=4, graph=graph, sign="lapack")[1], x)
    with pytest.raises(ValueError, match="`sign` must be 'peak' or 'lapack': got 'up'"):
        selfment.ncut(features, sign="up")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth", "object", "noise", "large"])
def test_vectors_agree_with_the_reference(name: str) -> None:
    features, _ = CASES[name]
    _, expected = reference.ncut(features, k=3)
    _, vectors = selfment.ncut(features, k=3)
    assert (vectors - expected).abs().max() < 1e-7 * np.ptp(expected.numpy(), axis=0).max()


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_give_one_small_eigenvalue_each(name: str) -> None:
    features, _ = (CASES | DEGENERATE)[name]
    count = {"two": 2, "three": 3, "four": 4}[name.split()[0]]
    values, vectors = selfment.ncut(features, k=count)
    assert (values[: count - 1] < 1e-3).all()
    assert values[count - 1] > 0.5
    # Constant on each component, up to what eps lets through.
    kind = reference.affinity(features).argmax(1)
    for component in kind.unique():
        part = vectors[kind == component, : count - 1]
        assert (part - part[0]).abs().max() < 1e-6 * vectors.abs().max()


def test_equal_components_give_every_vector_of_the_eigenspace() -> None:
    """Five equal components: an eigenvalue four times, of which a Krylov space shows one."""
    features = torch.eye(5).repeat_interleave(64, 0)
    values, vectors = selfment.ncut(features, k=6)
    assert values[3] - values[0] < 1e-12
    assert values[4] > 0.9
    assert torch.linalg.matrix_rank(vectors[:, :4]) == 4


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("graph", GRAPHS)
def test_repeated_eigenvalues_of_a_large_krylov_space(copies: int, graph: str) -> None:
    """Equal components of a rich spectrum: the iteration does not end early in any of them."""
    part = smooth(1, 37, 19, seed=7)
    features = torch.block_diag(*[part] * copies)
    values, vectors = selfment.ncut(features, k=copies + 2, graph=graph)
    expected, _ = reference.ncut(features, k=copies + 2, graph=graph)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)
    A = reference.affinity(features, graph=graph)
    assert residuals(A, values, vectors).max() < 1e-6


@pytest.mark.parametrize("apart", [1e-3, 1e-6, 1e-9, 1e-12, 1e-14])
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_nearly_repeated_eigenvalues(copies: int, apart: float) -> None:
    """More eigenvalues close together than the iteration has start vectors."""
    part = smooth(1, 37, 19, seed=7).double()
    blocks = [part + apart * noise(37, 1, 19, seed=s) for s in range(copies)]
    made = selfment.affinity(torch.block_diag(*blocks), graph="weighted")
    pairs = eigenpairs(made, 3 * copies)
    A = made.to_dense()
    scale = A.sum(1).rsqrt()
    expected = 1 - torch.linalg.eigvalsh(scale[:, None] * A * scale).flip(0)
    torch.testing.assert_close(pairs.values[0], expected[1 : 3 * copies + 1], rtol=0, atol=1e-11)
    assert residuals(A, pairs.values[0], pairs.vectors[0].T).max() < 1e-9


@pytest.mark.parametrize("seed", range(40))
def test_pairs_of_duplicated_blocks(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    count, copies = (int(torch.randint(*span, (), generator=rng)) for span in ((8, 60), (2, 6)))
    part = torch.randn(count, 8 + seed % 5, generator=rng)
    features = torch.block_diag(*[part] * copies)
    k = 1 + seed % 7
    values, _ = selfment.ncut(features, k=k)
    expected, _ = reference.ncut(features, k=k)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)


def test_no_convergence_is_said() -> None:
    """A chain so long that its eigenvalues lie closer than the products allow to tell."""
    chain = selfment.affinity(ring(2000))
    far = replace(chain, degree=chain.degree * torch.logspace(0, 9, 2000, dtype=torch.float64))
    with pytest.warns(RuntimeWarning, match="have not converged: the largest residual is"):
        eigenpairs(far, 1)


@pytest.mark.parametrize("k", [1, 3])
def test_restarts_when_the_basis_is_full(k: int) -> None:
    features = ring(400)
    made = selfment.affinity(features)
    pairs = eigenpairs(made, k)
    assert pairs.iterations.item() > 64 + k, "the case must need more than one basis"
    A = made.to_dense()
    assert residuals(A, pairs.values[0], pairs.vectors[0].T).max() < 1e-9
    expected, vectors = reference.ncut(features, k=k)
    torch.testing.assert_close(pairs.values[0], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(pairs.vectors[0].T, vectors, rtol=0, atol=1e-6)


def test_many_pairs() -> None:
    features = smooth(20, 22, 64)
    values, vectors = selfment.ncut(features, k=40)
    expected, _ = reference.ncut(features, k=40)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-10)
    assert residuals(reference.affinity(features), values, vectors).max() < 1e-8


@pytest.mark.parametrize("n", [2, 3, 5, 47, 48, 49, 50, 63, 64, 65])
def test_all_pairs_of_a_tiny_graph(n: int) -> None:
    features = noise(1, n, 12, seed=n)
    values, vectors = selfment.ncut(features, k=n - 1)
    expected, _ = reference.ncut(features, k=n - 1)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-9)
    assert residuals(reference.affinity(features), values, vectors).max() < 1e-9


@pytest.mark.parametrize("graph", GRAPHS)
def test_reported_accuracy_is_true(graph: str) -> None:
    made = selfment.affinity(CASES["smooth"][0], graph=graph)
    pairs = eigenpairs(made, 3)
    A = made.to_dense()
    true = residuals(A, pairs.values[0], pairs.vectors[0].T)
    assert (true <= 2 * pairs.residuals[0] + 1e-13).all()
    assert (pairs.residuals[0] <= 2 * true + 1e-13).all()
    spectrum, _ = reference.ncut(CASES["smooth"][0], k=4, graph=graph)
    gaps = spectrum.diff()
    nearest = torch.stack([gaps[0], gaps[:2].min(), gaps[1:3].min()])
    torch.testing.assert_close(pairs.gaps[0], nearest, rtol=0.02, atol=1e-6)


def test_gap_of_a_repeated_eigenvalue_is_zero() -> None:
    pairs = eigenpairs(selfment.affinity(torch.ones(120, 4)), 1)
    assert pairs.values.item() == pytest.approx(1, abs=1e-12)
    assert pairs.gaps.item() < 1e-12


def test_equal_rows_get_equal_entries() -> None:
    features, _ = CASES["duplicated rows"]
    _, vectors = selfment.ncut(features, k=1)
    equal = (features == features[0]).all(1)
    assert equal.sum() >= 100
    assert vectors[equal].unique().numel() == 1


def test_takes_a_graph() -> None:
    features, _ = CASES["smooth"]
    made = selfment.affinity(features, tau=0.3)
    assert isinstance(made, Graph)
    expected = selfment.ncut(features, k=2, tau=0.3)
    assert all(torch.equal(a, b) for a, b in zip(selfment.ncut(made, k=2), expected, strict=True))


@pytest.mark.parametrize("k", [0, 16, 20, 1.5])
def test_wrong_k(k: float) -> None:
    rule = "an integer >= 1" if k in (0, 1.5) else "< N"
    with pytest.raises(ValueError, match=f"`k` must be {rule}: got .*{k}"):
        selfment.ncut(noise(4, 4, 3), k=k)


def oriented(x: list[float], grid: tuple[int, int], orient: str) -> tuple[list[int], int]:
    vector = torch.tensor(x, dtype=torch.float64)
    mask, seed = initial_mask(vector[None], grid, orient)
    expected, expected_seed = reference._initial_mask(vector, grid, orient)
    assert torch.equal(mask[0].reshape(grid), expected)
    assert seed.item() == expected_seed.item()
    flipped, flipped_seed = initial_mask(-vector[None], grid, orient)
    assert torch.equal(flipped, mask), "the sign of x must not matter"
    assert torch.equal(flipped_seed, seed)
    return mask[0].int().tolist(), int(seed.item())


def test_initial_mask_is_the_component_of_the_seed() -> None:
    # Diagonal neighbours are no neighbours.
    x = [3.0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 2]
    assert oriented(x, (3, 4), "seed") == ([0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], 5)


def test_initial_mask_connects_four_neighbours_and_no_row_ends() -> None:
    x = [0.0, 0, 0, 0, 0, 0, 0, 2, 9, 2, 0, 2]
    assert oriented(x, (3, 4), "seed") == ([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0], 8)
    x = [0.0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 2, 9]
    assert oriented(x, (3, 4), "seed") == ([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1, 1], 11)


def test_first_of_equal_peaks_is_the_seed() -> None:
    x = [0.0, 0, 7, 0, 0, 7 * (1 + 1e-9), 0, 0]
    assert oriented(x, (1, 8), "seed") == ([0, 0, 1, 0, 0, 0, 0, 0], 2)


def test_corner_rule_takes_the_other_side() -> None:
    # The frame holds the peak, and all four corners.
    x = [-2.0, -2, -2, -2, -2, -2, 1, 1.5, 1, -2, -2, -3, -2, -2, -2]
    assert oriented(x, (3, 5), "seed")[0] == [1] * 6 + [0] * 3 + [1] * 6
    assert oriented(x, (3, 5), "corners") == ([0] * 6 + [1] * 3 + [0] * 6, 7)
    # Two corners are not enough.
    x = [3.0, 2, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert oriented(x, (3, 4), "corners") == oriented(x, (3, 4), "seed")
