"""The features of frames in a temporary file, for a cut that reads them several times."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from .arrays import Grid


@contextmanager
def spilled_frames(
    folder: str | os.PathLike[str] | None = None, expected: int | None = None
) -> Iterator[SpilledFrames]:
    """Opens a file for features in ``folder``, or where temporary files usually are.

    The file has no name, so that the system frees it at the end of the block, and also if the
    process is killed. ``expected``: so many frames are to come, if that is known.
    """
    where = Path(tempfile.gettempdir() if folder is None else folder)
    with tempfile.TemporaryFile(buffering=0, dir=where) as file:
        yield SpilledFrames(file, where, expected)


class SpilledFrames:
    """The (N_i, d) features of frames, in a file; iterating over them reads one at a time.

    They are the very bits that were added, on the CPU.
    """

    def __init__(self, file: FileIO, folder: Path, expected: int | None = None) -> None:
        """``folder``: where the file is; ``expected``: see :func:`spilled_frames`."""
        self.grids: list[Grid] = []  #: of the frames, in order
        self.device = torch.device("cpu")  #: where the features of the first frame were
        self._file, self._folder, self._expected = file, folder, expected
        self._forms: list[tuple[torch.Size, torch.dtype]] = []

    def add(self, rows: Tensor, grid: Grid) -> None:
        """Writes the (N, d) features of the next frame.

        Raises ``OSError`` if the disk is full, or has too little room for all that is expected.
        """
        data = _bytes_of(rows.cpu().contiguous())
        if not self.grids:
            self.device = rows.device
        if not self.grids and self._expected is not None:
            needed, free = self._expected * len(data), shutil.disk_usage(self._folder).free
            if needed > free:
                rest = f"about {needed:,} bytes, {free:,} are free"
                raise self._full(f"the features of {self._expected} frames take {rest}")
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            done = sum(size.numel() * dtype.itemsize for size, dtype in self._forms)
            raise self._full(f"{done:,} bytes of features had been written") from error
        self._forms.append((rows.shape, rows.dtype))
        self.grids.append(grid)

    def __len__(self) -> int:
        return len(self.grids)

    def __iter__(self) -> Iterator[Tensor]:
        place = 0
        for shape, dtype in self._forms:
            rows = torch.empty(shape, dtype=dtype)
            self._file.seek(place)  # several iterators may take turns
            place += self._file.readinto(_bytes_of(rows))
            yield rows

    def _full(self, reason: str) -> OSError:
        text = f"{os.strerror(errno.ENOSPC)} ({reason})"
        return OSError(errno.ENOSPC, text, str(self._folder))


def _bytes_of(rows: Tensor) -> memoryview:
    """Returns the memory of a contiguous tensor on the CPU."""
    memory: memoryview = rows.view(torch.uint8).numpy().data
    return memory.cast("B")
