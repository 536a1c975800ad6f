"""Scores of saliency maps and masks against ground truth, under named protocols."""

from __future__ import annotations

from .folders import evaluate
from .scores import PROTOCOLS, Report

__all__ = ["PROTOCOLS", "Report", "evaluate"]
