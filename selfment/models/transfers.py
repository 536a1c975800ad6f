"""Copies to and from a CUDA device that run while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor


def upload(batch: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on ``device``; a copy to a CUDA device overlaps with its earlier work.

    The copy goes through pinned memory on a stream of its own, which the caller's stream waits for.
    """
    if device.type != "cuda" or batch.is_cuda:
        return batch.to(device)
    computes = torch.cuda.current_stream(device)
    copies = _copies(computes.device)
    with torch.cuda.stream(copies):
        copied = batch.pin_memory().to(computes.device, non_blocking=True)
    computes.wait_stream(copies)
    copied.record_stream(computes)
    return copied


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """Returns the stream of the copies to a device.

    There is one, because torch keeps the memory of each stream for that stream alone.
    """
    return torch.cuda.Stream(device)


def uploads(tensors: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yields tensors on ``device``; the caller may be ahead of the work on them there.

    On a CUDA device a caller that keeps none of them has the memory of three in use at most: the
    next one waits for the work on the last but one.
    """
    before = None
    for tensor in tensors:
        yield upload(tensor, device)
        if device.type == "cuda":
            done = torch.cuda.current_stream(device).record_event()
            if before is not None:
                before.synchronize()
            before = done


def download(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begins to copy tensors to the CPU; returns the function that waits for the copies."""
    copied = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def wait() -> list[Tensor]:
        for event in events:
            event.synchronize()
        return copied

    return wait
