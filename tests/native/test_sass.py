"""The kernels as machine code, for the oldest, the main and the newest architecture.

What no emulation can see: whether loops keep to registers, in which memory they look, and how much
of it an instruction moves. Needs nvcc and nvdisasm, and no device.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from helpers.folders import ROOT


def load_sass() -> Any:
    """benchmarks/sass.py, which the tables of docs/cuda.md are made with, too."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("sass")
    finally:
        sys.path.remove(folder)


sass = load_sass()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sass.obstacle()), reason=sass.obstacle() or "nothing lacks"),
]

ARITHMETIC = ("DADD", "DMUL", "DFMA", "FADD", "FMUL", "FFMA", "HMMA")
TYPES = ("float", "double", "Float16", "BFloat16")


class Machine:
    """All kernels for an architecture."""

    def __init__(self, arch: str) -> None:
        self.kernels = [k for source in sass.SOURCES for k in sass.compiled(source, arch)]

    def __getitem__(self, name: str) -> Any:
        return next(kernel for kernel in self.kernels if kernel.name == name)


@pytest.fixture(scope="module", params=["80", "90", "120"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(request.param)


def loops(kernel: Any) -> list[Any]:
    """The innermost loops."""
    return [loop for function in kernel.functions for loop in function.loops if loop.innermost]


def wide(loop: Any) -> list[int]:
    """The widths of its loads from global memory, in bytes."""
    return [i.width for i in loop.instructions if i.name in ("LDG", "LD") and i.width == 16]


def test_nothing_is_spilled(machine: Machine) -> None:
    assert len(machine.kernels) >= 20
    assert all(len(kernel.instructions) > 8 for kernel in machine.kernels)
    assert [(k.name, k.spills) for k in machine.kernels if k.spills] == []


def test_registers_let_the_blocks_be_resident(machine: Machine) -> None:
    """Of a multiprocessor's 65,536: one block of 512 threads, or two of 256."""
    large = ("fiedler", "ipo", "matvec", "comp", "landmarks: set_means", "landmarks: add_sums")
    for kernel in machine.kernels:
        most = 128 if kernel.name.startswith(large) else 255
        assert kernel.registers <= most, kernel.name


def test_kernels_without_a_stack(machine: Machine) -> None:
    """Those whose state is passed to functions have one: the solver, the product, IPO."""
    for kernel in machine.kernels:
        if not kernel.name.startswith(("fiedler", "ipo", "matvec")):
            assert kernel.stack == 0, kernel.name
            assert not any(i.space == "local" for i in kernel.instructions), kernel.name


@pytest.mark.parametrize("kernel", ["affinity: join", "landmarks: join_block"])
@pytest.mark.parametrize("bfloat16", ["false", "true"])
def test_the_loop_of_the_tensor_cores(machine: Machine, kernel: str, bfloat16: str) -> None:
    """Fragments come by ldmatrix, slabs by copies of 16 bytes; nothing else touches memory."""
    (loop,) = (loop for loop in loops(machine[f"{kernel}<{bfloat16}>"]) if loop.count("HMMA"))
    assert loop.count("HMMA") % 64 == 0
    touching = [i for i in loop.instructions if i.space and i.space != "constant"]
    assert {i.name for i in touching} == {"LDSM", "LDGSTS"}
    assert {i.width for i in touching} == {16}
    assert loop.count("LDSM") <= 16 / 64 * loop.count("HMMA")
    assert loop.count("FADD") == 2 * loop.count("HMMA")  # sums of 32 products are added
    assert loop.count("BAR") == 1
    # A multiprocessor issues 6.4 instructions in the time of one of the tensor cores' (sm_90).
    assert len(loop.usual) <= 5 * loop.count("HMMA")


READING = ["operand: prepare", "affinity: settle", "landmarks: settle_block"]
READING += ["ipo: optimize", "ipo: pass"]


@pytest.mark.parametrize("kernel", READING)
@pytest.mark.parametrize("type_", TYPES)
def test_features_are_read_16_bytes_at_a_time(machine: Machine, kernel: str, type_: str) -> None:
    """Four pieces on their way before the first is used; the other loads are of unaligned rows."""
    reading = [loop for loop in loops(machine[f"{kernel}<{type_}>"]) if wide(loop)]
    assert reading
    for loop in reading:
        assert len(wide(loop)) % 4 == 0
        # The sums of a class have a row's place there, of which they make hundreds of operations.
        assert loop.count("LDL", "STL") <= (8 if loop.count("SHFL") else 0)


@pytest.mark.parametrize("type_", ["float", "Float16", "BFloat16"])
def test_squares_are_summed_in_floats_where_doubles_are_slow(machine: Machine, type_: str) -> None:
    """A few doubles for the 16 or 32 elements that a lane reads at a time."""
    kernel = machine[f"operand: prepare<{type_}>"]
    in_floats = [loop for loop in loops(kernel) if wide(loop) and loop.count("REDUX")]
    assert len(in_floats) == (kernel.arch not in ("80", "90"))
    for loop in in_floats:
        assert loop.count("DADD", "DMUL", "DFMA", "F2F", "I2F") <= 20
        assert loop.count("FADD", "FMUL", "FFMA") >= 320


@pytest.mark.parametrize("type_", TYPES)
def test_a_score_reads_the_direction_16_bytes_at_a_time(machine: Machine, type_: str) -> None:
    scoring = [
        loop
        for loop in loops(machine[f"ipo: optimize<{type_}>"])
        if wide(loop) and loop.count("FFMA") and not loop.count("DADD")
    ]
    elements = {"double": 2, "float": 4}.get(type_, 8)
    assert len(scoring) == 1
    assert scoring[0].count("FFMA") == 4 * elements
    assert scoring[0].count("LDL", "STL") == 0
    pieces = 4 if type_ == "double" else 4 * elements // 4
    assert len(wide(scoring[0])) == 4 + (0 if type_ == "double" else pieces)


PRODUCTS = pytest.mark.parametrize(
    "kernel", ["fiedler: solve", "matvec: product", "landmarks: set_means", "landmarks: add_sums"]
)


@PRODUCTS
def test_loops_of_the_solver_know_their_memory(machine: Machine, kernel: str) -> None:
    """All but those that wait for another block: loads that might be of any memory cost more."""
    for loop in loops(machine[kernel]):
        generic = [i.opcode for i in loop.instructions if i.space == "generic"]
        assert all("STRONG" in opcode for opcode in generic)
        if loop.count(*ARITHMETIC) >= 4:
            assert loop.count("LDL", "STL") == 0


@PRODUCTS
def test_a_look_up_is_four_instructions(machine: Machine, kernel: str) -> None:
    """Its address, its load from shared memory, its addition; and a few for each word of bits."""
    look_ups = [
        (loop, loop.count("DADD") // 16)  # words at a time
        for loop in loops(machine[kernel])
        if loop.count("DADD") >= 16 and loop.count("DADD") % 16 == 0
    ]
    # The bits of a word may lie in shared memory, too.
    look_ups = [(loop, n) for loop, n in look_ups if 16 * n <= loop.count("LDS") <= 17 * n]
    deepest = max(loop.depth for loop, _ in look_ups)
    for loop, words in ((loop, n) for loop, n in look_ups if loop.depth == deepest):
        assert len(loop.usual) <= words * (16 * 4 + 20)
        assert loop.count("LDL", "STL", "BAR", "CALL") == 0
