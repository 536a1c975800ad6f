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
N^2 / 8 bytes, 0.3 GB for 50,000 patches and 2.1 GB for 131,000, and in weighted mode 4 more for
each edge. For more patches the cut can be approximated from m of them, the landmarks, with m^2 / 8
bytes of graph: see :mod:`selfment.core.landmarks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import ArrayType, Grid
from .blocks import array_blocks, without_copy
from .frames import as_frames, frame_blocks, is_frames
from .label import (
    MAPS,
    OPTIONS_SCHEMA,
    PseudoLabels,
    from_operator,
    label_rows,
    to_operator,
)
from .landmarks import label_blocks
from .options import CutOptions, IpoOptions, LandmarkOptions


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LandmarkLabels(JointLabels):
    """The labels of F frames whose cut was approximated from m landmarks: see :func:`joint_label`.

    ``eigenvalue`` and ``gap`` are estimates from the m rows of the full graph at the landmarks, and
    so are ``turn`` and the scale of ``fiedler``; ``residual``, ``angle`` and ``changing`` are
    estimates from 1,000 random rows. ``confidence`` is computed from them. ``lanczos_iters`` counts
    products with the landmarks' graph.
    """

    landmarks: Any  #: (m,) int64, the landmarks, ascending; patches count frame after frame
    #: float64, degrees: the arcsine of residual / gap, about the most between D^1/2 x and the
    #: nearest eigenvector, which may be another one than the Fiedler vector; 90 where nothing is
    #: known
    angle: Any
    #: float64, degrees from the landmarks' extended Fiedler vector to the one that was chosen
    turn: Any
    changing: Any  #: float64, the share of patches whose side one product with the graph changes
    #: float64 in [0, 1], how far the rule for the side is from choosing the other one, see
    #: :func:`selfment.core.landmarks.side_margin`
    side_margin: Any


_FIELDS = tuple(field.name for field in fields(JointLabels))


def to_caller(
    array_type: ArrayType, batched: bool, grids: Sequence[Grid], labels: dict[str, Tensor]
) -> JointLabels:
    """Returns the labels, whose maps are (N,) here, as the caller's type of array.

    ``batched``: True if the maps of all frames are one array. With landmarks among them the labels
    are :class:`LandmarkLabels`.
    """
    from_tensor = array_type.from_tensor
    values: dict[str, Any] = {
        name: from_tensor(labels[name]) for name in labels if name not in MAPS
    }
    for name in MAPS:
        if batched:
            values[name] = from_tensor(labels[name].reshape(-1, *grids[0]))
        else:
            parts = labels[name].split([h * w for h, w in grids])
            values[name] = [
                from_tensor(part.reshape(grid)) for part, grid in zip(parts, grids, strict=True)
            ]
    return (LandmarkLabels if "landmarks" in values else JointLabels)(**values)


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
    landmarks: int | None = None,
    landmark_seed: int = 0,
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
        landmarks: None for the exact cut, whose graph of N^2 / 8 bytes has to fit into memory: 2.1
            GB for 131,000 patches, 8 GB for 250,000. Or m >= 2: if there are more patches, the
            vector is approximated from m of them, in a binary graph; 10,000 are recommended. Groups
            of fewer than about N / m patches are then not seen, and the other side of the cut may
            become the foreground.
        landmark_seed: which landmarks are drawn.

    With landmarks, features may also be a numpy memory map, or any iterable of (N_i, d) that can be
    read again and again: frames are read one at a time, in 4 passes and one for each step of IPO.
    Beyond the features and the labels memory then has m^2 / 8 bytes of graph, about 10 float64 for
    each patch, and a block of rows. On a CUDA device, whose frames are made on its current stream,
    this waits for the device in between, and raises the errors of the CPU.

    Returns:
        The labels of the frames, and numbers for all of them together; with fewer landmarks than
        patches :class:`LandmarkLabels`. A ``RuntimeWarning`` then says that the landmarks do not
        determine the vector, that the cut separates a group with fewer than 10 landmarks, or that
        the other side was nearly chosen.

    Raises:
        TypeError: as :func:`selfment.pseudo_label`, and with landmarks for an iterator.
        ValueError: as there, for grids that do not fit the features, and with landmarks for a
            weighted graph.
        ImportError: as there.
        MemoryError: as there.
    """
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    if landmarks is None:
        params.require("landmark_seed", landmark_seed, "0 without `landmarks`", not landmark_seed)
    chosen = None if landmarks is None else LandmarkOptions(landmarks, landmark_seed)
    return label_frames(features, grid, cut, ipo, min_confidence, chosen)


def label_frames(
    features: Any,
    grid: Grid | Sequence[Grid] | None,
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float = 0.0,
    landmarks: LandmarkOptions | None = None,
) -> JointLabels:
    """Does what :func:`joint_label` does, with options that have been checked.

    Args:
        features: as there.
        grid: as there.
        cut: the options of the cut.
        ipo: the options of IPO.
        min_confidence: below this the frames are ``rejected``, all together.
        landmarks: how the vector is approximated; None for the exact cut.
    """
    options = to_operator(cut, ipo, min_confidence)
    if landmarks is None:
        return _exactly(features, grid, options)
    return _by_landmarks(features, grid, landmarks, options)


def _exactly(features: Any, grid: Any, options: tuple[Any, ...]) -> JointLabels:
    """Returns the exact labels, with options as :func:`to_operator` returns them."""
    checked, grids = as_frames(features, grid)
    sides = [side for sides in grids for side in sides]
    with _with_graph_size(checked.tensor.shape[:2].numel(), options), checked.array_type.stream():
        values = _joint_label(checked.tensor.flatten(0, 1), sides, *options)
        labels = dict(zip(_FIELDS, values, strict=True))
        return to_caller(checked.array_type, checked.batched, grids, labels)


@contextmanager
def _with_graph_size(n: int, options: tuple[Any, ...]) -> Iterator[None]:
    """Adds to a ``MemoryError`` how large the graph of n patches is, and what avoids it."""
    try:
        yield
    except MemoryError as error:
        if from_operator(*options)[0].weighted:
            raise
        raise MemoryError(
            f"{error}; the exact graph of {n:,} patches takes {n * n // 8:,} bytes, and that of m "
            "`landmarks` takes m^2 / 8"
        ) from error


def _by_landmarks(
    features: Any, grid: Any, chosen: LandmarkOptions, options: tuple[Any, ...]
) -> JointLabels:
    """Returns the labels by landmarks, or the exact ones if all patches are landmarks."""
    landmarks = chosen.landmarks
    frames = is_frames(features)
    if frames:
        blocks, grids = frame_blocks(features, grid)
        batched = False
    else:
        checked, grids = as_frames(without_copy(features), grid)
        blocks, batched = array_blocks(checked), checked.batched
    if landmarks >= blocks.n:
        return _exactly(list(features) if frames else features, grid, options)
    cut, ipo, min_confidence = from_operator(*options)
    if cut.weighted:
        raise ValueError(f"`landmarks` must be None with a weighted graph: got {landmarks}")
    with blocks.array_type.stream():
        seed = chosen.landmark_seed
        labels = label_blocks(blocks, grids, landmarks, seed, cut, ipo, min_confidence)
        return to_caller(blocks.array_type, batched, grids, labels)


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
