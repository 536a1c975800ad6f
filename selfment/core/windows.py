"""Labels of the frames of a clip of any length: joint cuts through windows that share frames.

Each window is cut by :func:`selfment.joint_label`. The first one chooses its foreground by the
rule of ``orient``. From then on the two classes of a window exchange their roles if its mask and
the mask of the window before are negatively correlated on the shared frames, so that the
foreground stays the same thing. IPO treats its classes alike: the complement of a label at which
it has converged is one at which it has converged, too, and no second cut is needed.

Only the frames of one window are in memory. A frame keeps the label of the first window that it is
in. The last window has as many frames as the others, and so may share more of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .arrays import Grid
from .joint import JointLabels, label_frames
from .label import PseudoLabels
from .options import CutOptions, IpoOptions, WindowOptions


@dataclass(frozen=True)
class WindowLabels:
    """The labels of a window of frames, with the foreground of the window before."""

    labels: JointLabels  #: of all frames of the window; if ``flipped``, classes exchanged
    first: int  #: the number of its first frame in the clip, from 0
    shared: int  #: so many frames at its beginning have labels of earlier windows
    flipped: bool  #: True if the classes exchanged their roles
    #: the share of equal patches in the shared frames' masks of this and earlier windows, before
    #: labels are rejected; NaN if no frames are shared
    agreement: float

    def new_frames(self) -> list[PseudoLabels]:
        """Returns the labels of the frames that no earlier window has labelled, in order."""
        return [self.labels.frame(i) for i in range(self.shared, len(self.labels.mask))]


def label_windows(
    frames: Iterable[tuple[Tensor, Grid]],
    windows: WindowOptions,
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float = 0.0,
) -> Iterator[WindowLabels]:
    """Yields the labels of each window of a clip as soon as its frames have been read.

    Args:
        frames: (N_i, d) features and the grid (h, w) of each frame, in order; of one d, dtype and
            device.
        windows: how many frames are cut together.
        cut: the options of the cuts.
        ipo: the options of IPO.
        min_confidence: the frames of a window below this are ``rejected``, all together.

    Raises:
        ValueError: as :func:`selfment.joint_label`.
        TypeError: as there.
        ImportError: as there.
        MemoryError: as there.
    """
    held: deque[tuple[Tensor, Grid]] = deque(maxlen=windows.window)
    masks: deque[Tensor] = deque(maxlen=windows.window)  # of the labelled ones among them
    count = new = 0

    def label() -> WindowLabels:
        nonlocal new
        shared = len(held) - new
        earlier = list(masks)[len(masks) - shared :]
        joint = _joint(held, cut, ipo)
        flipped = _is_opposite(joint.mask, earlier)
        if flipped:
            joint = _flip(joint)
        masks.extend(joint.mask[shared:])
        equal = [(a == b).float().mean() for a, b in zip(joint.mask, earlier, strict=False)]
        agreement = float(torch.stack(equal).mean()) if equal else float("nan")
        new = 0
        found = _reject(joint, min_confidence)
        return WindowLabels(found, count - len(held), shared, flipped, agreement)

    for frame in frames:
        held.append(frame)
        count, new = count + 1, new + 1
        if new == (windows.window if count == new else windows.step):
            yield label()
    if new:
        yield label()


def _joint(frames: Iterable[tuple[Tensor, Grid]], cut: CutOptions, ipo: IpoOptions) -> JointLabels:
    features, grids = zip(*frames, strict=True)
    return label_frames(list(features), list(grids), cut, ipo)


def _is_opposite(masks: list[Tensor], earlier: list[Tensor]) -> bool:
    """Returns True if the first masks and those of the same frames before correlate negatively."""
    if not earlier:
        return False
    ours = torch.cat([mask.flatten() for mask in masks[: len(earlier)]])
    theirs = torch.cat([mask.flatten() for mask in earlier])
    both = int((ours & theirs).sum())
    return both * len(ours) < int(ours.sum()) * int(theirs.sum())


def _flip(joint: JointLabels) -> JointLabels:
    """Returns the labels with the other class as foreground; the seed and peaks stay."""
    values: dict[str, Any] = {
        "mask": [~mask for mask in joint.mask],
        "ncut_mask": [~mask for mask in joint.ncut_mask],
        "fiedler": [-vector for vector in joint.fiedler],
    }
    return replace(joint, **values)


def _reject(joint: JointLabels, min_confidence: float) -> JointLabels:
    """Returns the labels with empty masks if their confidence is too low."""
    rejected = joint.confidence < min_confidence
    masks = [mask & ~rejected for mask in joint.mask]
    return replace(joint, mask=masks, rejected=rejected)
