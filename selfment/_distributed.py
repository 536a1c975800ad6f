"""The processes of a run that ``torchrun`` starts; a single one without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


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
    # One may label for long while the others wait; torchrun ends all if one fails.
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=7))
    try:
        yield
    finally:
        distributed.destroy_process_group()


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
    with process_group(torch.device("cpu")):
        return any(gathered(count))


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
