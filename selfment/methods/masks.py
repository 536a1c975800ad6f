"""Labels with another mask than that of their cut."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core.ipo import run_ipo
from ..core.label import PseudoLabels
from ..core.options import NO_IPO


def with_mask(labels: PseudoLabels, features: Tensor, mask: Tensor) -> PseudoLabels:
    """``labels`` of (B, N, d) features with another mask (B, h, w) than that of their cut."""
    separation = run_ipo(features.contiguous(), mask.flatten(1), NO_IPO)[2]
    unknown = torch.full_like(separation, torch.nan)
    return replace(labels, mask=mask, separation=separation, confidence=unknown)
