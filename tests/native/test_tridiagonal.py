"""The leading eigenpair of a tridiagonal matrix, as the CUDA twin finds it, against LAPACK's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import emulated, processes
from helpers.cases import generator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulated.compiler() is None, reason="no C++ compiler: neither $CXX nor c++"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [emulated.EMULATION / "emulation.cpp", emulated.EMULATION / "tridiagonal.cu"]
    target = tmp_path_factory.mktemp("tridiagonal") / "tridiagonal"
    return emulated.link(target, sources, ["-O2"], [])


def lead(program: Path, matrices: list[Tensor], share: float = 0) -> list[tuple[Tensor, Tensor]]:
    """The two leading eigenvalues and the vector of each matrix."""
    numbers = [
        f"{len(one)} {' '.join(map(repr, [*one.diag().tolist(), *one.diag(1).tolist()]))}"
        for one in matrices
    ]
    given = program.with_name("matrices")
    given.write_text("\n".join(numbers))
    with given.open() as file:
        done = processes.run([program, share], check=True, stdin=file)
    rows = [
        torch.tensor([float(word) for word in line.split()], dtype=torch.float64)
        for line in done.stdout.splitlines()
    ]
    assert len(rows) == len(matrices)
    return [(row[:2], row[2:]) for row in rows]


def tridiagonal(diagonal: Tensor, beside: Tensor) -> Tensor:
    return diagonal.diag() + beside.diag(1) + beside.diag(-1)


def random_matrices(count: int) -> list[Tensor]:
    rng = generator(0)
    sizes = [1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64]
    made = []
    for trial in range(count):
        size = sizes[trial % len(sizes)]
        diagonal = torch.randn(size, generator=rng, dtype=torch.float64)
        beside = torch.randn(size - 1, generator=rng, dtype=torch.float64)
        made.append(tridiagonal(diagonal, beside) * 10.0 ** (trial % 7 - 3))
    return made


def lanczos(size: int, gap: float) -> Tensor:
    """Of a matrix whose two leading eigenvalues have this gap; the vector's end is small."""
    spectrum = torch.linspace(-0.9, 0.5, 400, dtype=torch.float64)
    spectrum[-1] = spectrum[-2] + gap
    v = torch.randn(400, generator=generator(size), dtype=torch.float64)
    basis = [v / v.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    while len(diagonal) < size:
        w = spectrum * basis[-1]
        diagonal.append(w @ basis[-1])
        for _ in range(2):
            for known in basis:
                w = w - (w @ known) * known
        beside.append(w.norm())
        basis.append(w / w.norm())
    return tridiagonal(torch.stack(diagonal), torch.stack(beside[:-1]))


def degenerate_matrices() -> dict[str, Tensor]:
    zeros, ones = torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
    wilkinson = tridiagonal((torch.arange(21) - 10.0).abs().double(), ones[:20])
    block = tridiagonal(torch.arange(5).double(), ones[:4])
    return {
        "one row": torch.tensor([[-0.25]], dtype=torch.float64),
        "zero": tridiagonal(zeros, zeros[1:]),
        "one zero": torch.zeros(1, 1, dtype=torch.float64),
        "identity": tridiagonal(ones, zeros[1:]),
        "all alike": tridiagonal(ones / 3, zeros[1:] + 0.25),
        "diagonal": tridiagonal(torch.arange(40).double() % 7, zeros[:39]),
        "two rows, apart": tridiagonal(torch.tensor([0.5, 0.5]).double(), zeros[:1]),
        "two rows": tridiagonal(torch.tensor([0.5, 0.5]).double(), zeros[:1] + 1e-13),
        "no diagonal": tridiagonal(zeros, ones[1:]),
        "equal blocks": torch.block_diag(block, block, block),
        "equal leading values, nearly": wilkinson,
        "negative": -torch.block_diag(block, block) - 7 * torch.eye(10).double(),
        "tiny beside": tridiagonal(ones / 2, zeros[1:] + 1e-13),
        "graded": tridiagonal(2.0 ** -torch.arange(64).double(), 2.0 ** -torch.arange(63).double()),
        "huge": 1e200 * block,
        "small": 1e-200 * block,
    }


def assert_leads(matrix: Tensor, values: Tensor, vector: Tensor) -> None:
    exact = torch.linalg.eigvalsh(matrix).flip(0)
    error = 1e-15 * exact.abs().max().item() + 1e-30
    torch.testing.assert_close(values[: len(matrix)], exact[:2], rtol=0, atol=4 * error)
    assert abs(vector.norm().item() - 1) < 1e-15
    assert (matrix @ vector - values[0] * vector).abs().max() <= 8 * error


def test_random_matrices(program: Path) -> None:
    matrices = random_matrices(77)
    for matrix, (values, vector) in zip(matrices, lead(program, matrices), strict=True):
        assert_leads(matrix, values, vector)


@pytest.mark.parametrize("name", degenerate_matrices())
def test_degenerate_matrices(program: Path, name: str) -> None:
    matrix = degenerate_matrices()[name]
    for share in (0.0, 2.0**-12):
        [(values, vector)] = lead(program, [matrix], share)
        if share == 0:
            assert_leads(matrix, values, vector)
        assert values[: len(matrix)].isfinite().all()
        assert vector.isfinite().all()


@pytest.mark.parametrize("gap", [0.1, 1e-2, 1e-3])
def test_the_end_of_the_vector_is_known_from_a_rough_value(program: Path, gap: float) -> None:
    """By it Lanczos knows its residual: tiny beside the other entries, and known to a per cent."""
    matrices = [lanczos(size, gap) for size in range(5, 61, 5)]
    exact, rough = lead(program, matrices), lead(program, matrices, 2.0**-12)
    assert exact[-1][1][-1].abs() < 0.02
    for matrix, (values, vector), (roughly, other) in zip(matrices, exact, rough, strict=True):
        assert_leads(matrix, values, vector)
        apart = (values[0] - values[1]).item()
        assert (roughly - values).abs().max().item() <= 2.0**-12 * apart + 1e-15
        torch.testing.assert_close(other[-1].abs(), vector[-1].abs(), rtol=0.02, atol=0)


def test_the_end_of_the_vector_is_right(program: Path) -> None:
    """Against 50 digits, from which rounding would leave nothing of it."""
    mpmath = pytest.importorskip("mpmath")
    matrix = lanczos(32, 0.5)
    [(_, vector)] = lead(program, [matrix])
    with mpmath.workdps(50):
        _, vectors = mpmath.mp.eigsy(mpmath.matrix(matrix.tolist()))
        end = abs(float(vectors[31, 31]))
    assert end < 1e-12
    assert vector[-1].abs().item() == pytest.approx(end, rel=1e-9)
