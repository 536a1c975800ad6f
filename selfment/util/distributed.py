"""The processes of a run: those started by ``torchrun``, or a single one without it."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

# Processes may wait long for one that still labels; torchrun ends all of them if one fails.
_PATIENCE = timedelta(days=7)
_PAUSE = 0.02  # seconds between two looks at the store

_purposes = itertools.count()  # numbers of the uses of the store


def world() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes."""
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the process group of the run, if there is one, and leaves it at the end."""
    if world()[1] == 1 or distributed.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, size = _own_store()
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _own_store() -> tuple[Any, int, int]:
    """Returns a key-value store for one purpose, the rank and the world size.

    All processes of a run must make the same calls in the same order, but need not wait for each
    other in between.
    """
    store, rank, size = _run_store()
    return distributed.PrefixStore(str(next(_purposes)), store), rank, size


@cache
def _run_store() -> tuple[Any, int, int]:
    """Returns a key-value store for the processes of this start, the rank and the world size."""
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    return distributed.PrefixStore(_agreed_name(store, rank, size), store), rank, size


def _agreed_name(store: Any, rank: int, size: int) -> str:
    """Returns a name shared by the processes of this start and by no earlier ones.

    The store of ``torchrun`` outlives a restart, and nodes count their restarts differently.
    Without such a name a process may connect to the address of a killed process. The first process
    publishes a list of the processes until every process has seen the same list with itself on it.
    A process does so once: its second name could come before the others have seen the first.
    """
    own = uuid.uuid4().hex
    store.set(f"here/{rank}", own)
    while True:
        if rank == 0:
            store.set("all", ",".join(store.get(f"here/{r}").decode() for r in range(size)))
        everyone = store.get("all")
        if own in everyone.decode().split(","):
            name = hashlib.sha256(everyone).hexdigest()
            store.set(f"seen/{rank}", name)
            if rank == 0 and all(_read(store, f"seen/{r}") == name for r in range(size)):
                store.set("go", name)
            if _read(store, "go") == name:
                return name
        time.sleep(_PAUSE)


def _read(store: Any, key: str) -> str:
    """Returns the value of a key, or an empty string if the store lacks it."""
    return store.get(key).decode() if store.check([key]) else ""


def _awaited(store: Any, key: str) -> bytes:
    """Waits for a key, and returns its value; a signal is handled meanwhile."""
    while not store.check([key]):
        time.sleep(_PAUSE)
    value: bytes = store.get(key)
    return value


def restarted() -> bool:
    """Returns whether ``torchrun`` restarted the processes after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def any_failed(count: int) -> bool:
    """Returns whether the ``count`` of any process is positive.

    ``torchrun`` ends all processes when one ends with an error. Therefore each process waits here
    for the others, so that a broken image does not end their work. Under other launchers a process
    does not wait, and considers its own ``count`` only.
    """
    if not distributed.is_torchelastic_launched():
        return count > 0
    # This uses torchrun's store only: leaving a process group of gloo can hang (torch 2.6).
    store, rank, size = _own_store()
    store.set(f"failed/{rank}", str(count))
    counts = [int(_awaited(store, f"failed/{other}")) for other in range(size)]
    return max(counts) > 0


def shared(plan: Callable[[], tuple[Any, Sequence[Any]]]) -> tuple[Any, Iterator[Any]]:
    """Returns what all processes need, and the items that this process takes.

    ``torchrun``'s first process calls ``plan``, whose result can be pickled, and each process takes
    the next item when it has done one. A process alone takes all. Raises what ``plan`` raises, or
    ``ValueError`` in the other processes, and under launchers that share no store.
    """
    if not distributed.is_torchelastic_launched():
        if world()[1] > 1:
            raise ValueError(
                "tar files and tables must be shared out by torchrun or --engine ray: got "
                f"WORLD_SIZE={world()[1]} of another launcher"
            )
        common, items = plan()
        return common, iter(items)
    store, rank, _ = _own_store()
    if rank == 0:
        planned = None
        try:
            planned = plan()
        finally:  # the others must not wait for a plan that has failed
            store.set("plan", pickle.dumps(planned))
    planned = pickle.loads(_awaited(store, "plan"))
    if planned is None:
        raise ValueError("the first process has found that the run cannot begin")
    common, items = planned
    return common, _next_items(store, items)


def _next_items(store: Any, items: Sequence[Any]) -> Iterator[Any]:
    while (index := store.add("taken", 1) - 1) < len(items):
        yield items[index]


def gathered(value: Any) -> list[Any]:
    """Waits for all processes and returns the values that they passed, by rank."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """Returns the mean of ``values`` over the processes; it may be computed in place."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values
