"""The parameters of the method: their defaults, their rules, and the rules for ties."""

from __future__ import annotations

import math
import sys
from numbers import Integral, Real
from typing import Any

TAU = 0.2
AUTO = "auto"  # tau: a threshold for each image, see threshold.py
EPS = 1e-5
IPO_ITERS = 20
IPO_MIN_COUNT = 10

_LARGEST: Any = sys.float_info.max

GRAPHS = ("binary", "weighted")
ORIENTS = ("seed", "corners")
SIGNS = ("peak", "lapack")

# Two entries of the Fiedler vector whose magnitudes differ by less than this share of the largest
# count as equal when the seed is chosen, so that the seed does not depend on a solver's rounding.
SEED_TIE = 1e-7

# IPO puts a patch into the foreground when its score <f_i, mu_f - mu_b> exceeds this: an exact tie
# is background, in whatever order the sums were taken.
IPO_TIE = 1e-12


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``; raises ``ValueError`` otherwise."""
    if not isinstance(value, str) or value not in allowed:
        names = " or ".join(repr(option) for option in allowed)
        raise ValueError(f"`{name}` must be {names}: got {value!r}")
    return value


def require(name: str, value: Any, rule: str, holds: bool) -> None:
    """Raises ``ValueError`` naming argument, rule and value unless ``holds``."""
    if not holds:
        raise ValueError(f"`{name}` must be {rule}: got {value!r}")


def tau_or_none(tau: float | str) -> float | None:
    """The checked ``tau`` as the operators take it: None stands for "auto"."""
    return None if isinstance(tau, str) else float(tau)


def check_min_confidence(value: float) -> None:
    """Checks the least confidence of a label that is kept; raises ``ValueError``."""
    require("min_confidence", value, "in [0, 1]", _finite(value) and 0 <= value <= 1)


def check_graph(tau: float | str, eps: float, graph: str) -> None:
    """Checks the three parameters of the affinity graph; raises ``ValueError``."""
    choice("graph", graph, GRAPHS)
    if not isinstance(tau, str):
        require("tau", tau, "a finite number", _finite(tau))
    elif tau != AUTO:
        raise ValueError(f"`tau` must be a finite number or {AUTO!r}: got {tau!r}")
    require("eps", eps, "in [1e-30, 1)", _finite(eps) and 1e-30 <= eps < 1)
    if graph == "weighted" and not isinstance(tau, str):
        require("tau", tau, "> 0 in the weighted graph, whose degrees must be", tau > 0)


def check_ipo(iters: int, min_count: int) -> None:
    """Checks the two parameters of IPO; raises ``ValueError``."""
    whole = isinstance(iters, Integral)
    require("iters", iters, "an integer from 0 to 2^31", whole and 0 <= iters <= 2**31)
    whole = isinstance(min_count, Integral)
    require("min_count", min_count, "an integer from 1 to 2^31", whole and 1 <= min_count <= 2**31)


def check_k(k: int, patches: int) -> None:
    """Checks the number of eigenpairs against the number of patches; raises ``ValueError``."""
    require("k", k, "an integer >= 1", isinstance(k, Integral) and k >= 1)
    if k >= patches:
        raise ValueError(f"`k` must be < N: got k = {k} for N = {patches}")


def _finite(value: Any) -> bool:
    # By comparison, which torch.compile can trace. An integer may be too large for a float, and the
    # largest float64 for another kind of float.
    bound: Any = _LARGEST if isinstance(value, int) else math.inf
    return isinstance(value, Real) and bool(-bound < value < bound)
