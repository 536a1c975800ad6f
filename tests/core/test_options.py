"""The options of a cut and of IPO are checked once, when they are made, and then stay."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest

import selfment
from helpers.cases import noise
from selfment import CutOptions, IpoOptions, reference


def test_options_are_plain_numbers_and_frozen():
    cut = CutOptions(tau=np.float32(0.25), eps=np.float64(1e-4))
    ipo = IpoOptions(iters=np.int64(3), min_count=np.uint8(5), prefix="ipo_")
    assert json.loads(json.dumps([asdict(cut), asdict(ipo)])) == [
        {"tau": 0.25, "eps": 1e-4, "graph": "binary", "orient": None},
        {"iters": 3, "min_count": 5},
    ]
    with pytest.raises(FrozenInstanceError):
        cut.tau = 0.5
    assert hash(cut) == hash(CutOptions(tau=0.25, eps=1e-4))


def test_an_open_side_is_decided_once():
    cut = CutOptions(tau=0.3)
    assert cut.oriented("corners") == CutOptions(tau=0.3, orient="corners")
    assert cut.oriented("corners").oriented("seed").corners
    with pytest.raises(ValueError, match="`orient` must be 'seed' or 'corners': got None"):
        _ = cut.corners


@pytest.mark.parametrize(
    "function",
    [
        selfment.pseudo_label,
        selfment.joint_label,
        selfment.multi_label,
        reference.pseudo_label,
        reference.joint_label,
    ],
)
def test_a_function_leaves_no_side_open_and_names_its_own_arguments(function):
    features = noise(3, 4, 5)[None]
    with pytest.raises(ValueError, match="`orient` must be 'seed' or 'corners': got None"):
        function(features, (3, 4), orient=None)
    for name in ("ipo_iters", "ipo_min_count"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer from .*: got -1"):
            function(features, (3, 4), **{name: -1})
