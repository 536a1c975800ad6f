"""Training of the segmentation head on pseudo-labels."""

from __future__ import annotations

from .loop import LEARNING_RATE, SEED, STEPS, WEIGHT_DECAY, Samples, Step, fit
from .run import MAX_IMAGES, train

__all__ = [
    "LEARNING_RATE",
    "MAX_IMAGES",
    "SEED",
    "STEPS",
    "WEIGHT_DECAY",
    "Samples",
    "Step",
    "fit",
    "train",
]
