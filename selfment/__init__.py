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
from .joint import JointLabels
from .optimization import ipo
from .pseudo_labels import PseudoLabels, pseudo_label
from .spectral import ncut

if TYPE_CHECKING:
    from .evaluation import Evaluator, evaluate
    from .head import PatchHead
    from .labeler import PseudoLabeler
    from .multi_object import Objects, multi_label
    from .partition import regions
    from .refinement import refine_mask
    from .segmenter import Segmenter

__all__ = [
    "Evaluator",
    "Graph",
    "JointLabels",
    "Objects",
    "PatchHead",
    "PseudoLabeler",
    "PseudoLabels",
    "Segmenter",
    "affinity",
    "evaluate",
    "ipo",
    "multi_label",
    "ncut",
    "pseudo_label",
    "reference",
    "refine_mask",
    "regions",
]

__version__ = Path(__file__).with_name("VERSION").read_text().strip()

# They bring the backbones, the image readers, the scores and scipy; labels of features need none.
_LAZY = {
    "Evaluator": "evaluation",
    "Objects": "multi_object",
    "PatchHead": "head",
    "PseudoLabeler": "labeler",
    "Segmenter": "segmenter",
    "evaluate": "evaluation",
    "multi_label": "multi_object",
    "refine_mask": "refinement",
    "regions": "partition",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'selfment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
