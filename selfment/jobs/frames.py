"""Folders with a PNG file for each frame of a video, which appear when they are complete.

The frames are numbered from 0, ``000000.png``, as in the video.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from PIL import Image

from ..util.files import atomic_folder

_FRAME = re.compile(r"\d{6,}\.png")


def frame_folder(video: str) -> str:
    """Returns the name of the folder with the frames of an output video, both relative."""
    return str("frames" / PurePosixPath(video).with_suffix(""))


class FrameFolder:
    """Writes images into a folder, numbered in their order by 0, ``every``, 2 ``every``, ..."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every = folder, every
        self._number = 0

    def write(self, image: Image.Image) -> None:
        """Writes the image of the next frame."""
        image.save(self._folder / f"{self._number:06}.png")
        self._number += self._every


@contextmanager
def new_frame_folder(path: Path, every: int) -> Iterator[FrameFolder]:
    """Fills a folder that takes the name ``path``, and the place of its frames, at the end.

    ``every``: of so many frames of the video the folder has one. If the block raises, nothing is
    left. Raises ``OSError``, also if other files are in ``path``.
    """
    with atomic_folder(path, remove_output) as folder:
        yield FrameFolder(folder, every)


def has_frames(path: str | os.PathLike[str], count: int) -> bool:
    """True if a folder has at least ``count`` frames, and none is empty; raises ``OSError``.

    A power failure can leave an empty file under the name of a new one.
    """
    with os.scandir(path) as entries:
        sizes = [entry.stat().st_size for entry in entries if _FRAME.fullmatch(entry.name)]
    return len(sizes) >= count and all(sizes)


def remove_output(path: Path) -> None:
    """Removes an output file, or a folder of frames; raises ``OSError`` if other files are in it.

    Then the frames are gone, and the other files stay.
    """
    if path.is_dir() and not path.is_symlink():
        for name in filter(_FRAME.fullmatch, os.listdir(path)):
            (path / name).unlink()
        path.rmdir()
    else:
        path.unlink()
