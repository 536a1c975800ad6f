"""Runs the emulated operations under the race detector: `race_cases.py MODULE WHICH ...`.

``WHICH`` names cases of ``CASES``; each runs with teams of 1, 2 and 3 blocks. The detector writes
the races to the file that $SELFMENT_RACE_LOG names (races.py reads it). Prints a digest of the
results of each case.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import selfment
from helpers import emulated
from helpers.cases import blocks, copies, generator, noise, ring, smooth, turned_over
from helpers.cuda import CHOOSING
from selfment.core import ops as _ops
from selfment.core import twins
from selfment.core.arrays import as_features
from selfment.core.blocks import array_blocks
from selfment.core.ipo import run_ipo
from selfment.core.options import IpoOptions

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GRAPHS = ("binary", "weighted")


def labels() -> Iterator[Any]:
    """Of rows that take more than one turn of every loop over their elements."""
    rows = torch.stack([smooth(6, 13, 40, seed=seed) for seed in range(2)])
    for graph in GRAPHS:
        yield selfment.pseudo_label(rows, (6, 13), graph=graph)


def auto() -> Iterator[Any]:
    rows = torch.stack([smooth(6, 13, 24, seed=seed) for seed in range(2)])
    yield selfment.pseudo_label(rows, (6, 13), tau="auto", min_confidence=0.3)


def dtypes() -> Iterator[Any]:
    for dtype in DTYPES:
        for d in (40, 33):
            yield selfment.pseudo_label(smooth(6, 11, d).to(dtype), (6, 11))


def eigenpairs() -> Iterator[Any]:
    for k in (1, 4, 6):
        for graph in GRAPHS:
            yield selfment.ncut(noise(11, 12, 20), k=k, graph=graph)


def lapack() -> Iterator[Any]:
    """Its signs are decided by up to 256 rows, which are not all of one block."""
    yield selfment.ncut(noise(6, 11, 20), k=2, sign="lapack")


def tables() -> Iterator[Any]:
    yield selfment.pseudo_label(smooth(33, 34, 16, seed=16), (33, 34))


def components() -> Iterator[Any]:
    rng = generator(0)
    grids = [(5, 6), (1, 9), (8, 8)]
    x = torch.randint(-3, 4, (3, sum(h * w for h, w in grids)), generator=rng).double()
    for corners in (False, True):
        yield _ops.components(x, grids, corners)
    yield selfment.pseudo_label(
        blocks(12, 15, 32, count=2, spread=0.01), (12, 15), orient="corners"
    )


def joint() -> Iterator[Any]:
    rows = torch.stack([smooth(6, 9, 20, seed=seed) for seed in range(3)])
    yield selfment.joint_label(rows, grid=(6, 9))


def landmarks() -> Iterator[Any]:
    """A cut whose rows come in blocks of 64; features of half precision and not."""
    warnings.simplefilter("ignore", RuntimeWarning)  # so few landmarks determine no vector
    with mock.patch("selfment.core.blocks._ROWS", (64, 64)):
        for dtype in (torch.bfloat16, torch.float32):
            rows = smooth(13, 17, 40).to(dtype)
            yield selfment.joint_label(rows, [(13, 17)], landmarks=70)


def complements_of_blocks() -> Iterator[Any]:
    rows, start = turned_over()
    with mock.patch("selfment.core.blocks._ROWS", (5, 5)):
        parts = array_blocks(as_features(rows))
        yield run_ipo(parts, start[None], IpoOptions(iters=20, min_count=1))


def paint() -> Iterator[Any]:
    rows, mask = smooth(6, 13, 20), torch.arange(78) % 5 == 0
    for graph in GRAPHS:
        graph_ = selfment.affinity(rows, graph=graph)
        yield graph_.paint(mask)
        yield graph_.matvec(torch.ones(78, 2, dtype=torch.float64))


def restarts() -> Iterator[Any]:
    """Of the search for one pair, whose matrix is tridiagonal until then."""
    yield selfment.ncut(ring(66), k=1)


def restarts_of_several() -> Iterator[Any]:
    yield selfment.ncut(ring(66), k=2)


def merges() -> Iterator[Any]:
    yield selfment.ncut(copies(), k=3)


def complements() -> Iterator[Any]:
    rows, labels = turned_over()
    yield run_ipo(rows[None], labels[None], IpoOptions(iters=20, min_count=1))


def full_lists() -> Iterator[Any]:
    equal = smooth(1, 1, 24) * torch.rand(130, 1, generator=generator(0))
    rows = torch.stack([smooth(10, 13, 24), equal])
    for graph in GRAPHS:
        yield selfment.affinity(rows, tau=1.0, graph=graph)


def objects() -> Iterator[Any]:
    rows = torch.stack([smooth(6, 11, 24, seed=seed) for seed in range(2)])
    yield selfment.multi_label(rows, (6, 11), max_cut=1.0, max_objects=3)


CASES: dict[str, Callable[[], Iterator[Any]]] = {
    case.__name__: case
    for case in (
        *(labels, auto, dtypes, eigenpairs, lapack, tables, components, joint, paint),
        *(restarts, restarts_of_several, merges, complements, full_lists, objects),
        *(landmarks, complements_of_blocks),
    )
}


def add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            if value.numel()
            else b""
        )
    elif isinstance(value, list | tuple):
        for part in value:
            add(digest, part)
    elif value is not None and hasattr(value, "__dict__"):
        add(digest, list(vars(value).values()))


def main() -> None:
    module = emulated.load(Path(sys.argv[1]))
    for user in CHOOSING:
        user.twin_of = lambda device: twins.Cuda(module, device, 0, 0)  # type: ignore[attr-defined]
    for name in sys.argv[2:] or CASES:
        digest = hashlib.sha256()
        for team in (1, 2, 3):
            os.environ["SELFMENT_EMULATED_TEAM"] = str(team)
            for result in CASES[name]():
                add(digest, result)
        print(name, digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main()
