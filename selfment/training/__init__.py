"""Training of the segmentation head on pseudo-labels."""

from __future__ import annotations

from .loop import EPOCHS, LEARNING_RATE, SEED, WEIGHT_DECAY, Samples, Step, fit
from .run import MAX_IMAGES, train

__all__ = [
    "EPOCHS",
    "LEARNING_RATE",
    "MAX_IMAGES",
    "SEED",
    "WEIGHT_DECAY",
    "Samples",
    "Step",
    "fit",
    "train",
]
