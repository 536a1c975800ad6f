"""Training of the segmentation head on pseudo-labels."""

from __future__ import annotations

from .run import EPOCHS, LEARNING_RATE, MAX_IMAGES, SEED, WEIGHT_DECAY, Samples, Step, fit, train

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
