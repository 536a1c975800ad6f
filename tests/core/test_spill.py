"""Features of frames in a temporary file: the same bits again, and no file that stays."""

from __future__ import annotations

import errno
import io
import re
from pathlib import Path

import pytest
import torch

import selfment
from helpers.cases import smooth
from helpers.joint_rules import frames_of
from helpers.landmark_cases import QUIET, assert_same
from selfment.core.spill import SpilledFrames, spilled_frames


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_frames_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    made = [torch.randn(n, 5).to(dtype) for n in (6, 1, 4)]
    made[2][0, 0] = torch.nan
    made.append(torch.randn(5, 8).to(dtype).T)  # strided
    with spilled_frames(tmp_path) as frames:
        for index, rows in enumerate(made):
            frames.add(rows, (1, len(rows)))
            assert len(frames) == index + 1
        assert frames.grids == [(1, 6), (1, 1), (1, 4), (1, 8)]
        for ours, again, wanted in zip(frames, frames, made, strict=True):  # two that take turns
            assert ours.shape == wanted.shape
            assert ours.dtype == dtype
            for rows in (ours, again):
                assert torch.equal(rows.view(torch.uint8), wanted.contiguous().view(torch.uint8))


def test_the_device_is_that_of_the_features(tmp_path: Path) -> None:
    class Elsewhere(torch.Tensor):
        device = torch.device("cuda", 1)  # type: ignore[assignment]

    with spilled_frames(tmp_path) as frames:
        assert frames.device == torch.device("cpu")
        rows = torch.ones(6, 5)
        frames.add(rows.as_subclass(Elsewhere), (2, 3))
        assert frames.device == Elsewhere.device
        assert torch.equal(next(iter(frames)), rows)


@QUIET
@pytest.mark.parametrize("count", [40, 10_000])
def test_labels_are_those_of_a_list(tmp_path: Path, count: int) -> None:
    features, grids = frames_of(smooth, (5, 7), (9, 4), (1, 6), (12, 12))
    parts = features.split([h * w for h, w in grids])
    with spilled_frames(tmp_path) as frames:
        for rows, grid in zip(parts, grids, strict=True):
            frames.add(rows, grid)
        ours = selfment.joint_label(frames, frames.grids, landmarks=count)
    assert_same(ours, selfment.joint_label(list(parts), grids, landmarks=count))


def test_the_file_has_no_name_and_goes_with_the_block(tmp_path: Path) -> None:
    with spilled_frames(tmp_path) as frames:
        frames.add(torch.zeros(4096, 16), (64, 64))
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="closed file"):
        list(frames)


def test_a_disk_without_room_for_all_frames_is_said_at_the_first(tmp_path: Path) -> None:
    sentence = "the features of 1000000000000 frames take"
    with (
        spilled_frames(tmp_path, expected=10**12) as frames,
        pytest.raises(OSError, match=sentence) as caught,
    ):
        frames.add(torch.zeros(60, 100), (6, 10))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert re.search(r"about 24,000,000,000,000,000 bytes, [\d,]+ are free", str(caught.value))
    with spilled_frames(tmp_path, expected=3) as frames:
        frames.add(torch.zeros(60, 100), (6, 10))
        assert len(list(frames)) == 1


class Small(io.FileIO):
    """A file on a disk with room for 1,000 bytes, which writes at most 300 at a time."""

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        room = min(300, 1000 - self.tell())
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data[:room])


def test_a_disk_that_gets_full_is_one_sentence(tmp_path: Path) -> None:
    with Small(tmp_path / "file", "w+") as file:
        frames = SpilledFrames(file, tmp_path)
        rows = torch.randn(20, 8)
        frames.add(rows, (4, 5))
        assert torch.equal(next(iter(frames)), rows)
        file.seek(0, io.SEEK_END)
        wanted = re.escape("No space left on device (640 bytes of features had been written)")
        with pytest.raises(OSError, match=wanted):
            frames.add(rows, (4, 5))
