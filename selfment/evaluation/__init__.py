"""Scores of saliency maps and masks against ground truth, under named protocols."""

from __future__ import annotations

from .folders import evaluate
from .report import Report
from .scores import PROTOCOLS

__all__ = ["PROTOCOLS", "Report", "evaluate"]
