"""TokenCut (Wang et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.arrays import Grid
from ..core.label import PseudoLabels, label_features
from ..core.options import NO_IPO, CutOptions
from .base import Inputs, Method

_CUT = CutOptions(tau=0.2, orient="seed")


@dataclass(frozen=True)
class TokenCut(Method):
    """TokenCut at its defaults, tau = 0.2: the seed's component, without IPO."""

    name: ClassVar[str] = "tokencut"

    def label(self, features: Inputs, grid: Grid) -> PseudoLabels:
        """See :meth:`Method.label`."""
        return label_features(self.rows(features), grid, _CUT, NO_IPO)
