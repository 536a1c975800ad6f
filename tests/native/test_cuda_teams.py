"""Teams of blocks, restarts, what scratch memory holds, and sanitizers: nothing of it shows."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers import emulated as emulation
from helpers import processes
from helpers.cases import (
    copies,
    generator,
    noise,
    ring,
    smooth,
    turned_over,
)
from helpers.cuda import (
    BOTH,
    GRAPHS,
    Target,
    assert_close,
    assert_same,
    batch_of,
    edges,
    every_operation,
)
from selfment import PseudoLabels
from selfment.core.ipo import run_ipo
from selfment.core.ncut import eigenpairs
from selfment.core.options import IpoOptions

pytestmark = pytest.mark.slow


@BOTH
@pytest.mark.parametrize(
    ("rows", "k", "graph"),
    [
        (ring(70), 1, "binary"),
        (ring(70), 3, "weighted"),
        (noise(13, 15, 20), 6, "weighted"),
        (noise(13, 15, 20), 30, "binary"),
    ],
    ids=["one of a ring", "three of a ring", "six of noise", "many of noise"],
)
def test_restarts(target: Target, rows: Tensor, k: int, graph: str) -> None:
    """A basis that is full, or the search for a copy of an eigenvalue."""
    values, vectors = target(selfment.ncut, rows, k=k, graph=graph)
    expected, expected_vectors = selfment.ncut(rows, k=k, graph=graph)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7)
    A = selfment.affinity(rows, graph=graph).to_dense()
    error = (A.sum(1)[:, None] * vectors - A @ vectors) - values * A.sum(1)[:, None] * vectors
    assert error.abs().max() < 1e-6
    assert (vectors - expected_vectors).abs().max() < 1e-4


TEAMS = pytest.mark.parametrize("size", [2, 3])


EVERY_ORDER = pytest.mark.parametrize("order", ["forward", "reverse", "shuffle"])


@EVERY_ORDER
@TEAMS
def test_teams_of_blocks(
    emulated: ModuleType, size: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation, its blocks in teams that the sizes here would not get: bit for bit."""
    target = Target(emulated, monkeypatch)
    rows, grid = batch_of(2, 6, 13, 24), (6, 13)
    inputs = rows, ring(66), copies(), noise(11, 12, 20), *turned_over()

    def everything(
        rows: Tensor, restarts: Tensor, merges: Tensor, several: Tensor, *turned: Tensor
    ) -> list[Tensor]:
        one = eigenpairs(selfment.affinity(restarts), 1)
        few = selfment.ncut(merges, k=3), selfment.ncut(several, k=6)
        lapack = selfment.ncut(rows, k=2, sign="lapack", graph="weighted")
        steps = run_ipo(*(each[None] for each in turned), IpoOptions(iters=20, min_count=1))
        return [*every_operation(rows, grid), *vars(one).values(), *sum(few, ()), *lapack, *steps]

    def memory() -> int:
        return int(emulated.fiedler_scratch(2, 78, 1, False, False, 0))

    expected, of_two_teams = target(everything, *inputs), memory()
    monkeypatch.setenv("SELFMENT_EMULATED_TEAM", str(size))
    monkeypatch.setenv("SELFMENT_EMULATED_ORDER", order)
    assert memory() < of_two_teams  # three blocks make one team of this size
    found = target(everything, *inputs)
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


@TEAMS
def test_teams_of_blocks_with_two_tables(
    emulated: ModuleType, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 1024 patches: the look-up tables of a product are filled twice."""
    target = Target(emulated, monkeypatch)
    rows, grid = smooth(33, 34, 16, seed=16), (33, 34)
    for order in ("forward", "reverse", "shuffle"):
        monkeypatch.setenv("SELFMENT_EMULATED_ORDER", order)
        monkeypatch.setenv("SELFMENT_EMULATED_TEAM", str(size))
        found = target(selfment.pseudo_label, rows, grid=grid)
        assert_close(found, selfment.pseudo_label(rows, grid))
        monkeypatch.delenv("SELFMENT_EMULATED_TEAM")
        assert_same(target(selfment.pseudo_label, rows, grid=grid), found)


@pytest.mark.parametrize("group", [4, 8, 16])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensor_cores_that_truncate_their_sums(
    emulated: ModuleType, dtype: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edges are exact however the cores add: the bound of the filter covers it."""
    target = Target(emulated, monkeypatch)
    monkeypatch.setenv("SELFMENT_EMULATED_MMA_GROUP", str(group))
    products = 0.2 + 1e-7 * torch.randn(100, generator=generator(0), dtype=torch.float64)
    rest = torch.nn.functional.normalize(noise(1, 100, 31, seed=1).double(), dim=1)
    near = torch.cat([products[:, None], rest * (1 - products[:, None] ** 2).sqrt()], dim=1)
    near = torch.cat([torch.eye(32, dtype=torch.float64)[:1], near])
    for rows in (near, smooth(9, 13, 200, seed=17), 3 + noise(9, 13, 333)):
        typed = rows.to(getattr(torch, dtype))
        for tau in (0.2, 0.0, 0.9):
            expected = selfment.affinity(typed, tau=tau).bits
            assert torch.equal(target(edges, typed, tau=tau)[0], expected)


def test_what_scratch_held_makes_no_difference(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even NaN, which no factor of 0 takes away."""
    target = Target(emulated, monkeypatch)
    rows = batch_of(4, 9, 14, 33).bfloat16()
    options = [{"grid": (9, 14), "graph": graph} for graph in GRAPHS]
    expected = [target(selfment.pseudo_label, rows, **option) for option in options]

    def filled(*size: Any, **kind: Any) -> Tensor:
        return torch.zeros(*size, **kind).view(torch.uint8).fill_(255).view(kind["dtype"])

    monkeypatch.setattr(torch, "empty", filled)
    for option, wanted in zip(options, expected, strict=True):
        assert_same(target(selfment.pseudo_label, rows, **option), wanted)


@pytest.mark.parametrize("shared_bytes", [96 << 10, 227 << 10])
def test_where_the_graph_lies_makes_no_difference(
    emulated: ModuleType, shared_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shared memory where it fits, else in the device's."""
    target = Target(emulated, monkeypatch)
    rows, grid = smooth(29, 31, 48), (29, 31)  # 105 KiB of bits, for three blocks
    monkeypatch.setenv("SELFMENT_EMULATED_SHARED_BYTES", str(shared_bytes))
    found = target(selfment.pseudo_label, rows.expand(3, -1, -1).contiguous(), grid=grid)
    assert_close(
        PseudoLabels(*(v[2] for v in vars(found).values())), selfment.pseudo_label(rows, grid)
    )


@pytest.mark.skipif("SELFMENT_EMULATED_FLAGS" in os.environ, reason="this is that run")
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """The emulated tests once more: addresses and arithmetic checked, threads in another order."""
    command = emulation.compiler()
    if command is None:
        pytest.skip("no C++ compiler: neither $CXX nor c++")
    names = ["libasan.so", "libubsan.so", "libstdc++.so.6"]
    found = [processes.run([*command, f"-print-file-name={name}"]) for name in names]
    libraries = [done.stdout.strip() for done in found]
    if not all(os.path.isabs(library) for library in libraries):
        pytest.skip(f"the sanitizers' libraries are not there: {libraries}")
    environment = os.environ | {
        "SELFMENT_EMULATED_FLAGS": "-fsanitize=address,undefined -fno-sanitize-recover=all",
        "SELFMENT_EMULATED_ORDER": "shuffle",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaves much to the end of its process
    }
    few = "isolated or outlier or tiny or deep"
    tests = f"(test_graph or test_labels or test_ipo) and ({few}) or test_dtypes or list_holds"
    tests += " or long_rows or turn_over or a_graph_that or nearly_zero or joint"
    tests += " or (lists_and_iterables and float32) or (join_the_landmarks and smooth and bfloat16)"
    files = sorted(Path(__file__).parent.glob("test_cuda*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = processes.run(
        [*command, "-k", f"emulated and ({tests})", f"--basetemp={tmp_path / 'inner'}"],
        env=environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
