"""One cut through a video whose features are on a CUDA device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.cases import smooth
from helpers.cuda import BOTH, Target
from helpers.landmark_cases import QUIET, assert_close
from helpers.videos import disc
from selfment import LandmarkLabels, LandmarkOptions, PseudoLabeler, VideoLabeler
from selfment.core import blocks
from selfment.core.spill import spilled_frames

pytestmark = pytest.mark.slow


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ROWS", (64, 64))


@QUIET
@BOTH
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("landmarks", [60, 10_000])
def test_one_cut_through_a_video_is_made_where_its_features_are(
    target: Target, landmarks: int
) -> None:
    def labels(pixels: Tensor) -> Any:
        model = PseudoLabeler(size=96, batch_size=2, device=pixels.device)
        labeler = VideoLabeler(model, LandmarkOptions(landmarks))
        with spilled_frames() as frames:
            labeler.spill(pixels.split(2), frames)
            assert frames.device == pixels.device
            found = labeler.label_spilled(frames)
        assert all(
            part.device.type == "cpu"
            for value in vars(found).values()
            for part in (value if isinstance(value, list) else [value])
        )
        return found

    prepare = PseudoLabeler(size=96).preprocess
    pixels = torch.stack([prepare(Image.fromarray(disc(index))) for index in range(5)])
    ours = target(labels, pixels)
    assert isinstance(ours, LandmarkLabels) == (landmarks == 60)
    assert_close(ours, labels(pixels))


@BOTH
@pytest.mark.parametrize("landmarks", [60, 10_000])
def test_videos_whose_features_are_not_finite_are_an_error(target: Target, landmarks: int) -> None:
    rows = smooth(6, 40, 12)
    rows[130, 3] = float("nan")
    labeler = VideoLabeler(PseudoLabeler(size=64), LandmarkOptions(landmarks))

    def labels(rows: Tensor) -> Any:
        with spilled_frames() as frames:
            for frame in rows.split(40):
                frames.add(frame, (4, 10))
            return labeler.label_spilled(frames)

    with pytest.raises(ValueError, match=r"finite, and so must their norms: got .* in "):
        target(labels, rows)
