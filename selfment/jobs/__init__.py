"""From folders of images and videos to folders of results, with a record for each input."""

from __future__ import annotations

from ..images.video import VideoError
from .label import label_images
from .predict import find_inputs, predict_images
from .report import report_labels
from .video import segment_video
from .video_labels import label_video

__all__ = [
    "VideoError",
    "find_inputs",
    "label_images",
    "label_video",
    "predict_images",
    "report_labels",
    "segment_video",
]
