"""Fast pseudo-labels of Selfment: affinity graph, normalised cut and IPO on native kernels.

``pseudo_label`` labels patch features, ``PseudoLabeler`` labels images; ``selfment.reference`` has
the same functions in plain torch.
"""

from __future__ import annotations

import os.path
from importlib import import_module

TYPE_CHECKING = False  # as in `typing`, which the command line does not wait for
if TYPE_CHECKING:
    from typing import Any

    from .core import reference
    from .core.graph import Graph, affinity
    from .core.ipo import ipo
    from .core.joint import JointLabels, LandmarkLabels, joint_label
    from .core.label import PseudoLabels, pseudo_label
    from .core.ncut import ncut
    from .core.objects import Objects, multi_label
    from .core.options import CutOptions, IpoOptions, LandmarkOptions, WindowOptions
    from .core.regions import regions
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
    "LandmarkLabels",
    "LandmarkOptions",
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

with open(os.path.join(os.path.dirname(__file__), "VERSION"), encoding="utf-8") as _file:
    __version__ = _file.read().strip()

# A name is imported when it is first used, so that the command line can print its help without
# torch, and labels of features need neither timm nor Pillow.
_MODULES = {
    "CutOptions": "core.options",
    "Evaluator": "evaluation.scores",
    "Graph": "core.graph",
    "IpoOptions": "core.options",
    "JointLabels": "core.joint",
    "LandmarkLabels": "core.joint",
    "LandmarkOptions": "core.options",
    "Objects": "core.objects",
    "PatchHead": "models.head",
    "PseudoLabeler": "models.labeler",
    "PseudoLabels": "core.label",
    "Segmenter": "models.segmenter",
    "VideoLabeler": "models.video",
    "WindowOptions": "core.options",
    "affinity": "core.graph",
    "evaluate": "evaluation.folders",
    "ipo": "core.ipo",
    "joint_label": "core.joint",
    "multi_label": "core.objects",
    "ncut": "core.ncut",
    "pseudo_label": "core.label",
    "refine_mask": "images.refine",
    "regions": "core.regions",
}


_SUBMODULES = {
    **{name: name for name in ("backbones", "compat", "core", "evaluation", "experiments")},
    **{name: name for name in ("images", "jobs", "methods", "models", "training")},
    "reference": "core.reference",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        value: Any = import_module(f".{_SUBMODULES[name]}", __name__)
    elif name in _MODULES:
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module 'selfment' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
