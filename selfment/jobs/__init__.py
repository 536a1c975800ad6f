"""From folders of images and videos to folders of results, with a record for each input."""

from __future__ import annotations

from .label import label_images
from .predict import find_inputs, predict_images
from .video import VideoError, segment_video

__all__ = ["VideoError", "find_inputs", "label_images", "predict_images", "segment_video"]
