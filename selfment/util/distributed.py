"""The processes of a run that ``torchrun`` starts; a single one without it."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

# One may label for long while the others wait; torchrun ends all if one fails.
_PATIENCE = timedelta(days=7)


def world() -> tuple[int, int]:
    """The rank of this process and how many there are."""
    if distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the other processes, if there are any, and leaves them at the end."""
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
    """Keys and values that the processes of this start share, the rank, and how many there are."""
    store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    return distributed.PrefixStore(_agreed(store, rank, size), store), rank, size


def _agreed(store: Any, rank: int, size: int) -> str:
    """A name that the processes of this start share, and those of an earlier one never had.

    The store of ``torchrun`` outlives a restart, and nodes count their restarts differently:
    without such a name a process may take the address of one that was killed for its peer's.
    The first process lists who is there until all have seen the same list, themselves on it.
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
        time.sleep(0.02)


def _read(store: Any, key: str) -> str:
    """The value of a key; empty if there is none."""
    return store.get(key).decode() if store.check([key]) else ""


def restarted() -> bool:
    """Whether ``torchrun`` has started the processes again, after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def any_failed(count: int) -> bool:
    """Whether the ``count`` of any process is positive.

    ``torchrun`` ends all processes when one ends with an error: each waits here for the others, so
    that a broken image does not end their work. Other launchers do not, and nothing waits.
    """
    if not distributed.is_torchelastic_launched():
        return count > 0
    # Through torchrun's store alone: to leave a process group of gloo can hang (torch 2.6).
    store, rank, size = _own_store()
    store.set(f"failed/{rank}", str(count))
    return any(int(store.get(f"failed/{other}")) > 0 for other in range(size))


def gathered(value: Any) -> list[Any]:
    """What every process passed, by rank; waits for all of them."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of ``values`` over the processes."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values
