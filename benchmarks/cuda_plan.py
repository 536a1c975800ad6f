"""Records what a call launches, without a device: kernels, grids, shared memory.

The host code of csrc/cuda is compiled with benchmarks/recording/emulation.h, and labels a batch
without reading its numbers, because nothing in it depends on data. Needs a C++ compiler and nm.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selfment.core import block_ops, blocks, twins
from selfment.core import ops as _ops

ROOT = Path(__file__).resolve().parent.parent
MEMORY = NO_KERNEL, COPY = "memset", "memcpy"

# Operators of torch that launch nothing: they return a view, or allocate memory.
_QUIET = re.compile(
    r"aten\.(empty|new_empty|empty_like|empty_strided|view|_unsafe_view|_reshape_alias|reshape|slice|"
    r"select|unsqueeze|squeeze|expand|expand_as|as_strided|detach|alias|t|transpose|permute|split|"
    r"split_with_sizes|unbind|unflatten|flatten|view_as|lift_fresh|is_same_size|_local_scalar_dense|"
    r"sym_size|stride|resize_)\b"
)

# A function of csrc/cuda, in whatever namespace.
_KERNEL = re.compile(
    r"(?:void )?selfment::cuda::(?:\w+::|\(anonymous namespace\)::)*(\w+(?:<.*>)?)\("
)

_OCCUPANCY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int64)


class _Recorder(ctypes.Structure):
    _fields_ = (
        ("multiprocessors", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("occupancy", _OCCUPANCY),
        ("launch", _LAUNCH),
    )


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel; `memset` sets ``shared`` bytes, `memcpy` copies them."""

    kernel: str
    blocks: int
    threads: int
    shared: int  # bytes of dynamic shared memory


@dataclass
class Plan:
    """All launches of a call: the module's, and the operators of torch that launch a kernel."""

    launches: list[Launch] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """The number of launches; an operator of torch counts as one."""
        return len(self.launches) + sum(self.operators.values())


class _Operators(TorchDispatchMode):
    """Counts the operators of torch that launch a kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = str(func)
        if name.startswith("selfment."):
            # A composite operator: its parts count, so it runs with this mode on.
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return func.redispatch(keys, *args, **(kwargs or {}))
        if name.startswith("aten.") and not _QUIET.match(name):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Device:
    """A device that records its launches.

    ``occupancy`` returns how many blocks of a kernel fit on a multiprocessor, from the kernel's
    name, threads and bytes of shared memory.
    """

    def __init__(
        self,
        folder: Path,
        multiprocessors: int,
        shared_bytes: int,
        occupancy: Callable[[str, int, int], int],
    ) -> None:
        """Compiles the module in ``folder``, which takes a minute."""
        emulated = _tests_module("emulated")
        flags = ["-O0", "-w", "-iquote", str(ROOT / "benchmarks/recording")]
        path: Path = emulated.build(folder, flags)
        self.module: ModuleType = emulated.load(path)
        self._names, origin = _symbols(path)
        library = ctypes.CDLL(str(path))
        recorder = _Recorder.in_dll(library, "selfment_recorder")
        self._base = ctypes.addressof(recorder) - origin
        self._plan = Plan()

        def fits(kernel: int, threads: int, shared: int) -> int:
            return occupancy(self._name(kernel), threads, shared)

        def launch(kernel: int | None, blocks: int, threads: int, shared: int) -> None:
            nothing = COPY if threads else NO_KERNEL
            name = nothing if kernel is None else self._name(kernel)
            self._plan.launches.append(Launch(name, blocks, threads, shared))

        # References, because the module has their addresses.
        self._callbacks = _OCCUPANCY(fits), _LAUNCH(launch)
        recorder.multiprocessors, recorder.shared_bytes = multiprocessors, shared_bytes
        recorder.occupancy, recorder.launch = self._callbacks

    def _name(self, address: int) -> str:
        return self._names[address - self._base]

    def plan(self, call: Callable[[], Any]) -> Plan:
        """Runs a call on CPU tensors and returns its launches."""
        self._plan = Plan()
        operators = _Operators()
        with self._current(), operators:
            call()
        self._plan.operators = operators.found
        return self._plan

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Makes CPU tensors appear to be on the device."""
        twin = twins.Cuda(self.module, torch.device("cpu"), 0, 0)
        with ExitStack() as stack:
            for module in (_ops, block_ops, blocks):
                stack.enter_context(mock.patch.object(module, "twin_of", return_value=twin))
            stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", True))
            yield


def _tests_module(name: str) -> Any:
    """Imports a module of tests/helpers/."""
    folder = ROOT / "tests"
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"helpers.{name}")
    finally:
        sys.path.remove(str(folder))


def _symbols(path: Path) -> tuple[dict[int, str], int]:
    """Returns the names of functions by offset, as in sass.py, and the offset of the recorder."""
    command = ["nm", "--demangle", "--defined-only", str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names, origin = {}, 0
    for line in said.splitlines():
        offset, _, name = line.split(" ", 2)
        if name == "selfment_recorder":
            origin = int(offset, 16)
        elif kernel := _KERNEL.match(name):
            names[int(offset, 16)] = kernel[1].replace("selfment::", "")
    return names, origin
