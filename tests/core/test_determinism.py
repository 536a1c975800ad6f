"""The same input gives the same bits: run to run, on any threads, alone or in any batch, from any
memory, and in binary mode on any instruction set. In weighted mode instruction sets agree on graphs
and masks.

tests/native/test_same_bits.py has hashes that hold on every processor; test_cuda*.py there compare
the CPU with the CUDA twin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import selfment
from helpers import processes
from helpers.cases import CASES, object_on_ground, smooth
from helpers.folders import TESTS
from selfment.core import native as _native

GRID = (19, 22)
N = GRID[0] * GRID[1]

Found = list[Any]  # arrays of one image


def of_label(**options: Any) -> Callable[[Any], list[Found]]:
    def label(features: Any) -> list[Found]:
        found = vars(selfment.pseudo_label(features, GRID, **options)).values()
        return [list(image) for image in zip(*found, strict=True)]

    return label


def of_ncut(features: Any) -> list[Found]:
    values, vectors = selfment.ncut(features, k=4)
    return [list(image) for image in zip(values, vectors, strict=True)]


def of_ipo(features: Any) -> list[Found]:
    labels = torch.arange(N) % 3 == 0
    labels = labels.expand(len(features), N)
    return [[image] for image in selfment.ipo(features, labels)]


def of_objects(**options: Any) -> Callable[[Any], list[Found]]:
    def objects(features: Any) -> list[Found]:
        found = selfment.multi_label(features, GRID, **options)
        assert isinstance(found, list)
        return [list(vars(image).values()) for image in found]

    return objects


def of_joint(**options: Any) -> Callable[[Any], list[Found]]:
    """Of each image cut in two: two frames that share a graph."""

    def joint(features: Any) -> list[Found]:
        halves = [(9, 22), (10, 22)]
        labels = [selfment.joint_label(image, halves, **options) for image in features]
        return [
            [part for v in vars(label).values() for part in (v if isinstance(v, list) else [v])]
            for label in labels
        ]

    return joint


# From features (B, N, d) to what is found in each image.
FUNCTIONS: dict[str, Callable[[Any], list[Found]]] = {
    "binary": of_label(),
    "weighted": of_label(graph="weighted"),
    "auto": of_label(tau="auto"),
    "weighted, auto": of_label(graph="weighted", tau="auto"),
    "corners": of_label(orient="corners", min_confidence=0.25),
    "ncut": of_ncut,
    "ipo": of_ipo,
    "objects": of_objects(),
    "objects, weighted": of_objects(graph="weighted", split=True),
    "joint": of_joint(),
    "joint, weighted": of_joint(graph="weighted", tau="auto"),
    "landmarks": of_joint(landmarks=200, tau="auto"),
}


@cache
def batch() -> Tensor:
    """Made once: torch's own products depend on the number of threads."""
    images = [smooth(*GRID, 384, seed=seed) for seed in range(4)]
    return torch.stack([*images, object_on_ground(*GRID, 384)])


@cache
def expected(name: str) -> list[Found]:
    """What is found in each image alone, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [FUNCTIONS[name](image[None])[0] for image in batch()]
    finally:
        torch.set_num_threads(before)


def assert_same(found: list[Found], name: str, images: list[int]) -> None:
    """``found`` is, to the bit, what there is in these images."""
    assert len(found) == len(images)
    for ours, image in zip(found, images, strict=True):
        theirs = expected(name)[image]
        assert len(ours) == len(theirs)
        for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == b.tobytes(), f"image {image}, array {index}"


@pytest.fixture(params=FUNCTIONS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_repeated_runs(name: str) -> None:
    for _ in range(3):
        assert_same(FUNCTIONS[name](batch()), name, list(range(5)))


@pytest.mark.slow
@pytest.mark.usefixtures("restore_threads")
def test_threads(name: str) -> None:
    """Fewer threads than images, as many, and more: each is another way through the batch."""
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        assert_same(FUNCTIONS[name](batch()), name, list(range(5)))
        assert_same(FUNCTIONS[name](batch()[2:3]), name, [2])


@pytest.mark.slow
@pytest.mark.parametrize("images", [[4], [1, 0], [4, 2, 0], [3, 3, 3, 1], [4, 3, 2, 1, 0] * 3])
def test_batches_of_any_size_and_order(name: str, images: list[int]) -> None:
    assert_same(FUNCTIONS[name](batch()[images]), name, images)


def test_a_batch_that_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfment.core.ops.images_at_once", lambda rows, weighted: 2)
    assert_same(FUNCTIONS[name](batch()), name, list(range(5)))


def in_other_memory() -> dict[str, Any]:
    rows = batch()
    odd = bytearray(rows.numel() * 4 + 1)
    odd[1:] = rows.numpy().tobytes()
    reversed_ = np.ascontiguousarray(rows.numpy()[:, ::-1])[:, ::-1]
    read_only = rows.numpy().copy()
    read_only.flags.writeable = False
    return {
        "transposed": rows.transpose(1, 2).contiguous().transpose(1, 2),
        "batch last": rows.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "every other": torch.stack([rows, rows + 1], dim=3)[..., 0],
        "a part of rows": torch.cat([rows, rows], dim=2)[..., rows.shape[2] :],
        "odd address": torch.frombuffer(odd, dtype=torch.float32, offset=1).view(rows.shape),
        "numpy": rows.numpy(),
        "numpy, reversed": reversed_,
        "numpy, read only": read_only,
        "numpy, odd address": np.frombuffer(odd, np.float32, offset=1).reshape(rows.shape),
    }


@pytest.mark.slow
@pytest.mark.parametrize("memory", in_other_memory())
def test_memory(name: str, memory: str) -> None:
    """float32 is float32, wherever it lies and whoever holds it."""
    assert_same(FUNCTIONS[name](in_other_memory()[memory]), name, list(range(5)))


def test_booleans_of_any_bytes() -> None:
    """A view of other bytes as bool: whatever is not 0 is true."""
    rows, mask = batch()[0], torch.arange(N) % 3 == 0
    other = (mask.to(torch.uint8) * 254).view(torch.bool)
    graph = selfment.affinity(rows)
    for ours, theirs in (
        (graph.paint(other).bits, graph.paint(mask).bits),
        (graph.paint(other.numpy()).degrees, graph.paint(mask).degrees),
        (selfment.ipo(rows, other), selfment.ipo(rows, mask)),
    ):
        assert torch.equal(ours, theirs)


SCRIPT = """
import sys, torch, selfment
from selfment.core import native as _native
sys.path.insert(0, {tests!r})
from helpers.cases import CASES
for name, (features, grid) in CASES.items():
    exact, close = [], []
    for graph in ("binary", "weighted"):
        exact.append(selfment.affinity(features, graph=graph).bits)
        label = selfment.pseudo_label(features, grid, graph=graph)
        exact += [label.mask, label.ncut_mask, label.seed]
        values, vectors = selfment.ncut(features, k=min(2, len(features) - 1), graph=graph)
        if graph == "binary":
            exact += [values, vectors, *vars(label).values()]
        else:
            close += [vectors[:, 0], label.gap]
    if len(features) > 200:
        label = selfment.joint_label(features[None], grid, landmarks=150)
        exact += vars(label).values()
    exact += [selfment.affinity(features.to(d)).bits for d in (torch.float16, torch.bfloat16)]
    torch.save((exact, close), {out!r} + name.replace(" ", "_") + ".pt")
print(_native.cpu().isa())
"""

Saved = dict[str, tuple[list[Tensor], list[Tensor]]]  # of each case


@pytest.fixture(scope="module")
def by_isa(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Saved]:
    """What each instruction set that this machine has makes of the cases."""
    results: dict[str, Saved] = {}
    for isa in reversed(_native.ISAS):
        out = tmp_path_factory.mktemp(isa)
        script = SCRIPT.format(tests=str(TESTS), out=f"{out}/")
        run = processes.run(
            [sys.executable, "-c", script],
            env={**os.environ, "SELFMENT_ISA": isa},
            check=True,
        )
        if run.stdout.strip() == isa:
            results[isa] = {file.stem: torch.load(file) for file in out.iterdir()}
    return results


@pytest.mark.slow
def test_instruction_sets_agree(by_isa: dict[str, Saved]) -> None:
    assert "portable" in by_isa
    for isa, cases in by_isa.items():
        assert len(cases) == len(CASES)
        for name, (exact, close) in cases.items():
            same, near = by_isa["portable"][name]
            for ours, portable in zip(exact, same, strict=True):
                assert torch.equal(ours, portable), (isa, name)
            # Weights are rounded to float32, so vectors differ by that over the gap.
            vector, gap = close
            rounding = 1e-6 / gap + 2e-9
            worst = (vector - near[0]).abs().max()
            assert worst <= rounding * vector.abs().max(), (isa, name)
