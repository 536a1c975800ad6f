"""Selfment itself, and its form for several objects (You, Wu, Jiang, ECCV 2026)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from ..backbones import Backbone
from ..core.arrays import Grid
from ..core.label import PseudoLabels, label_features
from ..core.objects import Objects, RoundOptions, find_objects
from ..core.options import CutOptions, IpoOptions, check_min_confidence, require
from .base import Inputs, Method, check_types


@dataclass(frozen=True)
class Selfment(Method):
    """Affinity graph, normalised cut, the seed's component, IPO: :func:`selfment.pseudo_label`."""

    #: an ``orient`` of None is the backbone's own
    cut: CutOptions = field(default_factory=CutOptions)
    ipo: IpoOptions = field(default_factory=IpoOptions)
    min_confidence: float = 0.0  #: the least confidence of a label that is kept, in [0, 1]
    name: ClassVar[str] = "selfment"

    def __post_init__(self) -> None:
        check_types(self)
        _check_edges(self.cut)
        object.__setattr__(self, "min_confidence", check_min_confidence(self.min_confidence))

    def fitted(self, backbone: Backbone | type[Backbone], name: str) -> Method:
        """See :meth:`Method.fitted`."""
        return replace(self, cut=self.cut.oriented(backbone.orient))

    def label(self, features: Inputs, grid: Grid) -> PseudoLabels:
        """See :meth:`Method.label`; an ``orient`` of None is "seed" here."""
        cut = self.cut.oriented("seed")
        return label_features(self.rows(features), grid, cut, self.ipo, self.min_confidence)


@dataclass(frozen=True)
class MultiObject(Method):
    """Several objects of each image, one after another: :func:`selfment.multi_label`."""

    max_objects: int = 3  #: objects of an image at most
    #: an ``orient`` of None is "corners"
    cut: CutOptions = field(default_factory=CutOptions)
    ipo: IpoOptions = field(default_factory=IpoOptions)
    name: ClassVar[str] = "objects"
    has_vector: ClassVar[bool] = False  # a vector for each round, which the objects do not keep
    default_backbone: ClassVar[str] = "statistics"  # which tells more objects apart

    def __post_init__(self) -> None:
        check_types(self)
        _check_edges(self.cut)
        object.__setattr__(self, "max_objects", self._rounds.max_objects)
        object.__setattr__(self, "cut", self.cut.oriented("corners"))

    @property
    def _rounds(self) -> RoundOptions:
        return RoundOptions(max_objects=self.max_objects)

    def label(self, features: Inputs, grid: Grid) -> list[Objects]:
        """Returns the objects of each image; see :meth:`Method.label`."""
        objects = find_objects(self.rows(features), grid, self._rounds, self.cut, self.ipo)
        assert isinstance(objects, list)
        return objects


def _check_edges(cut: CutOptions) -> None:
    """Raises ``ValueError`` if no two patches of any image could have an edge."""
    if not isinstance(cut.tau, str):
        require("tau", cut.tau, "at most 1, the largest similarity of patches", cut.tau <= 1)
