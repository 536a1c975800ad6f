"""How far a run over shards is: the place of each unit in it, and a bar on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from tqdm import tqdm

from ..util.words import count_of
from .rows import Unit

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True)
class Turn:
    """A unit that is left to do, and its place in the run."""

    unit: Unit
    number: int  #: from 1, after the units that earlier runs have done
    total: int  #: all units of the run
    before: float  #: the share of the input files' bytes that is in the turns before
    share: float  #: the share of the input files' bytes that is in this unit


def turns(units: Sequence[Unit], total: int) -> list[Turn]:
    """Returns the turns of the units that are left; ``total``: all units of the run."""
    sizes = [1 + sum(file.bytes for file in unit.files) for unit in units]
    done, whole = total - len(units), sum(sizes)
    return [
        Turn(unit, number, total, (end - size) / whole, size / whole)
        for number, (unit, size, end) in enumerate(
            zip(units, sizes, accumulate(sizes), strict=True), start=done + 1
        )
    ]


class Progress:
    """A bar for the share of a run that is done, with the numbers of its shards and images."""

    def __init__(self, first: Turn, images: str, show: bool) -> None:
        """``first``: the first turn of this process. ``images``: what is counted, in words."""
        self._turn = first
        self._finished = first.number - 1
        self._images = 0
        self._unit = images
        self._start = time.monotonic()
        self._bar = tqdm(
            total=1.0,
            bar_format=_FORMAT,
            disable=not show,
            file=sys.stderr,
            smoothing=0,  # parts of a shard and whole shards follow each other
            miniters=0,
        )
        self._move(0.0)

    def begin(self, turn: Turn) -> None:
        """Shows that this process begins a unit."""
        self._turn, self._finished = turn, turn.number - 1
        self._move(turn.before)

    def reach(self, share: float | None) -> None:
        """Shows which share of the unit has been read, if it is known."""
        if share is not None:
            self._move(self._turn.before + share * self._turn.share)

    def update(self, images: int = 1) -> None:
        """Counts images that are done or have failed."""
        self._images += images
        self._move(self._bar.n)

    def end(self) -> None:
        """Shows that the unit is done."""
        self._finished = self._turn.number
        self._move(self._turn.before + self._turn.share)

    def add(self, turn: Turn, images: int) -> None:
        """Shows that another process has done a unit with so many images."""
        self._finished += 1
        self._images += images
        self._move(self._bar.n + turn.share)

    def close(self) -> None:
        """Leaves the bar on the screen as it is."""
        self._bar.close()

    def _move(self, place: float) -> None:
        bar, rate = self._bar, self._images / max(time.monotonic() - self._start, 1e-9)
        shards = f"{self._finished:,} of {count_of(self._turn.total, 'shard')}"
        bar.set_description_str(shards, refresh=False)
        images = count_of(self._images, self._unit)
        bar.set_postfix_str(f"{images}, {rate:.1f} {self._unit}s/s", refresh=False)
        bar.update(max(0.0, place - bar.n))
