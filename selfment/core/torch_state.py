"""Torch's global state: what is documented as float32 is so, whatever the caller has set."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch


class ProcessLock:
    """A lock that its own thread may take again, and that a forked process finds open."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Waits for the lock, and holds it."""
        with self._lock:
            yield


#: Held while a model is loaded.
LOADING = ProcessLock()
#: Held while other settings are changed that belong to the process, such as filters of warnings:
#: two callers would undo each other's.
SETTINGS = ProcessLock()


def as_documented(device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """Computes on ``device`` without the caller's autocast and default device.

    Both belong to the calling thread, so that other threads notice nothing. The default dtype
    belongs to the process and is left alone: code inside must name its dtypes. What torch.compile
    traces must be called inside already.

    Args:
        device: where the work is done; autocast is also off for the CPU.
    """
    return nullcontext() if torch.compiler.is_compiling() else _as_documented(torch.device(device))


@contextmanager
def _as_documented(device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        for kind in {"cpu", device.type}:
            if autocasts(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Only where it is needed: torch.compile guards on the modes that are active.
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def loading() -> Iterator[None]:
    """Builds modules as in a process that has changed no setting of torch.

    They get float32 parameters on the CPU which are no inference tensors, and the caller's random
    numbers go on as if nothing had been drawn. Default dtype and random state belong to the
    process: one thread at a time is inside, and other threads see the default dtype float32
    meanwhile.
    """
    with LOADING.held(), torch.inference_mode(False), as_documented():
        dtype = torch.get_default_dtype()
        try:
            if dtype != torch.float32:
                torch.set_default_dtype(torch.float32)
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            if dtype != torch.float32:
                torch.set_default_dtype(dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Computes on ``device`` in the dtypes of the operands; torch.compile may trace it."""
    return autocast(device, None)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Computes on ``device`` with autocast to ``dtype``, or without autocast for None.

    torch.compile may trace it. What torch.export traces must be called without autocast already.
    """
    compiles = torch.compiler.is_compiling()
    if dtype is None and compiles and not torch.compiler.is_dynamo_compiling():
        return nullcontext()  # torch.export: torch 2.6 cannot save a context
    if dtype is not None or compiles or autocasts(device.type):
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    return nullcontext()


def autocasts(kind: str) -> bool:
    """True if autocast is on for this type of device."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def as_device(device: torch.device | str) -> torch.device:
    """The device, which exists and holds numbers; raises ``ValueError`` otherwise."""
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"`device` must be a torch device such as 'cpu': got {device!r}") from None
    if resolved.type == "cpu":
        return resolved
    if resolved.type == "meta":
        raise ValueError("`device` must be one that holds numbers: got 'meta'")
    name = str(device)
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(f"`device` must exist: got {name!r}, torch sees no such CUDA device")
        return resolved
    try:
        torch.zeros(1, dtype=torch.float32, device=resolved).cpu()
    except Exception as error:  # each type of device has errors of its own
        raise ValueError(
            f"`device` must be one that torch can use here: got {name!r}, and torch has no such "
            "device on this machine"
        ) from error
    return resolved
