"""What the tests of cuts by landmarks share: frames, iterables of them, and equal labels."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.cases import CASES, isolated, smooth
from helpers.joint_rules import Grids, flat, frames_of

#: For tests with so few landmarks that they are warned of.
QUIET = pytest.mark.filterwarnings(
    "ignore:.* landmarks do not determine:RuntimeWarning",
    "ignore:all patches have the same landmark neighbours:RuntimeWarning",
    "ignore:the cut separates a group with only:RuntimeWarning",
    "ignore:the other side of the cut was nearly chosen:RuntimeWarning",
)

FRAMES: dict[str, tuple[Tensor, Grids]] = {
    "smooth": frames_of(smooth, (12, 12), (12, 12), (12, 12)),
    "different grids": frames_of(smooth, (5, 7), (9, 4), (1, 6), (12, 12)),
    "one patch per frame": frames_of(smooth, (3, 30), *[(1, 1)] * 70),
    "isolated patches": frames_of(isolated, (9, 11), (10, 8), (7, 7)),
    "one frame": (CASES["object"][0], [CASES["object"][1]]),
    "deep": (CASES["deep"][0], [(6, 13), (6, 13)]),
}


def fields_of(label: Any) -> dict[str, Tensor]:
    return {
        name: flat(value) if isinstance(value, list | tuple) else torch.as_tensor(value).flatten()
        for name, value in vars(label).items()
    }


def assert_same(ours: Any, theirs: Any) -> None:
    a, b = fields_of(ours), fields_of(theirs)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


class Frames:
    """An iterable of frames that are made on the way; it knows how many exist at a time."""

    def __init__(self, features: Tensor, grids: Grids) -> None:
        self._parts = features.split([h * w for h, w in grids])
        self.passes = self.alive = self.most = 0

    def _gone(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        for part in self._parts:
            frame = part.clone()
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(frame.untyped_storage(), self._gone)
            yield frame
            del frame


def assert_close(ours: Any, expected: Any) -> None:
    """Equal where the answer is discrete, else as close as the vectors of the landmarks are."""
    a, b = fields_of(ours), fields_of(expected)
    assert a.keys() == b.keys()
    for name, found in a.items():
        wanted = b[name]
        assert found.dtype == wanted.dtype
        if name == "fiedler":
            assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        elif name == "changing" or not found.is_floating_point():
            # The number of products depends on the start vectors of Lanczos.
            assert name == "lanczos_iters" or torch.equal(found, wanted), name
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
