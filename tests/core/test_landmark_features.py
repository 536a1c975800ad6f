"""Cuts by landmarks from arrays, memory maps and frames that are made on the way."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import selfment
from helpers.cases import object_on_ground, smooth
from helpers.joint_rules import frames_of
from helpers.landmark_cases import FRAMES, QUIET, Frames, assert_same
from selfment.core import blocks


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (64, 64))


@QUIET
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", FRAMES)
def test_lists_and_iterables_are_arrays(name: str) -> None:
    features, grids = FRAMES[name]
    parts = features.split([h * w for h, w in grids])
    wanted = selfment.joint_label(features, grids, landmarks=40)
    strided = torch.cat([features, features], dim=1)[:, : features.shape[1]]
    for form in (list(parts), tuple(parts), Frames(features, grids), strided):
        assert_same(selfment.joint_label(form, grids, landmarks=40), wanted)
    numpy = selfment.joint_label([part.numpy() for part in parts], grids, landmarks=40)
    assert isinstance(numpy.mask[0], np.ndarray)
    assert_same(numpy, wanted)


@QUIET
@pytest.mark.usefixtures("small_blocks")
def test_batches_and_maps_are_arrays() -> None:
    features, grids = FRAMES["smooth"]
    wanted = selfment.joint_label(features, grids, landmarks=100)
    batch = features.unflatten(0, (3, 144))
    maps = batch.transpose(1, 2).unflatten(2, (12, 12)).contiguous()
    for label in (
        selfment.joint_label(batch, (12, 12), landmarks=100),
        selfment.joint_label(maps, landmarks=100),
        selfment.joint_label(list(batch), (12, 12), landmarks=100),
    ):
        assert_same(label, wanted)
    assert selfment.joint_label(maps, landmarks=100).mask.shape == (3, 12, 12)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation of torch makes."""

    nbytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        own = {value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in own:
            self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return result


def saved_map(folder: Path, features: Tensor, mode: Any) -> Any:
    path = folder / "features.npy"
    np.save(path, features.numpy())
    return np.load(path, mmap_mode=mode)


@QUIET
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_are_arrays_and_are_not_copied(mode: str, tmp_path: Path) -> None:
    features, grids = smooth(30, 40, 300, seed=8), [(15, 40), (15, 40)]
    wanted = selfment.joint_label(features, grids, landmarks=60)
    mapped = saved_map(tmp_path, features, mode)
    with Largest() as largest:
        selfment.joint_label(mapped, grids, landmarks=60)
    tracemalloc.start()  # notes the memory of numpy
    try:
        label = selfment.joint_label(mapped, grids, landmarks=60)
        assert tracemalloc.get_traced_memory()[1] < features.nbytes / 2
    finally:
        tracemalloc.stop()
    assert_same(label, wanted)
    assert np.array_equal(np.load(tmp_path / "features.npy"), features.numpy())
    # The rows of 60 landmarks and of those that are checked: here nearly all of 1,200 are.
    assert largest.nbytes <= 1200 * 300 * 4
    monitored = Largest()
    with monitored, pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfment.core.landmarks.CHECKED", 50)
        selfment.joint_label(mapped, grids, landmarks=60)
    # A tenth of the features; means of all patches in 4 vectors are as large.
    assert monitored.nbytes <= max(250 * 300 * 4, 4 * 1200 * 8)


@QUIET
@pytest.mark.usefixtures("small_blocks")
def test_frames_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfment.core.landmarks.CHECKED", 50)
    features, grids = frames_of(smooth, *[(20, 20)] * 12)
    frames = Frames(features, grids)
    with Largest() as largest:
        label = selfment.joint_label(frames, grids, landmarks=100)
    assert frames.most <= 2
    # One for the first frame, the landmarks, the means, the check, and the first sums of IPO.
    assert frames.passes == 5 + label.ipo_iters
    # The graph of the landmarks, the means, and the rows that were selected.
    assert largest.nbytes <= max(4 * 4800 * 8, 280 * 32 * 4)


def test_an_iterator_is_refused() -> None:
    with pytest.raises(TypeError, match="not an iterator: got list_iterator"):
        selfment.joint_label(iter([smooth(4, 6, 3)] * 2), [(4, 6)] * 2, landmarks=9)


@pytest.mark.parametrize("kind", ["one pass", "shrinks", "grows"])
def test_frames_that_are_others_when_they_are_read_again(kind: str) -> None:
    class Reader:
        passes = 0
        once = iter([smooth(4, 6, 3)] * 5)

        def __iter__(self) -> Iterator[torch.Tensor]:
            self.passes += 1
            later = {"shrinks": 4, "grows": 6}.get(kind, 5)
            frames = [smooth(4, 6, 3)] * (later if self.passes > 3 else 5)
            return self.once if kind == "one pass" else iter(frames)

    found = {"one pass": 4, "shrinks": 4, "grows": 6}[kind]
    message = f"each time they are read: got {found} frames instead of 5 when they were read again"
    with pytest.raises(ValueError, match=message):
        selfment.joint_label(Reader(), [(4, 6)] * 5, landmarks=9)


@QUIET
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("last", range(2, 7))
def test_an_error_of_the_frames_ends_the_label(last: int) -> None:
    """In whatever pass it comes, those of native IPO included."""

    class Broken(Frames):
        def __iter__(self) -> Iterator[Tensor]:
            for index, frame in enumerate(super().__iter__()):
                if self.passes == last and index == 1:
                    raise OSError("the disk is gone")
                yield frame

    features, grids = frames_of(object_on_ground, *[(12, 12)] * 3)
    frames = Broken(features, grids)
    with pytest.raises(OSError, match=r"^the disk is gone$"):
        selfment.joint_label(frames, grids, landmarks=100)
    assert frames.passes == last
