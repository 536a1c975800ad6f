"""The options of a cut and of IPO: their defaults, their rules, and the rules for ties."""

from __future__ import annotations

import math
import sys
from dataclasses import InitVar, dataclass, replace
from numbers import Integral, Real
from typing import Any

TAU = 0.2
AUTO = "auto"  # tau: a threshold for each image, see threshold.py
EPS = 1e-5
IPO_ITERS = 20
IPO_MIN_COUNT = 10
WINDOW = 8  # frames of a video
#: Rejects flat images and noise, and hardly any photograph: measured in docs/confidence.md.
RECOMMENDED_MIN_CONFIDENCE = 0.25

_LARGEST: Any = sys.float_info.max
_SEEDS = "an integer from 0 to 2^63 - 1"

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
    """Returns ``value`` if it is one of ``allowed``; raises ``ValueError`` otherwise."""
    if not isinstance(value, str) or value not in allowed:
        names = " or ".join(repr(option) for option in allowed)
        raise ValueError(f"`{name}` must be {names}: got {value!r}")
    return value


def require(name: str, value: Any, rule: str, holds: bool) -> None:
    """Raises ``ValueError`` naming argument, rule and value unless ``holds``."""
    if not holds:
        raise ValueError(f"`{name}` must be {rule}: got {value!r}")


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """How patches become a graph, and which side of its cut is the foreground.

    Raises ``ValueError`` for a value against its rule.
    """

    tau: float | str = TAU  #: the threshold on similarities, or "auto": one for each image
    eps: float = EPS  #: the affinity of two patches without an edge, in [1e-30, 1)
    graph: str = "binary"  #: "binary" or "weighted": what an edge weighs
    orient: str | None = None  #: "seed" or "corners"; None leaves it to :meth:`oriented`

    def __post_init__(self) -> None:
        tau, eps = self.tau, self.eps
        choice("graph", self.graph, GRAPHS)
        if not isinstance(tau, str):
            require("tau", tau, "a finite number", _finite(tau))
        elif tau != AUTO:
            raise ValueError(f"`tau` must be a finite number or {AUTO!r}: got {tau!r}")
        require("eps", eps, "in [1e-30, 1)", _finite(eps) and 1e-30 <= eps < 1)
        if self.weighted and not isinstance(tau, str):
            require("tau", tau, "> 0 in the weighted graph, whose degrees must be", tau > 0)
        if self.orient is not None:
            choice("orient", self.orient, ORIENTS)
        object.__setattr__(self, "tau", tau if isinstance(tau, str) else float(tau))
        object.__setattr__(self, "eps", float(eps))

    @property
    def weighted(self) -> bool:
        """True if an edge weighs what its similarity is, False if it weighs 1."""
        return self.graph == "weighted"

    @property
    def corners(self) -> bool:
        """True if the corner rule chooses the foreground; an ``orient`` of None is an error."""
        return choice("orient", self.orient, ORIENTS) == "corners"

    def oriented(self, orient: str) -> CutOptions:
        """Returns the same options with this ``orient`` in the place of None."""
        return self if self.orient else replace(self, orient=orient)

    @property
    def threshold(self) -> float | None:
        """``tau`` as a torch operator takes it: None stands for "auto"."""
        return None if isinstance(self.tau, str) else self.tau

    @classmethod
    def from_operator(
        cls, tau: float | None, eps: float, graph: str, orient: str | None = None
    ) -> CutOptions:
        """Returns the options for the arguments of a torch operator: see :attr:`threshold`."""
        return cls(tau=AUTO if tau is None else tau, eps=eps, graph=graph, orient=orient)


@dataclass(frozen=True, kw_only=True)
class IpoOptions:
    """When Iterative Patch Optimization ends.

    Raises ``ValueError`` for a value against its rule; ``prefix`` stands before the names in it.
    """

    iters: int = IPO_ITERS  #: steps at most; 0 leaves the labels as they are
    min_count: int = IPO_MIN_COUNT  #: no step is taken while a side has fewer patches than this
    prefix: InitVar[str] = ""

    def __post_init__(self, prefix: str) -> None:
        for name, least in (("iters", 0), ("min_count", 1)):
            value = getattr(self, name)
            rule = f"an integer from {least} to 2^31"
            whole = isinstance(value, Integral)
            require(prefix + name, value, rule, whole and least <= value <= 2**31)
            object.__setattr__(self, name, int(value))


NO_IPO = IpoOptions(iters=0)


@dataclass(frozen=True)
class WindowOptions:
    """How many frames a cut extends over, and how many of them the next cut shares.

    Raises ``ValueError`` for a value against its rule.
    """

    window: int = WINDOW  #: frames of a window; 1 labels each frame alone
    overlap: int | None = None  #: frames that two windows share; None: a quarter of a window

    def __post_init__(self) -> None:
        whole = isinstance(self.window, int) and self.window >= 1
        require("window", self.window, "an integer >= 1", whole)
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.window // 4)
        inside = isinstance(self.overlap, int) and 0 <= self.overlap < self.window
        require("overlap", self.overlap, f"an integer >= 0 and < window = {self.window}", inside)

    @property
    def step(self) -> int:
        """The frames that a window labels, and the window before does not."""
        assert self.overlap is not None
        return self.window - self.overlap


@dataclass(frozen=True)
class LandmarkOptions:
    """How many patches the vector of a large cut is approximated from, and which.

    Raises ``ValueError`` for a value against its rule.
    """

    landmarks: int  #: at least 2; a cut of as many patches, or of fewer, is exact
    landmark_seed: int = 0  #: which patches are drawn

    def __post_init__(self) -> None:
        rules = (("landmarks", 2, "an integer >= 2"), ("landmark_seed", 0, _SEEDS))
        for name, least, rule in rules:
            value = getattr(self, name)
            inside = isinstance(value, Integral) and least <= int(value) < 2**63
            require(name, value, rule, inside)
            object.__setattr__(self, name, int(value))


def check_min_confidence(value: float) -> float:
    """Returns the least confidence of a label as a float; raises ``ValueError``."""
    require("min_confidence", value, "in [0, 1]", _finite(value) and 0 <= value <= 1)
    return float(value)


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
