"""Too little memory: a MemoryError that says for what, and a process that goes on."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers import processes
from helpers.cases import smooth

# One number that is shown as features too large for any machine.
ONE = torch.ones(1)
HUGE = 2**20  # HUGE^2 float32 are 4 TiB


def huge(*shape: int) -> Tensor:
    return ONE.expand(shape)


def assert_usable() -> None:
    label = selfment.pseudo_label(smooth(9, 10, 12), (9, 10))
    assert torch.equal(label.mask, selfment.reference.pseudo_label(smooth(9, 10, 12), (9, 10)).mask)


CALLS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "affinity": (selfment.affinity, (HUGE, HUGE)),
    "ncut": (selfment.ncut, (HUGE, HUGE)),
    "pseudo_label": (lambda f: selfment.pseudo_label(f, (1024, 1024)), (HUGE, HUGE)),
    "batch": (lambda f: selfment.pseudo_label(f, (1024, 1024)), (3, HUGE, HUGE)),
    "auto": (lambda f: selfment.pseudo_label(f, (1024, 1024), tau="auto"), (HUGE, HUGE)),
    "maps": (selfment.pseudo_label, (3, HUGE, 1024, 1024)),
    "joint": (lambda f: selfment.joint_label(f, (1024, 1024)), (3, HUGE, HUGE)),
    "ipo": (lambda f: selfment.ipo(f, huge(HUGE)), (HUGE, HUGE)),
    "multi_label": (lambda f: selfment.multi_label(f, (1024, 1024)), (HUGE, HUGE)),
    "regions": (lambda f: selfment.regions(f, (1024, 1024), k=2), (HUGE, HUGE)),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_features_that_no_machine_holds(call: str) -> None:
    function, shape = CALLS[call]
    found = rf"^not enough memory for `features` of shape \({', '.join(map(str, shape))}\)"
    found += r": \d{13,} bytes could not be allocated"
    if call == "joint":
        found += "; the exact graph of 3,145,728 patches takes 1,236,950,581,248 bytes, and that "
        found += r"of m `landmarks` takes m\^2 / 8"
    with pytest.raises(MemoryError, match=found + "$"):
        function(huge(*shape))
    assert_usable()


def test_numpy_arrays_that_no_machine_holds() -> None:
    features = np.broadcast_to(np.float32(1), (HUGE, HUGE))
    found = r"^not enough memory for `features` of shape \(1048576, 1048576\): 4.00 TiB could not"
    with pytest.raises(MemoryError, match=found):
        selfment.affinity(features)


def test_sizes_beyond_64_bits() -> None:
    found = r"^not enough memory for `features` of shape \(2147483648, 2147483648\)$"
    with pytest.raises(MemoryError, match=found):
        selfment.affinity(huge(2**31, 2**31))
    for features in (huge(2**31 + 1, 1), huge(1, 1, 2**16, 2**16)):
        with pytest.raises(ValueError, match=r"at most 2\^31 patches of a graph: got N = \d+$"):
            selfment.affinity(features)
    with pytest.raises(ValueError, match=r"at most 2\^31 patches of a graph: got N = 2148532224$"):
        selfment.joint_label(huge(2049, 2**20, 1), (1024, 1024))


def test_a_vector_that_no_machine_holds() -> None:
    graph = selfment.affinity(smooth(4, 8, 12))
    with pytest.raises(
        MemoryError, match=r"^not enough memory for `x` of shape \(32, 274877906944"
    ):
        graph.matvec(huge(32, 2**38))


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("selfment.core.graph.build", fails)
    with pytest.raises(RuntimeError, match=r"^something else$"):
        selfment.affinity(torch.eye(4))


def limited(body: str) -> str:
    """What a process prints that may take 1 GiB of addresses more than it has at its start."""
    script = """
import re, resource, torch, selfment
from pathlib import Path
torch.set_num_threads(1)
selfment.pseudo_label(torch.rand(100, 8), (10, 10))
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
def limit(mib):
    resource.setrlimit(resource.RLIMIT_AS, (taken + mib * 2**20, -1))
def message(call, *arguments, **options):
    try:
        call(*arguments, **options)
        return "no error"
    except MemoryError as error:
        return str(error)
"""
    script += textwrap.dedent(body)
    script += "print(selfment.pseudo_label(torch.eye(100), (10, 10)).mask.shape)\n"
    run = processes.run([sys.executable, "-c", script])
    assert run.returncode == 0, run.stderr
    *lines, last = run.stdout.splitlines()
    assert last == "torch.Size([10, 10])"
    return "\n".join(lines)


linux = pytest.mark.skipif(sys.platform != "linux", reason="limits addresses as Linux counts them")


@pytest.mark.slow
@linux
def test_a_copy_that_does_not_fit() -> None:
    said = limited(
        """
        limit(1024)
        print(message(selfment.affinity, torch.ones(1).expand(70_000, 40_000)))
        """
    )
    shape = "`features` of shape (70000, 40000)"
    assert said == f"not enough memory for {shape}: 11200000000 bytes could not be allocated"


@pytest.mark.slow
@linux
def test_scratch_that_does_not_fit() -> None:
    """std::bad_alloc in the caller's thread: a Lanczos basis of 3 k vectors."""
    said = limited(
        """
        features = torch.rand(8000, 4)
        limit(768)
        print(message(selfment.ncut, features, k=2600))
        """
    )
    assert said == "not enough memory for `features` of shape (8000, 4)"


@pytest.mark.slow
@linux
@pytest.mark.parametrize("threads", [1, 4])
def test_scratch_of_worker_threads_that_does_not_fit(threads: int) -> None:
    """std::bad_alloc in a thread of the kernels, or no memory for the thread itself."""
    said = limited(
        f"""
        torch.set_num_threads({threads})
        features = torch.rand(8, 1600, 4096, dtype=torch.bfloat16)
        features[:, :500] += 1
        failed, masks = 0, []
        for mib in (*range(0, 160, 8), 4096):
            limit(mib)
            try:
                masks.append(selfment.pseudo_label(features, (40, 40), graph="weighted").mask)
            except MemoryError as error:
                assert str(error).startswith("not enough memory for `features`"), error
                failed += 1
        assert all(torch.equal(mask, masks[-1]) for mask in masks)
        print(failed)
        """
    )
    assert int(said) > 1
