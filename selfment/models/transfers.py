"""Copies to and from a CUDA device that run while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def upload(batch: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor on ``device``; a copy to a CUDA device overlaps with its earlier work.

    The copy goes through pinned memory on a stream of its own, which the caller's stream waits for.
    """
    if device.type != "cuda" or batch.is_cuda:
        return batch.to(device)
    copies, computes = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        copied = batch.pin_memory().to(device, non_blocking=True)
    computes.wait_stream(copies)
    copied.record_stream(computes)
    return copied


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
