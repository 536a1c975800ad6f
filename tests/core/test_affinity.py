"""The graph is the float64 rule's, bit for bit, on every path."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

import selfment
from helpers import processes
from helpers.cases import CASES, DEGENERATE, generator, noise, smooth
from selfment import Graph, reference

ALL = CASES | DEGENERATE
GRAPHS = ("binary", "weighted")


def edges(dense: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return dense != eps


def first_difference(a: torch.Tensor, b: torch.Tensor) -> str:
    where = (a != b).nonzero()
    return (
        f"{len(where)} entries differ, the first at {where[0].tolist()}" if len(where) else "none"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tau", [0.2, 0.0, -0.3, 0.95])
def test_binary_graph_equals_the_float64_rule(name: str, tau: float) -> None:
    features, _ = ALL[name]
    graph = selfment.affinity(features, tau=tau)
    expected = reference.affinity(features, tau=tau)
    assert first_difference(edges(graph.to_dense()), edges(expected)) == "none"
    torch.testing.assert_close(graph.to_dense(), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(graph.degrees, expected.sum(1), rtol=1e-13, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tau", [0.2, 1e-3])
def test_weighted_graph_equals_the_float64_rule(name: str, tau: float) -> None:
    features, _ = ALL[name]
    graph = selfment.affinity(features, tau=tau, graph="weighted")
    expected = reference.affinity(features, tau=tau, graph="weighted")
    # Weights are float32 products: 1e-6 covers their rounding.
    torch.testing.assert_close(graph.to_dense(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(graph.degrees, graph.to_dense().sum(1), rtol=1e-12, atol=0)
    assert torch.equal(graph.to_dense(), graph.to_dense().T)


def test_products_at_the_threshold() -> None:
    """Pairs within 1e-7 of tau, on both sides, and exact ties: the float32 product cannot tell."""
    rng = np.random.default_rng(0)
    rows = [np.eye(64)[0]]
    for _ in range(300):
        # A unit vector whose first component, its product with the first row, is near tau.
        target = 0.2 + rng.choice([1e-7, 1e-8, 3e-9]) * rng.standard_normal()
        rest = rng.standard_normal(63)
        rest *= np.sqrt(1 - target**2) / np.linalg.norm(rest)
        rows.append(np.concatenate([[target], rest]))
    features = torch.from_numpy(np.array(rows))
    dense = reference.normalize(features).double()
    product = dense @ dense[0]
    assert ((product - 0.2).abs()[1:] < 1e-6).all()
    expected = product > 0.2
    assert 50 < expected.sum() < 250
    graph = selfment.affinity(features)
    assert torch.equal(edges(graph.to_dense())[0], expected)
    assert torch.equal(edges(graph.to_dense()), edges(reference.affinity(features)))


@pytest.mark.parametrize("graph", GRAPHS)
def test_exact_ties_follow_the_strictness_of_the_mode(graph: str) -> None:
    # Four of eight components, two of them shared: the product is 1/2, exactly.
    features = torch.zeros(70, 8)
    features[::2, :4] = 1
    features[1::2, 2:6] = 1
    dense = selfment.affinity(features, tau=0.5, graph=graph).to_dense()
    # A weight is kept as the float32 of what it has above eps.
    assert dense[0, 2].item() == pytest.approx(1, abs=1e-7)
    assert dense[0, 1].item() == pytest.approx(0.5 if graph == "weighted" else 1e-5, abs=1e-7)


@pytest.mark.parametrize("d", [1, 7, 15, 16, 17, 63, 255, 256, 257, 700])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 130])
def test_every_remainder(n: int, d: int) -> None:
    features = noise(1, n, d, seed=n * 1000 + d) + 0.3
    assert torch.equal(
        edges(selfment.affinity(features).to_dense()), edges(reference.affinity(features))
    )


def test_columns_in_several_groups() -> None:
    """Rows so deep that the packed columns do not fit at once: 24 MiB hold 64 rows of 50,000."""
    features = smooth(10, 20, 50_000, seed=3)
    for graph in GRAPHS:
        ours = selfment.affinity(features, graph=graph).to_dense()
        torch.testing.assert_close(
            ours, reference.affinity(features, graph=graph), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("d", [1, 2, 9, 384, 65_536, 65_537])
def test_products_of_the_largest_size(d: int) -> None:
    """Rows equal, opposite, or all in one channel: sums of integers come near their end."""
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0] * 20)[:, None]
    features = signs * noise(1, 1, d, seed=1)
    features[40:] = signs[40:] * torch.eye(1, d)
    for tau in (-0.5, 0.2, 0.99):
        expected = edges(reference.affinity(features, tau=tau))
        assert torch.equal(edges(selfment.affinity(features, tau=tau).to_dense()), expected)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes(dtype: torch.dtype, graph: str) -> None:
    features = smooth(11, 13, 40).to(dtype)
    torch.testing.assert_close(
        selfment.affinity(features, graph=graph).to_dense(),
        reference.affinity(features, graph=graph),
        rtol=0,
        atol=1e-6 if graph == "weighted" else 0,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_widened_exactly(dtype: torch.dtype) -> None:
    """Subnormals, signs and remainders of a vector included: 9 numbers to a row."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype)
    numbers = numbers[numbers.isfinite()]
    rows = numbers[: len(numbers) // 9 * 9].reshape(-1, 9)[::8]
    assert torch.equal(
        selfment.affinity(rows).to_dense(), selfment.affinity(rows.float()).to_dense()
    )
    label = torch.arange(len(rows)) % 3 == 0
    assert torch.equal(selfment.ipo(rows, label), selfment.ipo(rows.float(), label))


def test_scale_of_a_row_does_not_matter_but_at_the_extremes() -> None:
    features = smooth(9, 9, 32).double()
    scale = torch.logspace(-6, 60, 81, dtype=torch.float64)[:, None]
    assert torch.equal(
        selfment.affinity(features * scale).to_dense(), selfment.affinity(features).to_dense()
    )


def test_a_graph_is_described_in_one_line() -> None:
    made = selfment.affinity(noise(4, 5, 6))
    assert repr(made) == (
        "Graph(eps=1e-05, n=20, bits=int64 (1, 64), weights=None, degree=float64 (1, 20), "
        "taus=float64 (1,))"
    )


@pytest.mark.parametrize("graph", GRAPHS)
def test_matvec(graph: str) -> None:
    features = torch.stack([smooth(13, 17, 40, seed=s) for s in range(3)])
    made = selfment.affinity(features, graph=graph)
    dense = made.to_dense()
    x = torch.randn(3, 221, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(made.matvec(x), dense @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.matvec(x[..., 0]), (dense @ x)[..., 0], rtol=1e-12, atol=1e-12)
    single = selfment.affinity(features[1], graph=graph)
    torch.testing.assert_close(
        single.matvec(x[1, :, 2]), dense[1] @ x[1, :, 2], rtol=1e-12, atol=1e-12
    )
    assert torch.equal(single.degrees, made.degrees[1])


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_product_does_not_depend_on_the_vectors_beside_it(graph: str) -> None:
    made = selfment.affinity(smooth(19, 23, 40), graph=graph)
    x = torch.randn(437, 5, generator=generator(1), dtype=torch.float64)
    alone = torch.stack([made.matvec(column) for column in x.T], 1)
    for count in range(1, 6):
        assert torch.equal(made.matvec(x[:, :count]), alone[:, :count])


def test_matvec_names_the_shapes_it_takes() -> None:
    graph = selfment.affinity(noise(4, 5, 8))
    with pytest.raises(ValueError, match=r"`x` must be \(20,\) or \(20, m\).*got \(19,\)"):
        graph.matvec(torch.ones(19))


def painting(batch: int, n: int, seed: int) -> torch.Tensor:
    """Some patches of each image: none of the first, all of the last, a half of the others."""
    mask = torch.rand(batch, n, generator=generator(seed)) < 0.5
    mask[0], mask[-1] = False, True
    return mask


def assert_same_graph(ours: Graph, expected: Graph) -> None:
    """To the bit, the weights by their products with a few vectors."""
    assert torch.equal(ours.bits, expected.bits)
    assert torch.equal(ours.degrees, expected.degrees)
    assert ours.nbytes == expected.nbytes
    x = torch.rand((*ours.degrees.shape, 3), generator=generator(0), dtype=torch.float64)
    assert torch.equal(ours.matvec(x), expected.matvec(x))


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ALL)
def test_a_painted_graph_is_that_of_the_painted_features(name: str, graph: str) -> None:
    rows = ALL[name][0].expand(4, -1, -1)
    for tau in (0.2,) if graph == "weighted" else (0.2, -0.0, -1e-30):
        first = selfment.affinity(rows, tau=tau, graph=graph)
        once, twice = painting(4, rows.shape[1], 1), painting(4, rows.shape[1], 2)
        for made, mask in (
            (first.paint(once), once),
            (first.paint(once).paint(twice), once | twice),  # some are painted already
        ):
            zeroed = rows.masked_fill(mask[..., None], 0)
            assert_same_graph(made, selfment.affinity(zeroed, tau=tau, graph=graph))
        assert_same_graph(first, selfment.affinity(rows, tau=tau, graph=graph))  # as it was


@pytest.mark.parametrize("tau", [0.2, 0.0, -0.3])
def test_a_painted_graph_follows_the_float64_rule(tau: float) -> None:
    rows = smooth(7, 11, 20)
    mask = torch.rand(77, generator=generator(1)) < 0.3
    painted = selfment.affinity(rows, tau=tau).paint(mask).to_dense()
    assert torch.equal(painted, reference.affinity(rows.masked_fill(mask[:, None], 0), tau=tau))
    assert (painted[mask] == (1 if tau < 0 else 1e-5)).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("threads", [1, 3])
def test_painting_on_any_number_of_threads(graph: str, threads: int) -> None:
    rows = smooth(55, 54, 24)  # enough patches that threads share them
    mask = torch.rand(55, 54, generator=generator(3)) < 0.3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = selfment.affinity(rows, graph=graph).paint(mask)
    finally:
        torch.set_num_threads(before)
    assert_same_graph(
        made, selfment.affinity(rows.masked_fill(mask.reshape(-1, 1), 0), graph=graph)
    )


def test_paint_takes_masks_of_any_kind() -> None:
    rows = noise(4, 5, 8)
    mask = torch.arange(20).reshape(4, 5) % 3 == 0
    single, batch = selfment.affinity(rows), selfment.affinity(rows[None])
    expected = single.paint(mask).bits
    for same in (mask.flatten(), mask.double(), mask.numpy(), mask.t().contiguous().t()):
        assert torch.equal(single.paint(same).bits, expected)
    for same in (mask[None], mask.reshape(1, 20).int()):
        assert torch.equal(batch.paint(same).bits, expected)
    painted = selfment.affinity(rows.numpy()).paint(mask)
    assert isinstance(painted.degrees, np.ndarray)
    assert painted.degrees.shape == (20,)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("shape", [(19,), (2, 20), (20, 1, 1), (1, 4, 6)])
def test_paint_names_the_shapes_it_takes(batched: bool, shape: tuple[int, ...]) -> None:
    rows = noise(4, 5, 8)
    takes = r"\(1, 20\), or \(1, h, w\)" if batched else r"\(20,\), or \(h, w\)"
    with pytest.raises(ValueError, match=rf"`mask` must be {takes} with h\*w == 20.*got \("):
        selfment.affinity(rows[None] if batched else rows).paint(torch.ones(shape))


def test_answers_in_the_callers_kind() -> None:
    features = noise(4, 5, 8).numpy()
    graph = selfment.affinity(features)
    assert isinstance(graph.degrees, np.ndarray)
    assert isinstance(graph.to_dense(), np.ndarray)
    assert isinstance(graph.matvec(np.ones(20)), np.ndarray)
    assert graph.degrees.shape == (20,)


def test_memory_of_a_graph() -> None:
    """A bit for a pair, rounded up to whole words, and a degree for a patch."""
    graph = selfment.affinity(smooth(48, 48, 16))
    assert graph.nbytes == 2304 * 2304 // 8 + 2304 * 8
    weighted = selfment.affinity(smooth(48, 48, 16), graph="weighted")
    stored = (edges(weighted.to_dense()).sum().item() + 2304) / 2  # on and above the diagonal
    assert weighted.nbytes <= graph.nbytes + 4 * stored * 1.1 + 36 * 64 * 64 * 4


@pytest.mark.parametrize("graph", GRAPHS)
def test_threads_do_not_change_a_bit(graph: str) -> None:
    features = smooth(33, 31, 200)
    before = torch.get_num_threads()
    x = torch.rand(1023, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            made = selfment.affinity(features, graph=graph)
            results.append((made.bits, made.degrees, made.matvec(x)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_unknown_instruction_set_is_an_error() -> None:
    run = processes.run(
        [sys.executable, "-c", "import torch, selfment; selfment.affinity(torch.ones(4, 2))"],
        env={**os.environ, "SELFMENT_ISA": "avx"},
    )
    assert run.returncode == 1
    assert "SELFMENT_ISA must be one of avx512vnni, avx512, avx2, portable: got 'avx'" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": float("nan")}, "`tau` must be a finite number: got nan"),
        ({"eps": 0.0}, r"`eps` must be in \[1e-30, 1\): got 0.0"),
        ({"eps": 1.5}, r"`eps` must be in \[1e-30, 1\): got 1.5"),
        ({"tau": 10**400}, "`tau` must be a finite number: got 1000"),
        ({"graph": "dense"}, "`graph` must be 'binary' or 'weighted': got 'dense'"),
        ({"graph": "weighted", "tau": 0.0}, "`tau` must be > 0 in the weighted graph.*got 0.0"),
    ],
)
def test_wrong_parameters(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selfment.affinity(torch.ones(4, 2), **arguments)
    with pytest.raises(ValueError, match=message):
        reference.affinity(torch.ones(4, 2), **arguments)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, int])
def test_numbers_of_any_kind_are_parameters(kind: type) -> None:
    features = smooth(6, 7, 8)
    found = selfment.affinity(features, tau=kind(0.5)).bits
    assert torch.equal(found, selfment.affinity(features, tau=float(kind(0.5))).bits)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_not_finite(value: float, dtype: torch.dtype) -> None:
    features = torch.ones(3, 70, 9, dtype=dtype)
    features[1, 66, 8] = value
    with pytest.raises(ValueError, match=r"`features` must be finite.*in patch 66 of image 1"):
        selfment.affinity(features)
