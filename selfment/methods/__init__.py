"""Methods: from the patch features of an image to its label.

A method is an object with its own options: :class:`Selfment` with those of its cut and of IPO,
:class:`MultiObject` for several objects, and the methods that the paper compares with. All make
masks on the patch grid, without the post-processing of the image (dense CRF, bilateral solver) that
some authors add. A string of :data:`METHODS` stands for a method at its defaults.
"""

from __future__ import annotations

from ..core.options import choice
from .base import Inputs, Method, Votes
from .dsm import Dsm
from .found import Found
from .maskcut import MaskCut
from .selfmask import SelfMask
from .selfment import MultiObject, Selfment
from .splits import SelfmentCls, SelfmentKmeans
from .tokencut import TokenCut

__all__ = [
    "METHODS",
    "Dsm",
    "Found",
    "Inputs",
    "MaskCut",
    "Method",
    "MultiObject",
    "SelfMask",
    "Selfment",
    "SelfmentCls",
    "SelfmentKmeans",
    "TokenCut",
    "Votes",
    "as_method",
]

#: The methods that make one mask of each image, by their names.
METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (Selfment, SelfmentKmeans, SelfmentCls, TokenCut, MaskCut, Dsm, SelfMask, Found)
}


def as_method(method: Method | str) -> Method:
    """Returns the method, at its defaults where a string names it; raises ``ValueError``."""
    if isinstance(method, Method):
        return method
    return METHODS[choice("method", method, tuple(METHODS))]()
