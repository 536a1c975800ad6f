"""Fast pseudo-labels of Selfment: affinity graph, normalised cut and IPO on native kernels.

``pseudo_label`` labels patch features, ``PseudoLabeler`` labels images; ``selfment.reference`` has
the same functions in plain torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core import reference
from .core.graph import Graph, affinity
from .core.ipo import ipo
from .core.joint import JointLabels, joint_label
from .core.label import PseudoLabels, pseudo_label
from .core.ncut import ncut
from .core.options import CutOptions, IpoOptions

if TYPE_CHECKING:
    from .core.objects import Objects, multi_label
    from .core.regions import regions
    from .core.windows import WindowOptions
    from .evaluation.folders import evaluate
    from .evaluation.scores import Evaluator
    from .images.refine import refine_mask
    from .models.head import PatchHead
    from .models.labeler import PseudoLabeler
    from .models.segmenter import Segmenter
    from .models.video import VideoLabeler

__all__ = [
    "CutOptions",
    "Evaluator",
    "Graph",
    "IpoOptions",
    "JointLabels",
    "Objects",
    "PatchHead",
    "PseudoLabeler",
    "PseudoLabels",
    "Segmenter",
    "VideoLabeler",
    "WindowOptions",
    "affinity",
    "evaluate",
    "ipo",
    "joint_label",
    "multi_label",
    "ncut",
    "pseudo_label",
    "reference",
    "refine_mask",
    "regions",
]

__version__ = Path(__file__).with_name("VERSION").read_text().strip()

# Imported when first used: they pull in timm, Pillow and scipy, which `pseudo_label` does not need.
_LAZY = {
    "Evaluator": "evaluation.scores",
    "Objects": "core.objects",
    "PatchHead": "models.head",
    "PseudoLabeler": "models.labeler",
    "Segmenter": "models.segmenter",
    "VideoLabeler": "models.video",
    "WindowOptions": "core.windows",
    "evaluate": "evaluation.folders",
    "multi_label": "core.objects",
    "refine_mask": "images.refine",
    "regions": "core.regions",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'selfment' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
