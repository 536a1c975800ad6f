"""Features that are read block by block: arrays, memory maps, and frames that are made on the way.

Blocks have the same rows whatever the features come in, so that sums over them have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import ArrayType, Features
from .twins import twin_of

_ELEMENTS = 2**22  # of a block, about
_ROWS = (1024, 8192)  # of a block: at least, at most


@dataclass(frozen=True)
class Blocks:
    """N rows of d features; iterating over them reads all rows once, in blocks."""

    n: int
    d: int
    dtype: torch.dtype
    device: torch.device
    array_type: ArrayType  #: the caller's type of array
    read: Callable[[], Iterator[Tensor]]  #: yields the rows in parts of any size, (n_i, d)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(1, N, d), as of a batch of one image."""
        return 1, self.n, self.d

    @property
    def block_rows(self) -> int:
        """The rows of each block but the last; they do not depend on the dtype."""
        least, most = _ROWS
        return min(most, max(least, _ELEMENTS // self.d // 64 * 64))

    def __iter__(self) -> Iterator[Tensor]:
        """Yields blocks that kernels can read; each is valid until the next one is asked for."""
        size, buffer, twin = self.block_rows, None, twin_of(self.device)
        filled = start = 0
        for part in self.read():
            first = 0
            while first < len(part):
                count = min(size - filled, len(part) - first)
                rows = part[first : first + count]
                first += count
                if filled == 0 and count == min(size, self.n - start) and rows.is_contiguous():
                    start += count
                    yield twin.readable(rows)
                    continue
                if buffer is None:
                    buffer = self._empty(min(size, self.n))
                buffer[filled : filled + count] = rows
                filled, start = filled + count, start + count
                if filled == size or start == self.n:
                    yield buffer[:filled]
                    filled = 0

    def source(self) -> dict[str, Any]:
        """Returns the arguments with which a native operation reads the blocks."""
        return {"features": 0, "read": _Reader(self), "block_rows": self.block_rows}

    def select(self, index: Tensor) -> Tensor:
        """Returns the rows at an ascending ``index``, (m,) int64 on the CPU, from one pass."""
        chosen, first, done = self._empty(len(index)), 0, 0
        for block in self:
            last = int(torch.searchsorted(index, first + len(block)))
            own = (index[done:last] - first).to(self.device)
            torch.index_select(block, 0, own, out=chosen[done:last])
            first, done = first + len(block), last
        return chosen

    def _empty(self, rows: int) -> Tensor:
        return torch.empty((rows, self.d), dtype=self.dtype, device=self.device)


class _Reader:
    """Returns the addresses of block 0, 1, ..., for passes that each begin with block 0."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._pass = iter(blocks)
        self._block: Tensor | None = None

    def __call__(self, index: int) -> int:
        """Reads the next block, or the first one of a new pass."""
        if index == 0:
            self._pass = iter(self._blocks)
        self._block = next(self._pass)  # kept alive until the next call
        return self._block.data_ptr()


def array_blocks(checked: Features) -> Blocks:
    """Returns the blocks of checked features in memory, or in a map of it."""
    tensor = checked.tensor
    batch, n, d = tensor.shape
    parts: Sequence[Tensor] = [tensor.view(-1, d)] if tensor.is_contiguous() else tensor.unbind()
    form = batch * n, d, tensor.dtype, tensor.device
    return Blocks(*form, checked.array_type, lambda: iter(parts))


def without_copy(features: Any) -> Any:
    """Returns a numpy array as one that may be written to, which torch asks for; nothing does."""
    if not isinstance(features, np.ndarray) or features.flags.writeable:
        return features
    return np.asarray(_Shared(features))


class _Shared:
    """The memory of a read-only array, under numpy's array interface."""

    def __init__(self, array: Any) -> None:
        self._array = array  # kept alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}
