"""Frames that share a graph: the forms in which their features and grids are passed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Features, Grid, as_features, as_grid, check_patches
from .blocks import Blocks


def as_frames(
    features: Any, grid: Any, *, devices: tuple[str, ...] | None = ("cpu", "cuda")
) -> tuple[Features, list[Grid]]:
    """Returns the checked features, and the grid of each frame whose patches are their rows.

    ``features`` and ``grid``: see :func:`joint_label`. Raises as
    :func:`selfment.core.arrays.as_features` does, and ``ValueError`` for grids that do not fit the
    features.
    """
    if isinstance(features, list | tuple):
        return _from_list(features, grid, devices)
    checked = as_features(features, devices=devices)
    check_patches(checked.tensor.shape[:2].numel())
    listed = is_list(grid)
    if checked.batched:
        if listed:
            raise ValueError(
                "`grid` must be one (h, w), that of every frame, with (B, N, d) and (B, d, h, w) "
                f"features: got {grid!r}"
            )
        checked = as_features(features, grid, needs_grid=True, devices=devices)
        assert checked.grid is not None
        return checked, [checked.grid] * len(checked.tensor)
    if not listed:
        raise ValueError(
            "`grid` must be a list of (h, w), one for each frame, with (N, d) features: "
            f"got {grid!r}"
        )
    grids = [as_grid(frame) for frame in grid]
    patches, n = sum(h * w for h, w in grids), checked.tensor.shape[1]
    if patches != n:
        raise ValueError(
            "`grid` must satisfy h*w == N, summed over the frames: "
            f"got {patches} patches in {len(grids)} frames for N = {n}"
        )
    return checked, grids


def _from_list(
    features: Sequence[Any], grid: Any, devices: tuple[str, ...] | None
) -> tuple[Features, list[Grid]]:
    """Returns what :func:`as_frames` does, from (N_i, d) features of each frame."""
    if not features:
        raise ValueError("`features` must not be empty: got a list of no frames")
    frames = [as_features(frame, devices=devices) for frame in features]
    grids = _grids(grid, len(frames))
    _check_count(grids, len(frames))
    for index, (frame, side) in enumerate(zip(frames, grids, strict=True)):
        _check_frame(frame, side, index, frames[0].tensor)
    check_patches(sum(frame.tensor.shape[1] for frame in frames))
    array_type = replace(frames[0].array_type, array=f"`features` of {len(frames)} frames")
    with array_type.stream():
        rows = torch.cat([frame.tensor for frame in frames], dim=1)
    return Features(rows, None, False, array_type), grids


def _grids(grid: Any, frames: int) -> list[Grid]:
    """Returns the grid of each frame from a list of them, or from one for all."""
    return [as_grid(frame) for frame in grid] if is_list(grid) else [as_grid(grid)] * frames


def _check_count(grids: Sequence[Grid], frames: int) -> None:
    if len(grids) != frames:
        raise ValueError(
            "`grid` must be one (h, w), or a list of one for each frame: "
            f"got {len(grids)} for {frames} frames"
        )


def _check_frame(frame: Features, grid: Grid, index: int, first: Tensor) -> None:
    """Raises ``ValueError`` unless frame number ``index`` fits its grid and the first frame."""
    rows = frame.tensor
    if frame.batched:
        raise ValueError(
            "`features` must be a list of (N, d), one for each frame: "
            f"got shape {tuple(rows.shape)} for frame {index}"
        )
    if (rows.shape[2], rows.dtype, rows.device) != (first.shape[2], first.dtype, first.device):
        raise ValueError(
            "`features` must have one d, dtype and device in all frames: "
            f"got {_described(first)} for frame 0 and {_described(rows)} for frame {index}"
        )
    h, w = grid
    if h * w != rows.shape[1]:
        raise ValueError(
            f"`grid` must satisfy h*w == N: got {(h, w)} for N = {rows.shape[1]} in frame {index}"
        )


def _described(rows: Tensor) -> str:
    """Returns the words for the features of a frame in an error."""
    return f"d = {rows.shape[2]}, {str(rows.dtype).removeprefix('torch.')} on {rows.device}"


def is_list(grid: Any) -> bool:
    """Returns True if ``grid`` is a sequence of something other than numbers."""
    try:
        entries = list(grid)
    except TypeError:
        return False
    return bool(entries) and not any(isinstance(entry, Real) for entry in entries)


def is_frames(features: Any) -> bool:
    """Returns True if ``features`` are an iterable of arrays, False if they are an array."""
    array = isinstance(features, Tensor | np.ndarray) or hasattr(features, "__dlpack__")
    return not array and isinstance(features, Iterable)


def frame_blocks(features: Iterable[Any], grid: Any) -> tuple[Blocks, list[Grid]]:
    """Returns the blocks of frames (N_i, d), and the grid of each; no two frames are in memory.

    Each pass over the blocks iterates over the frames. Raises ``TypeError`` for an iterator, which
    allows one pass only, and ``ValueError`` as :func:`as_frames` does, for a frame that does not
    fit when it is read.
    """
    if iter(features) is features:
        raise TypeError(
            "`features` are read several times with `landmarks`, so they must be an array or an "
            f"iterable such as a list, not an iterator: got {type(features).__name__}"
        )
    count = len(features) if isinstance(features, Sized) else None
    if not is_list(grid) and count is None:
        raise ValueError(
            "`grid` must be a list of (h, w), one for each frame, with features that have no "
            f"length: got {grid!r}"
        )
    first = next((as_features(frame) for frame in features), None)
    if first is None:
        raise ValueError("`features` must not be empty: got no frames")
    like = first.tensor.new_empty((1, 0, first.tensor.shape[2]))  # the first frame may be freed
    grids = _grids(grid, count or 0)
    sizes = [h * w for h, w in grids]
    check_patches(sum(sizes))

    is_again = False  # True once all frames have been read

    def check_count(found: int) -> None:
        if found != len(grids) and (is_again or iter(features) is iter(features)):
            raise ValueError(
                "`features` must yield the same frames each time they are read: "
                f"got {found} frames instead of {len(grids)} when they were read again"
            )
        _check_count(grids, found)

    def read() -> Iterator[Tensor]:
        nonlocal is_again
        index = -1
        for index, frame in enumerate(features):
            if index >= len(grids):
                check_count(index + 1)
            checked = as_features(frame)
            _check_frame(checked, grids[index], index, like)
            yield checked.tensor[0]
        check_count(index + 1)
        is_again = True

    array_type = replace(first.array_type, array=f"`features` of {len(grids)} frames")
    return Blocks(sum(sizes), like.shape[2], like.dtype, like.device, array_type, read), grids
