"""Selfment's pseudo-labels, fast: affinity graph, normalised cut and IPO on native kernels.

``pseudo_label`` takes patch features, ``PseudoLabeler`` takes images; ``selfment.reference`` has
the same functions in plain torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reference
from .graph import Graph, affinity
from .optimization import ipo
from .pseudo_labels import PseudoLabels, pseudo_label
from .spectral import ncut

if TYPE_CHECKING:
    from .evaluation import Evaluator, evaluate
    from .head import PatchHead
    from .labeler import PseudoLabeler
    from .partition import regions
    from .segmenter import Segmenter

__all__ = [
    "Evaluator",
    "Graph",
    "PatchHead",
    "PseudoLabeler",
    "PseudoLabels",
    "Segmenter",
    "affinity",
    "evaluate",
    "ipo",
    "ncut",
    "pseudo_label",
    "reference",
    "regions",
]

__version__ = Path(__file__).with_name("VERSION").read_text().strip()

# They bring the backbones, the image readers and the scores; features alone need none of them.
_LAZY = {
    "Evaluator": "evaluation",
    "PatchHead": "head",
    "PseudoLabeler": "labeler",
    "Segmenter": "segmenter",
    "evaluate": "evaluation",
    "regions": "partition",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'selfment' has no attribute {name!r}")
