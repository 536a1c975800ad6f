"""From an image to a result, with a backbone: pseudo-labels, or the saliency of a trained head."""

from __future__ import annotations

from .head import HeadInfo, PatchHead, load_head, save_head
from .labeler import PseudoLabeler
from .segmenter import Segmenter

__all__ = ["HeadInfo", "PatchHead", "PseudoLabeler", "Segmenter", "load_head", "save_head"]
