"""Many callers at once: threads, forked and spawned workers, and the end of the interpreter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import selfment
from helpers import processes
from helpers.callers import calling, run_at_once
from helpers.cases import smooth

GRID = (30, 31)


class Labels(Dataset[Tensor]):
    """Labels of features that exist before a fork: MKL, in torch's products, can hang after it."""

    def __init__(self) -> None:
        self.features = [smooth(12, 12, 16, seed=index) for index in range(4)]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Tensor:
        mask: Tensor = selfment.pseudo_label(self.features[index], (12, 12)).mask
        return mask


def values(found: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, selfment.PseudoLabels | selfment.Objects):
        return [getattr(found, field.name) for field in fields(found)]
    return [value for part in found for value in values(part)]


def painted(features: Tensor) -> list[Tensor]:
    graph = selfment.affinity(features, graph="weighted")
    rest = graph.paint(torch.arange(graph.n) % 3 == 0)
    x = torch.linspace(-1, 1, graph.n, dtype=torch.float64)
    return [graph.degrees, graph.matvec(x), rest.degrees, rest.bits, rest.matvec(x)]


OPERATIONS: list[Callable[[Tensor], Any]] = [
    lambda f: selfment.pseudo_label(f, GRID),
    lambda f: selfment.pseudo_label(f, GRID, graph="weighted", tau="auto"),
    lambda f: selfment.ncut(f, k=4),
    lambda f: selfment.ipo(f, torch.arange(len(f)) % 2),
    lambda f: selfment.multi_label(f, GRID),
    lambda f: selfment.pseudo_label(f.expand(5, *f.shape), GRID),
    lambda f: selfment.ncut(selfment.affinity(f), k=2),
    painted,
]


def test_eight_threads_over_all_operations() -> None:
    features = smooth(*GRID, 160)  # so much that threads share it
    expected = [values(operation(features)) for operation in OPERATIONS]

    def work(start: int) -> None:
        # torch.set_num_threads holds for the thread that calls it.
        torch.set_num_threads(1 + start % 3)
        for turn in range(2 * len(OPERATIONS)):
            number = (start + turn) % len(OPERATIONS)
            found = values(OPERATIONS[number](features))
            same = all(map(torch.equal, found, expected[number]))
            assert same, f"operation {number} in thread {start}"

    run_at_once(work, 8)


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_works_in_loader_workers(method: str) -> None:
    expected = torch.stack([Labels()[index] for index in range(4)])
    loader = DataLoader(
        Labels(), batch_size=2, num_workers=2, multiprocessing_context=method, timeout=600
    )
    assert torch.equal(torch.cat(list(loader)), expected)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_while_other_threads_are_in_a_kernel() -> None:
    expected = torch.stack([Labels()[index] for index in range(4)])
    rows = smooth(60, 60, 256)
    with calling(lambda: selfment.affinity(rows), 3):
        for _ in range(3):
            loader = DataLoader(
                Labels(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=600
            )
            assert torch.equal(torch.cat(list(loader)), expected)


# The threads call the kernels themselves: in operations of torch, which release the GIL as well, a
# daemon thread can abort the process at its end, whoever calls them.
AT_THE_END = """
import signal, threading, torch, selfment
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from selfment.core import native as _native
n, d = 6400, 512
rows = torch.rand(n, d)
graph = selfment.affinity(rows)
weighted = selfment.affinity(rows, graph="weighted")
native, code = _native.cpu(), _native.cpu().DTYPES.index("float32")
of_rows = dict(features=rows.data_ptr(), dtype=code, batch=1, n=n, d=d, threads={threads})
out = torch.empty({callers}, 8 * n, dtype=torch.float64)
bits = torch.empty_like(graph.bits).expand({callers}, -1).contiguous()
through = [threading.Event() for _ in range({callers})]

def arguments(i):
    numbers = out[i].split(n)
    def of_graph(g):
        names = ("eigenvalues", "gaps", "residuals", "iterations")
        return dict(
            bits=g.bits.data_ptr(), weights=g.weights, degrees=g.degree.data_ptr(), batch=1, n=n,
            eps=1e-5, k=1, lapack_sign=False, vectors=numbers[0].data_ptr(), threads={threads},
            **{{name: numbers[j + 1].data_ptr() for j, name in enumerate(names)}},
        )
    return {{
        "affinity": dict(
            taus=graph.taus.data_ptr(), eps=1e-5, weights=None, bits=bits[i].data_ptr(),
            degrees=numbers[0].data_ptr(), **of_rows,
        ),
        "fiedler": of_graph(graph),
        "weighted": of_graph(weighted),
    }}

def work(call, given, once, kept):
    while True:
        call(**given)
        once.set()

kept = (rows, graph, weighted, out, bits)  # as callers do, a thread keeps what its kernel uses
for i in range({callers}):
    call = native.affinity if "{call}" == "affinity" else native.fiedler
    given = (call, arguments(i)["{call}"], through[i], kept)
    threading.Thread(target=work, args=given, daemon=True).start()
for once in through:
    once.wait()  # from here on nearly all of its time is the kernel's
print("the main thread ends", flush=True)
{last}
"""

CALLS = ("affinity", "fiedler", "weighted")


def end(call: str, callers: int, threads: int, last: str = "") -> subprocess.CompletedProcess[str]:
    script = AT_THE_END.format(call=call, callers=callers, threads=threads, last=last)
    return processes.run([sys.executable, "-c", script])


@pytest.mark.slow
@pytest.mark.parametrize(("callers", "threads"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("call", CALLS)
def test_daemon_threads_in_a_kernel_at_the_end(call: str, callers: int, threads: int) -> None:
    run = end(call, callers, threads)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == "the main thread ends\n"


@pytest.mark.slow
def test_an_error_at_the_end_while_daemon_threads_are_in_a_kernel() -> None:
    run = end("fiedler", 2, 2, "raise ValueError('of the main thread')")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "ValueError: of the main thread"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
@pytest.mark.parametrize("last", ["while True: selfment.affinity(rows)", "signal.pause()"])
def test_ctrl_c_while_daemon_threads_are_in_a_kernel(last: str) -> None:
    script = AT_THE_END.format(call="affinity", callers=2, threads=2, last=last)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with processes.started([sys.executable, "-c", script], **pipes) as process:
        assert process.stdout.readline() == "the main thread ends\n"
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=processes.LIMIT)[1]
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    # Python ends by the signal itself.
    assert process.returncode == -signal.SIGINT


# No grid is launched: the emulated device would be destroyed under it, as a real one is not.
IN_A_CUDA_CALL_AT_THE_END = """
import sys, threading
sys.path.insert(0, {folder!r})
import _cuda
through = [threading.Event() for _ in range(3)]

def work(once):
    while True:
        try:
            _cuda.fiedler_scratch(1, 64, 1, False, False, {device})
        except RuntimeError as error:
            assert "invalid device ordinal" in str(error)
        once.set()

for once in through:
    threading.Thread(target=work, args=(once,), daemon=True).start()
for once in through:
    once.wait()
print("the main thread ends", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("device", [0, 99], ids=["returns", "raises"])
def test_daemon_threads_in_a_cuda_call_at_the_end(device: int, emulated: ModuleType) -> None:
    folder = str(Path(str(emulated.__file__)).parent)
    script = IN_A_CUDA_CALL_AT_THE_END.format(folder=folder, device=device)
    run = processes.run([sys.executable, "-c", script])
    assert (run.returncode, run.stdout, run.stderr) == (0, "the main thread ends\n", "")
