"""Windows over the frames of a clip: which frames they share, and one foreground in all of them."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import generator, smooth
from helpers.joint_rules import box
from selfment import CutOptions, IpoOptions, JointLabels, PseudoLabels, WindowOptions
from selfment.core import windows as core_windows
from selfment.core.windows import WindowLabels, label_windows

CUT, IPO = CutOptions(orient="seed"), IpoOptions()
GRID = (16, 18)
#: Small and large: alone, or with others like it, a frame has the larger kind as its foreground.
SMALL, LARGE = box(slice(5, 11), slice(7, 12)), box(slice(1, 15), slice(2, 16))


def clip(*kinds: Tensor) -> list[Tensor]:
    """Features of frames of two kinds of patch, nearly orthogonal."""
    centres = torch.linalg.qr(torch.randn(40, 2, generator=generator(5)))[0].T * math.sqrt(40)
    noise = generator(6)
    return [
        centres[kind.flatten()] + 0.3 * torch.randn(kind.numel(), 40, generator=noise)
        for kind in kinds
    ]


def windows_of(frames: list[Tensor], *options: int, least: float = 0.0) -> list[WindowLabels]:
    pairs = ((frame, GRID) for frame in frames)
    return list(label_windows(pairs, WindowOptions(*options), CUT, IPO, least))


def masks(windows: list[WindowLabels]) -> Tensor:
    return torch.stack([label.mask for window in windows for label in window.new_frames()])


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (4, 1), (5, 0), (5, 4), (8, 2)])
def test_each_frame_is_new_once_and_windows_share_frames(window: int, overlap: int) -> None:
    frames = [smooth(5, 4, 12, seed=index) for index in range(14)]
    for count in range(1, len(frames) + 1):
        pairs = ((frame, (5, 4)) for frame in frames[:count])
        found = list(label_windows(pairs, WindowOptions(window, overlap), CUT, IPO))
        first = 0
        for index, part in enumerate(found):
            assert part.first + part.shared == first
            assert part.shared == (0 if index == 0 else overlap) or part is found[-1]
            assert len(part.labels.mask) == min(window, count)
            first += len(part.new_frames())
            assert math.isnan(part.agreement) == (part.shared == 0)
        assert first == count
        assert len(found) == 1 + max(0, math.ceil((count - window) / (window - overlap)))


def test_one_window_is_one_joint_cut_and_windows_of_one_frame_label_it_alone() -> None:
    frames = clip(SMALL, SMALL, LARGE)
    (whole,) = windows_of(frames, 3)
    expected = selfment.joint_label(frames, GRID)
    for field in fields(JointLabels):
        ours, theirs = getattr(whole.labels, field.name), getattr(expected, field.name)
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
        assert all(torch.equal(a, b) for a, b in pairs), field.name
    for frame, window in zip(frames, windows_of(frames, 1), strict=True):
        alone, (label,) = selfment.pseudo_label(frame, GRID), window.new_frames()
        for field in fields(PseudoLabels):
            assert torch.equal(getattr(label, field.name), getattr(alone, field.name))


def test_the_foreground_stays_the_same_thing_while_it_grows() -> None:
    kinds = [SMALL] * 6 + [LARGE] * 10
    found = windows_of(clip(*kinds), 4, 1)
    truth = torch.stack(kinds) == 1
    assert (masks(found) == truth).float().mean() > 0.99
    flipped = [window.flipped for window in found]
    assert sum(flipped) >= 2
    assert not flipped[0]
    assert all(window.agreement > 0.99 for window in found[1:])
    # Without shared frames nothing says which side it was.
    apart = masks(windows_of(clip(*kinds), 4, 0))
    assert (apart[:4] == truth[:4]).float().mean() > 0.99
    assert (apart[8:] != truth[8:]).float().mean() > 0.99


def test_a_flipped_window_has_its_classes_exchanged() -> None:
    frames = clip(*[SMALL] * 3, *[LARGE] * 4)
    found = windows_of(frames, 4, 1)
    window = next(window for window in found if window.flipped)
    rows = frames[window.first : window.first + 4]
    plain = selfment.joint_label(rows, GRID)
    for name in ("mask", "ncut_mask"):
        for ours, theirs in zip(getattr(window.labels, name), getattr(plain, name), strict=True):
            assert torch.equal(ours, ~theirs)
    assert torch.equal(window.labels.fiedler[0], -plain.fiedler[0])
    assert window.labels.eigenvalue == plain.eigenvalue
    # IPO has converged at the exchanged classes, too.
    mask = torch.cat([part.flatten() for part in window.labels.mask])
    assert torch.equal(selfment.ipo(torch.cat(rows), mask), mask)


def test_rejected_windows_are_empty_and_pass_the_side_on() -> None:
    kinds = [SMALL] * 6 + [LARGE] * 6
    kept, rejected = (windows_of(clip(*kinds), 4, 1, least=least) for least in (0.0, 1.0))
    assert not masks(rejected).any()
    assert masks(kept).any()
    assert all(window.labels.rejected for window in rejected)
    assert not any(window.labels.rejected for window in kept)
    assert [w.flipped for w in rejected] == [w.flipped for w in kept]
    assert [w.agreement for w in rejected[1:]] == [w.agreement for w in kept[1:]]


def test_frames_are_read_when_they_are_needed_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[weakref.ref[Tensor]] = []
    labelled: list[weakref.ref[Tensor]] = []

    def endless() -> Iterator[tuple[Tensor, tuple[int, int]]]:
        while True:
            frame = smooth(5, 4, 6, seed=len(read))
            read.append(weakref.ref(frame))
            yield frame, (5, 4)

    def never(masks: list[Tensor], _: list[Tensor]) -> bool:
        labelled.extend(map(weakref.ref, masks))
        return False

    monkeypatch.setattr(core_windows, "_is_opposite", never)
    found = label_windows(endless(), WindowOptions(6, 2), CUT, IPO)
    for index in range(30):
        window = next(found)
        assert len(read) == 6 + 4 * index == window.first + 6
    del window
    for seen, most in ((read, 6 + 1), (labelled, 2 * 6)):
        assert sum(frame() is not None for frame in seen) <= most


def test_frames_of_different_grids() -> None:
    grids = [(5, 4), (4, 5), (3, 3), (2, 7), (6, 2)]
    frames = [(smooth(h, w, 8, seed=h), (h, w)) for h, w in grids]
    found = label_windows(frames, WindowOptions(3, 1), CUT, IPO)
    assert [label.mask.shape for w in found for label in w.new_frames()] == grids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "`window` must be an integer >= 1: got 0"),
        ({"window": 2.0}, "`window` must be an integer >= 1: got 2.0"),
        ({"overlap": -1}, "`overlap` must be an integer >= 0 and < window = 8: got -1"),
        ({"window": 3, "overlap": 3}, "`overlap` must be an integer >= 0 and < window = 3: got 3"),
    ],
)
def test_errors(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WindowOptions(**options)


def test_the_overlap_is_a_quarter_of_the_window_by_default() -> None:
    assert WindowOptions() == WindowOptions(8, 2)
    assert [WindowOptions(window).overlap for window in (1, 3, 4, 16)] == [0, 0, 1, 4]
