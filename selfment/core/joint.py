"""One cut through several images or video frames: a graph over the patches of all of them.

- The Fiedler vector x and its mean extend over all patches. The seed, where |x| peaks, decides the
  side; by the corner rule the other side is the foreground if at least three quarters of the
  corners of all frames lie in the first.
- Components are per frame. The seed's frame keeps the component with the seed. Any other frame
  keeps the component with its peak: the patch of the side where x is largest (smallest, if the
  side is the lower one); among peaks that differ by less than 1e-7, relatively, the first. A frame
  without a patch of the side has an empty initial mask.
- IPO labels all patches together, and so may detect foreground in such a frame, too.

A single frame has the labels of the image alone, to the bit. The graph of all N patches needs
N^2 / 8 bytes, 0.3 GB for 50,000 patches, and in weighted mode 4 more for each edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import Features, Grid, as_features, as_grid, check_patches
from .label import (
    MAPS,
    OPTIONS_SCHEMA,
    PseudoLabels,
    from_operator,
    label_rows,
    to_operator,
)
from .options import CutOptions, IpoOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class JointLabels(PseudoLabels):
    """The labels of F frames that share a graph: see :func:`joint_label`.

    ``mask``, ``ncut_mask`` and ``fiedler`` are lists of F (h, w) arrays; for (B, N, d) and
    (B, d, h, w) features they are arrays (B, h, w). The other fields are numbers without an axis,
    for the graph of all patches; ``seed`` counts the patches frame after frame. All are of the
    caller's type of array.
    """

    peaks: Any  #: (F,) int64, the patch of each frame that its initial mask grew from; -1: none

    def frame(self, index: int) -> PseudoLabels:
        """Returns the maps of one frame and the numbers of the joint cut; ``seed`` is its peak."""
        values = {field.name: getattr(self, field.name) for field in fields(PseudoLabels)}
        values |= {name: values[name][index] for name in MAPS}
        return PseudoLabels(**{**values, "seed": self.peaks[index]})


_FIELDS = tuple(field.name for field in fields(JointLabels))


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
    listed = _is_list(grid)
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
    first = frames[0].tensor
    grids = [as_grid(frame) for frame in grid] if _is_list(grid) else [as_grid(grid)] * len(frames)
    if len(grids) != len(frames):
        raise ValueError(
            "`grid` must be one (h, w), or a list of one for each frame: "
            f"got {len(grids)} for {len(frames)} frames"
        )
    for index, (frame, (h, w)) in enumerate(zip(frames, grids, strict=True)):
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
        if h * w != rows.shape[1]:
            raise ValueError(
                f"`grid` must satisfy h*w == N: got {(h, w)} for N = {rows.shape[1]} "
                f"in frame {index}"
            )
    check_patches(sum(frame.tensor.shape[1] for frame in frames))
    array_type = replace(frames[0].array_type, array=f"`features` of {len(frames)} frames")
    with array_type.stream():
        rows = torch.cat([frame.tensor for frame in frames], dim=1)
    return Features(rows, None, False, array_type), grids


def _described(rows: Tensor) -> str:
    """Returns the words for the features of a frame in an error."""
    return f"d = {rows.shape[2]}, {str(rows.dtype).removeprefix('torch.')} on {rows.device}"


def _is_list(grid: Any) -> bool:
    """Returns True if ``grid`` is a sequence of something other than numbers."""
    try:
        entries = list(grid)
    except TypeError:
        return False
    return bool(entries) and not any(isinstance(entry, Real) for entry in entries)


def to_caller(checked: Features, grids: Sequence[Grid], labels: dict[str, Tensor]) -> JointLabels:
    """Returns the labels, whose maps are (N,) here, as the caller's type of array."""
    from_tensor = checked.array_type.from_tensor
    values: dict[str, Any] = {
        name: from_tensor(labels[name]) for name in labels if name not in MAPS
    }
    for name in MAPS:
        if checked.batched:
            values[name] = from_tensor(labels[name].reshape(-1, *grids[0]))
        else:
            parts = labels[name].split([h * w for h, w in grids])
            values[name] = [
                from_tensor(part.reshape(grid)) for part, grid in zip(parts, grids, strict=True)
            ]
    return JointLabels(**values)


def joint_label(
    features: Any,
    grid: Grid | Sequence[Grid] | None = None,
    *,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    orient: str = "seed",
    ipo_iters: int = params.IPO_ITERS,
    ipo_min_count: int = params.IPO_MIN_COUNT,
    min_confidence: float = 0.0,
) -> JointLabels:
    """Labels all frames by one cut through a graph of all their patches; see the module.

    Args:
        features: patch features: a list of (N_i, d), one for each frame, (N, d) of all frames one
            after another, or (B, N, d) or (B, d, h, w) of B frames; kinds of arrays, dtypes and
            devices as in :func:`selfment.pseudo_label`.
        grid: (h, w) of the frames: a list of one for each frame with (N, d) features, one for all
            frames with (B, N, d), and either with a list.
        tau: see :func:`selfment.pseudo_label`, also for the other options.
        eps: the affinity below ``tau``.
        graph: "binary" or "weighted".
        orient: "seed", or "corners": at least three quarters of the corners of all frames.
        ipo_iters: IPO steps at most.
        ipo_min_count: IPO stops while a side has fewer patches than this.
        min_confidence: below this the frames are ``rejected``, all together.

    Returns:
        The labels of the frames, and numbers for all of them together.

    Raises:
        TypeError: as :func:`selfment.pseudo_label`.
        ValueError: as there, and for grids that do not fit the features.
        ImportError: as there.
        MemoryError: as there.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    options = to_operator(cut, ipo, min_confidence)
    checked, grids = as_frames(features, grid)
    sides = [side for sides in grids for side in sides]
    with checked.array_type.stream():
        values = _joint_label(checked.tensor.flatten(0, 1), sides, *options)
        return to_caller(checked, grids, dict(zip(_FIELDS, values, strict=True)))


def _joint_label_impl(features: Tensor, sides: Sequence[int], *options: Any) -> tuple[Tensor, ...]:
    """Returns the fields of :class:`JointLabels` for (N, d) features; maps are (N,)."""
    grids = list(zip(sides[::2], sides[1::2], strict=True))
    labels = label_rows(features.contiguous()[None], grids, *from_operator(*options))
    return tuple(labels[name][0] for name in _FIELDS)


def _joint_label_fake(features: Tensor, sides: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    maps = (torch.bool, torch.bool, torch.float32)
    numbers = (*[torch.float64] * 3, *[torch.int64] * 3, *[torch.float64] * 2)
    numbers += (torch.bool, torch.float64)
    return (
        *(features.new_empty(len(features), dtype=dtype) for dtype in maps),
        *(features.new_empty((), dtype=dtype) for dtype in numbers),
        features.new_empty(len(sides) // 2, dtype=torch.int64),
    )


_joint_label = _ops.register(
    f"joint_label(Tensor features, SymInt[] sides, {OPTIONS_SCHEMA}) -> "
    f"({', '.join(f'Tensor {name}' for name in _FIELDS)})",
    _joint_label_impl,
    _joint_label_fake,
)
