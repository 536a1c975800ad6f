"""Training of the segmentation head on pseudo-labels, or on masks that exist."""

from __future__ import annotations

from .choice import read_names
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
    "read_names",
    "train",
]
