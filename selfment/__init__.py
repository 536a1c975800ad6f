"""Selfment's pseudo-labels, fast: affinity graph, normalised cut and IPO on native kernels.

``pseudo_label`` takes patch features, ``PseudoLabeler`` takes images; ``selfment.reference`` has
the same functions in plain torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reference
from .graph import Graph, affinity
from .optimization import ipo
from .pseudo_labels import PseudoLabels, pseudo_label
from .spectral import ncut

if TYPE_CHECKING:
    from .labeler import PseudoLabeler

__all__ = [
    "Graph",
    "PseudoLabeler",
    "PseudoLabels",
    "affinity",
    "ipo",
    "ncut",
    "pseudo_label",
    "reference",
]

__version__ = Path(__file__).with_name("VERSION").read_text().strip()


def __getattr__(name: str) -> Any:
    # The labeler brings the backbones and the image readers; features alone need neither.
    if name == "PseudoLabeler":
        from .labeler import PseudoLabeler

        return PseudoLabeler
    raise AttributeError(f"module 'selfment' has no attribute {name!r}")
