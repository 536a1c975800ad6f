"""Strategies of hypothesis: features of all dtypes and layouts in memory."""

from __future__ import annotations

import os
from typing import Any

import torch
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from torch import Tensor

_COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}


_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


TAUS = st.sampled_from([0.2, 0.0, -0.3, 0.5, 0.95, 1.0, -1.0]) | st.floats(-1.5, 1.5, width=32)


EPS = st.sampled_from([1e-5, 1e-30, 1e-12, 0.1, 0.999])


LAYOUTS = ("plain", "expanded", "transposed", "sliced", "offset", "numpy", "reversed", "read-only")


settings.register_profile("quick", max_examples=60, derandomize=True, database=None, **_COMMON)
settings.register_profile("long", max_examples=2000, **_COMMON)
checked = settings(settings.get_profile(_PROFILE))


@st.composite
def grids(draw, most: int = 80) -> tuple[int, int]:
    h = draw(st.integers(1, 12))
    return h, draw(st.integers(1, max(1, most // h)))


@st.composite
def rows(draw, n: int, finite: bool = True) -> Tensor:
    """(n, d) features with a structure, at any scale, of any dtype."""
    d = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 33, 64]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    kind = draw(
        st.sampled_from(
            ["noise", "shifted", "signs", "integers", "equal", "zero", "two kinds", "eye", "few"]
        )
    )
    values = {
        "noise": lambda: torch.randn(n, d, generator=rng),
        "shifted": lambda: torch.randn(n, d, generator=rng) + 1,
        "signs": lambda: torch.randint(0, 2, (n, d), generator=rng) * 2.0 - 1,
        "integers": lambda: torch.randint(-2, 3, (n, d), generator=rng).float(),
        "equal": lambda: torch.randn(1, d, generator=rng).repeat(n, 1),
        "zero": lambda: torch.zeros(n, d) * -1.0,  # of either sign
        "two kinds": lambda: torch.randn(2, d, generator=rng)[
            torch.randint(0, 2, (n,), generator=rng)
        ],
        "eye": lambda: torch.eye(d).repeat(n // d + 1, 1)[:n].clone(),
        "few": lambda: torch.randn(n, d, generator=rng) * (torch.rand(n, 1, generator=rng) < 0.3),
    }[kind]()
    if draw(st.booleans()):  # duplicated rows
        values = values[torch.randint(0, n, (n,), generator=rng)]
    dtype = draw(st.sampled_from(DTYPES))
    scale = draw(st.sampled_from([1.0, 1.0, 1e-3, 1e3, 1e-7, 1e-40, 1e30, 1e-200, 1e100]))
    values = (values.double() * scale).to(dtype)
    if finite:
        norms = values.double().norm(dim=1)
        assume(bool(values.isfinite().all()) and bool(norms.isfinite().all()))
    return values


@st.composite
def layouts(draw, values: Tensor) -> Any:
    """The same numbers, in other strides or as numpy's."""
    n, d = values.shape
    kind = draw(st.sampled_from(LAYOUTS))
    if kind == "transposed":
        return values.T.contiguous().T
    if kind == "expanded" and torch.equal(values, values[:1].expand(n, d)):
        return values[:1].expand(n, d)
    if kind == "sliced":
        wide = torch.full((n, 2 * d + 1), float("nan"), dtype=values.dtype)
        wide[:, 1::2] = values
        return wide[:, 1::2]
    if kind == "offset":
        long = torch.full((n * d + 1,), float("nan"), dtype=values.dtype)
        long[1:] = values.flatten()
        return long[1:].view(n, d)
    if kind in ("plain", "expanded") or values.dtype == torch.bfloat16:
        return values
    array = values.numpy()
    if kind == "reversed":
        return array[::-1, ::-1].copy()[::-1, ::-1]
    if kind == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array
