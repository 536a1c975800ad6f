"""Norms and rounded rows of the CUDA twin, which float32 makes: to the bit as exact sums say."""

from __future__ import annotations

import math
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

TYPES = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = [emulated.EMULATION / "emulation.cpp", emulated.EMULATION / "norms.cu"]
    return emulated.link(tmp_path_factory.mktemp("norms") / "norms", sources, ["-O2"], [])


def bits(numbers: Tensor) -> bytes:
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()


def lengths(program: Path, rows: Tensor) -> list[tuple[bool, float, float, float]]:
    """Of each row, whether float32 could tell, its length by that, in doubles, and the right one.

    The squares of floats are doubles, and `math.fsum` rounds their sum as one number.
    """
    given = program.with_name("rows")
    given.write_bytes(bits(rows))
    name = str(rows.dtype).removeprefix("torch.")
    done = processes.run([program, name, str(rows.shape[1]), given], check=True)
    found = []
    for line, row in zip(done.stdout.splitlines(), rows.double(), strict=True):
        told, quick, exact = line.split()
        right = math.sqrt(math.fsum((row * row).tolist()))
        found.append((told == "1", float.fromhex(quick), float.fromhex(exact), right))
    return found


def check(found: list[tuple[bool, float, float, float]], ulps: int = 0) -> float:
    """The share of rows that float32 could tell; asserts that all lengths are right.

    ``ulps``: that doubles may be off by; float32 is not, of what they say.
    """
    for told, quick, exact, right in found:
        assert abs(exact - right) <= ulps * math.ulp(right)
        assert not told or quick == exact
    return sum(told for told, *_ in found) / len(found)


def random_rows(count: int, d: int, spread: float, dtype: str) -> Tensor:
    """Normal numbers times powers of 2, whose exponents have this standard deviation."""
    rng = generator(d)
    rows = torch.randn(count, d, generator=rng, dtype=torch.float64)
    rows *= (spread * torch.randn(count, d, generator=rng, dtype=torch.float64)).exp2()
    most = 6e4 if dtype == "float16" else math.inf
    return rows.clamp(-most, most).to(getattr(torch, dtype))


@TYPES
@pytest.mark.parametrize("d", [1, 2, 9, 31, 384, 1000, 4096, 5003])
def test_lengths(program: Path, dtype: str, d: int) -> None:
    rows = torch.cat([random_rows(40, d, spread, dtype) for spread in (0, 2, 4)])
    share = check(lengths(program, rows))
    assert share > 0.9
    assert share == 1 or dtype != "float16"


def test_lengths_of_numbers_of_all_sizes(program: Path) -> None:
    for d in (1, 9, 300, 1000):
        check(lengths(program, random_rows(100, d, 20, "float32")))


@TYPES
def test_lengths_of_rows_with_an_outlier(program: Path, dtype: str) -> None:
    rows = random_rows(64, 768, 0, dtype)
    rows[torch.arange(64), torch.arange(64) * 11] = 100
    assert check(lengths(program, rows)) > 0.9


def test_lengths_between_two_doubles(program: Path) -> None:
    """The sum is the middle of two, or off by as little as the levels keep, or less."""
    rows = torch.zeros(200, 100)
    rows[:, 3] = 1
    rows[:, 50:52] = 2.0**-27
    for i in range(1, 99):
        rows[2 * i, 70] = 2.0 ** (-i)
        rows[2 * i + 1, 20] = 1 + 2.0 ** (-i % 23)
    found = lengths(program, rows)
    check(found)
    assert not found[0][0]
    assert not found[120][0]


def test_lengths_next_to_the_middle_of_two_doubles(program: Path) -> None:
    """Nearer than what the last level has rounded away, on either side."""
    rows = torch.zeros(400, 3)
    rows[:, 0] = 1
    rows[:, 1] = 2.0**-27 * (0.5 + 0.5 * torch.rand(400, generator=generator(7)))
    rows[:, 2] = (2.0**-53 - rows[:, 1].double() ** 2).sqrt().float()
    assert check(lengths(program, rows)) == 0


def test_a_sum_that_floats_underrate(program: Path) -> None:
    """The first level rounds up what the rough sum, which has set it, rounds down."""
    row = torch.zeros(512)
    lane = torch.tensor([k + i for k in range(0, 512, 128) for i in range(4)])
    row[lane] = (1.51 * 2.0**-23) ** 0.5
    row[0] = 1 - 24 * 2.0**-24  # the sum is just below 1
    assert check(lengths(program, row.repeat(2, 1))) == 1


def test_whole_numbers(program: Path) -> None:
    """Sums that are doubles: float32 levels keep all of them."""
    rows = torch.randint(-1000, 1000, (50, 300), generator=generator(3)).float()
    assert check(lengths(program, rows)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("scale", [1e38, 1e30, 1e19, 1e17, 1e-8, 1e-13, 1e-22, 1e-30, 1e-39])
def test_lengths_out_of_range(program: Path, dtype: str, scale: float) -> None:
    """Squares that overflow as floats, that vanish, and numbers that are subnormal."""
    rows = random_rows(20, 100, 0, "float64").clamp(-3, 3)
    scaled = (rows * scale).to(getattr(torch, dtype))
    mixed = torch.cat([scaled, torch.where(torch.rand(20, 100) < 0.02, scaled, rows)])
    mixed = mixed.to(scaled.dtype)
    mixed[3] = 0
    # Two doubles do not hold a sum whose terms are 2^106 apart.
    share = check(lengths(program, mixed), ulps=1)
    assert share > 0.4 or scale > 1e18


@TYPES
def test_lengths_that_are_not_finite(program: Path, dtype: str) -> None:
    rows = random_rows(6, 300, 0, dtype)
    rows[0, 5], rows[1, 299], rows[2, 0] = math.nan, math.inf, -math.inf
    rows[3, 7], rows[3, 8] = math.inf, math.nan
    for (told, _, exact, _), row in zip(lengths(program, rows), rows, strict=True):
        assert told == bool(row.isfinite().all())
        assert math.isfinite(exact) == told


def divided(program: Path, norms: Tensor, elements: Tensor) -> float:
    """The share of all quotients that float32 could tell; asserts that all are right."""
    assert len(norms) == len(elements)
    given = program.with_name("numbers")
    given.write_bytes(bits(norms.double()) + bits(elements))
    name = str(elements.dtype).removeprefix("torch.")
    done = processes.run([program, "divide", name, given], check=True)
    told, wrong = map(int, done.stdout.split())
    assert wrong == 0
    return told / len(norms) ** 2


@TYPES
def test_quotients(program: Path, dtype: str) -> None:
    norms = random_rows(1500, 1, 3, "float64").abs()[:, 0]
    assert divided(program, norms, random_rows(1500, 1, 3, dtype)[:, 0]) > 0.9999


def test_quotients_between_two_floats(program: Path) -> None:
    """The quotient is next to the middle of two floats, as near as a double norm can bring it."""
    rng = generator(5)
    middle = 1 + (2 * torch.randint(0, 2**22, (1000,), generator=rng) + 1).double() / 2**24
    elements = (1 + torch.rand(1000, generator=rng)).float()
    norms = elements.double() / middle
    share = []
    for off in (-(2.0**-40), -(2.0**-51), 0, 2.0**-51, 2.0**-40):
        for first in range(0, 1000, 10):
            part = slice(first, first + 10)
            share.append(divided(program, norms[part] * (1 + off), elements[part]))
    assert 0.85 < sum(share) / len(share) < 0.97  # one in ten is next to a middle


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_quotients_out_of_range(program: Path, dtype: str) -> None:
    scales = [1e38, 1e30, 1e10, 1, 1e-12, 1e-16, 1e-24, 1e-30, 1e-37, 1e-42, 0]
    elements = torch.cat([random_rows(30, 1, 1, "float64")[:, 0] * scale for scale in scales])
    norms = torch.cat(
        [
            elements.abs().clamp(min=1e-12),
            torch.tensor([math.inf, math.nan, 1e300, 2.0**-40, 2.0**100]),
        ]
    )
    special = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1.0], dtype=torch.float64)
    share = divided(program, norms, torch.cat([elements, special]).to(getattr(torch, dtype)))
    assert 0.1 < share < 0.9
