"""The twins of the native operations: what differs between the CPU and a CUDA device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import native as _native

_CPU_BYTES = 16 << 20  # limit on graphs and copied features in flight
_CUDA_BYTES = 1 << 30  # limit on graphs, copied features and scratch in flight


class Cpu:
    """Runs operations on as many threads as torch uses; an operation is done when it returns."""

    ordinal = -1
    labels_in_one_call = False
    sample_bytes = 1 << 20  # samples in flight: as many as fit into a cache

    def __init__(self) -> None:
        self.native = _native.cpu()

    def readable(self, rows: Tensor) -> Tensor:
        """Returns the rows, copied if they are not aligned to the size of a number."""
        return rows.clone() if rows.data_ptr() % rows.element_size() else rows

    def weights(self, batch: int, n: int) -> Any:
        """Makes room for weights; its memory grows with the edges."""
        return self.native.Weights(batch)

    def images_at_once(self, copied: int, weights: int, n: int, d: int, dtype: int) -> int:
        """Returns how many images keep the threads busy within the memory limit."""
        threads = _native.threads()
        most = max(_CPU_BYTES, threads * _CPU_BYTES // 8)
        # Only edges store a weight; assume that half of the pairs i <= j are edges.
        return min(8 * threads, most // (copied + n * n // 8 + weights * n * n + 1))

    def run(self, operation: str, sizes: dict[str, int] | None, **arguments: Any) -> Any:
        """Runs the native operation and returns its result; ``sizes`` are not needed here."""
        return getattr(self.native, operation)(**_addresses(arguments), threads=_native.threads())


@dataclass(frozen=True)
class Cuda:
    """Launches operations on the current stream; only IPO of blocks waits for the device.

    Scratch memory goes back to torch's allocator on return: whatever reuses it comes later in
    stream order.
    """

    native: ModuleType
    device: torch.device
    ordinal: int
    stream: int
    sample_bytes: ClassVar[int] = _CUDA_BYTES
    labels_in_one_call: ClassVar[bool] = True

    def current(self) -> AbstractContextManager[None]:
        """Makes the device current, and at the end the earlier one again.

        Torch does this, as it allocates no memory on a device that nothing has used yet. The native
        module has a CUDA runtime of its own, which would allocate some.
        """
        # An emulated module is on the CPU.
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def readable(self, rows: Tensor) -> Tensor:
        """Returns the rows, copied if they are not aligned to 16 bytes."""
        return rows.clone() if rows.data_ptr() % 16 else rows

    def weights(self, batch: int, n: int) -> Tensor:
        """Makes room for a float for each pair of patches i <= j, in whole tiles."""
        size = self.native.weights_size(n)
        return torch.empty((batch, size), dtype=torch.float32, device=self.device)

    def images_at_once(self, copied: int, weights: int, n: int, d: int, dtype: int) -> int:
        """Returns how many images the memory limit allows."""
        with self.current():
            label = self.native.label_scratch(
                dtype=dtype,
                batch=1,
                n=n,
                d=d,
                weighted=bool(weights),
                frames=1,
                device=self.ordinal,
            )
        return _CUDA_BYTES // int(copied + label)

    def run(self, operation: str, sizes: dict[str, int] | None, **arguments: Any) -> Any:
        """Launches the native operation on the stream.

        ``sizes`` determine how much scratch memory it gets; None stands for none.
        """
        for name in ("weights", "painted_weights"):
            if name in arguments and arguments[name] is None:
                arguments[name] = 0
        function = getattr(self.native, operation)
        with self.current():
            if sizes is not None:
                count = getattr(self.native, f"{operation}_scratch")(**sizes)
                arguments["scratch"] = torch.empty(count, dtype=torch.uint8, device=self.device)
            return function(**_addresses(arguments), device=self.ordinal, stream=self.stream)


def twin_of(device: torch.device) -> Cpu | Cuda:
    """Returns the twin for tensors on ``device``; raises ``ImportError`` without its module."""
    if device.type != "cuda":
        return Cpu()
    native = _native.cuda()
    stream = torch.cuda.current_stream(device)
    return Cuda(native, device, stream.device_index, stream.cuda_stream)


def _addresses(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.data_ptr() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
