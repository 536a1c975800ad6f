"""Whatever the wrong argument, the error names it, its rule and its value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import selfment
from helpers.drawn import checked
from selfment.images.load import ImageError

WRONG: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(-3, 3), max_size=4),
    st.tuples(st.floats(), st.text(max_size=2)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([np.float32("nan"), np.int8(3), np.zeros(3), torch.ones(2), object()]),
)

ARGUMENTS = {
    "pseudo_label": "grid tau eps graph orient ipo_iters ipo_min_count min_confidence",
    "affinity": "tau eps graph",
    "ncut": "k tau eps graph",
    "ipo": "labels iters min_count",
    "multi_label": "grid max_objects max_cut min_area tau eps graph orient ipo_iters ipo_min_count",
    "regions": "grid k method vectors tau eps graph seed",
    "refine_mask": "mask image method max_side",
}


_PAIRS = [(name, one) for name, names in ARGUMENTS.items() for one in names.split()]


def refusal(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except (TypeError, ValueError) as error:
        return error
    return None


@pytest.mark.slow
@settings(checked, max_examples=8 * checked.max_examples)
@given(st.sampled_from(_PAIRS), WRONG)
def test_wrong_arguments_are_named(pair, value) -> None:
    """A value is taken, or refused by its argument's name; nothing else comes out."""
    function, argument = pair
    arguments: dict[str, Any] = {"features": torch.eye(6), "grid": (2, 3)}
    if function in ("affinity", "ncut", "ipo"):
        del arguments["grid"]
    if function == "ipo":
        arguments["labels"] = torch.arange(6) % 2
    if function == "regions":
        arguments["k"] = 2
    if function == "refine_mask":
        arguments = {"mask": np.eye(3), "image": np.zeros((4, 4, 3), np.uint8)}
        arguments["method"] = "bilateral" if argument == "max_side" else None
    arguments[argument] = value
    error = refusal(lambda: getattr(selfment, function)(**arguments))
    if isinstance(error, ImageError):
        assert argument == "image"
    elif error is not None:
        assert f"`{argument}`" in str(error), repr(error)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_numbers(kind) -> None:
    features = torch.eye(6) + 0.25
    for value in ("inf", "-inf", "nan"):
        with pytest.raises(ValueError, match="`tau` must be a finite number: got"):
            selfment.affinity(features, tau=kind(value))
    found = selfment.affinity(features, tau=kind(0.5), eps=kind(0.25)).to_dense()
    assert torch.equal(found, selfment.affinity(features, tau=0.5, eps=0.25).to_dense())


@checked
@given(WRONG)
def test_what_are_no_features_is_said(value) -> None:
    for call in (selfment.affinity, selfment.ncut, lambda v: selfment.pseudo_label(v, (1, 1))):
        error = refusal(functools.partial(call, value))
        assert error is None or "`features`" in str(error) or "`grid`" in str(error), repr(error)
