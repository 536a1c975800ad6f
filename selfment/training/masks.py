"""Masks that exist, as labels: those of ``selfment label``, reviewed ones, and anybody else's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import options as params
from ..core.arrays import Grid
from ..evaluation.pairs import by_stem, find_suffix
from ..images.load import ImageEntry, ImageError
from ..images.maps import read_truth
from ..jobs.label_job import LabelJob
from ..jobs.records import StoredRecords
from ..util.distributed import world
from ..util.files import RealPaths, nfc, sha256_of
from ..util.lines import Record

_ROWS = 1 << 22  # pixels of a mask that are floats at a time
_SUFFIXES = ("_mask", "_saliency")  # of foreign masks; a mask counts more than a saliency


@dataclass(frozen=True)
class MaskLabel:
    """The label of an image from its mask."""

    target: Tensor  #: (N,) float32 in [0, 1], the share of each patch that is foreground
    digest: str  #: of the mask's file
    is_rejected: bool  #: True if the labeler rejected the image and its mask is still empty
    notes: Sequence[str]  #: how the mask was read, where that is unusual


class MaskFolder:
    """A folder of masks: which mask belongs to an image, and the labels in it.

    An image's mask is the one that the records of ``selfment label`` name for its path or, if they
    have no such path, for its name. If they name none that exists, it is the file with the image's
    relative path up to the suffix, perhaps followed by ``_mask`` or ``_saliency``, as in
    :func:`selfment.evaluate`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Reads the records; raises ``ValueError`` if there is no such folder."""
        is_folder = os.path.isdir(folder)
        params.require("labels", os.fspath(folder), "a folder that exists", is_folder)
        self.path = Path(os.path.abspath(folder))
        self._records = StoredRecords(
            self.path / LabelJob.records_file, LabelJob.key, world()[0] == 0
        )
        self.has_records = self._records.path.is_file()  #: records, which say what was rejected
        if self.has_records:
            self._records.read()
        self._by_path = {record.get("path"): record["image"] for record in self._records.all()}
        self._real_path = RealPaths()
        #: masks that belong to no image, relative, once :meth:`masks` has searched for files
        self.unused: list[str] = []

    def record(self, entry: ImageEntry) -> Record:
        """The record of an image; empty if there is none."""
        path = self._real_path(os.path.abspath(entry.path))
        return self._records.get(self._by_path.get(path, entry.name))

    def is_other(self, entry: ImageEntry) -> bool:
        """True if another file than this image, of another length, has been labelled."""
        size = self.record(entry).get("bytes")
        return size is not None and entry.path.is_file() and size != entry.path.stat().st_size

    def masks(self, entries: Sequence[ImageEntry]) -> list[Path | None]:
        """The mask of each image, None if there is none.

        Raises ``ValueError`` where several files could be the mask of an image.
        """
        masks = [self._recorded(entry) for entry in entries]
        if None not in masks:
            return masks
        stems = [nfc(entry.mask_name.removesuffix(".png")) for entry in entries]
        files = by_stem(self.path, "labels")
        suffix = find_suffix(files, set(stems), "labels", _SUFFIXES)
        masks = [
            files.get(f"{stem}{suffix}") if mask is None else mask
            for stem, mask in zip(stems, masks, strict=True)
        ]
        used = set(masks)
        self.unused = [
            file.relative_to(self.path).as_posix() for file in files.values() if file not in used
        ]
        return masks

    def read(
        self, entry: ImageEntry, mask: Path, image_size: tuple[int, int], grid: Grid
    ) -> MaskLabel:
        """Reads a mask on the patch grid (h, w) of its image, which has ``image_size`` (W, H).

        Raises :class:`selfment.images.ImageError`, also for a mask of another aspect ratio.
        """
        digest = sha256_of(mask)
        levels, notes = read_truth(mask)
        height, width = levels.shape
        if not _is_scaled((width, height), image_size):
            raise ImageError(
                f"{mask} must have the aspect ratio of its image: got {width} x {height} pixels "
                f"for the {image_size[0]} x {image_size[1]} of {entry.path} (masks of features in "
                "files have it if they are labelled with --images)"
            )
        is_rejected = bool(self.record(entry).get("rejected")) and not levels.any()
        shares = torch.from_numpy(area_averages(levels, grid)).flatten()
        return MaskLabel((shares / 255).clamp(0, 1), digest, is_rejected, notes)

    def _recorded(self, entry: ImageEntry) -> Path | None:
        name = self.record(entry).get("mask")
        return self.path / name if name and (self.path / name).is_file() else None


def area_averages(values: npt.NDArray[np.uint8], grid: Grid) -> npt.NDArray[np.float32]:
    """Returns the mean (h, w) of (H, W) values over the area of each cell of a ``grid`` (h, w).

    A pixel on the border of cells counts in each by the area that lies in it. The grid may also
    have more cells than there are pixels.
    """
    height, width = values.shape
    across = _shares(width, grid[1]).T
    down = _shares(height, grid[0])
    rows = max(1, _ROWS // width)
    means = np.zeros(grid, dtype=np.float32)
    for start in range(0, height, rows):
        part = values[start : start + rows].astype(np.float32) @ across
        means += down[:, start : start + rows] @ part
    return means


def _shares(pixels: int, cells: int) -> npt.NDArray[np.float32]:
    """Returns (cells, pixels): which share of a cell each pixel of a row is."""
    edges = np.arange(cells + 1) * (pixels / cells)
    starts = np.arange(pixels)
    overlap = np.minimum(edges[1:, None], starts + 1) - np.maximum(edges[:-1, None], starts)
    shares: npt.NDArray[np.float32] = (overlap.clip(min=0) * (cells / pixels)).astype(np.float32)
    return shares


def _is_scaled(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """True if one scale makes ``size`` of the other, but for a pixel of each side."""
    least = max((side - 1) / whole for side, whole in zip(size, of, strict=True))
    most = min((side + 1) / whole for side, whole in zip(size, of, strict=True))
    return least < most
