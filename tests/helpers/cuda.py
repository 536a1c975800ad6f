"""Where the CUDA twin runs in tests, on a device or emulated, and how its results are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import selfment
from helpers.cases import (
    CASES,
    DEGENERATE,
    Case,
    smooth,
)
from selfment import PseudoLabels
from selfment.core import block_ops, blocks, twins
from selfment.core import native as _native
from selfment.core import ops as _ops

GRAPHS = ("binary", "weighted")


ORIENTS = ("seed", "corners")


EXACT = ("mask", "ncut_mask", "seed", "ipo_iters", "rejected", "tau")


# Next to multiples of the kernels' tiles, and the size of a photograph.
EDGES: dict[str, Case] = {
    "N = 64": (smooth(8, 8, 24, seed=10), (8, 8)),
    "N = 65, d = 65": (smooth(5, 13, 65, seed=11), (5, 13)),
    "N = 127, d = 31": (smooth(1, 127, 31, seed=12), (1, 127)),
    "N = 129": (smooth(3, 43, 33, seed=13), (3, 43)),
}


LARGE: dict[str, Case] = {
    "N = 2304": (smooth(48, 48, 384, seed=14), (48, 48)),
    "N = 6400": (smooth(80, 80, 64, seed=15), (80, 80)),
}


SIMPLE = CASES | EDGES | LARGE  # a simple Fiedler value: the masks are determined


ALL = SIMPLE | DEGENERATE


#: The modules that choose a twin.
CHOOSING = (_ops, block_ops, blocks)


class Target:
    """Where the CUDA twin runs: a device, or the emulated module on the host's memory."""

    def __init__(self, emulated: ModuleType | None, patch: pytest.MonkeyPatch) -> None:
        self.emulated = emulated
        self.patch = patch
        self.device = torch.device("cpu" if emulated else f"cuda:{torch.cuda.current_device()}")

    def __call__(self, function: Callable[..., Any], *tensors: Tensor, **options: Any) -> Any:
        """What ``function`` makes of the tensors there, brought back."""
        with self.patch.context() as patch:
            if self.emulated is not None:
                emulated = self.emulated
                for module in CHOOSING:
                    patch.setattr(
                        module, "twin_of", lambda device: twins.Cuda(emulated, device, 0, 0)
                    )
            return on_cpu(function(*(tensor.to(self.device) for tensor in tensors), **options))


def on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, PseudoLabels):
        return type(value)(**{name: on_cpu(part) for name, part in vars(value).items()})
    return tuple(map(on_cpu, value)) if isinstance(value, tuple | list) else value


def need_cuda() -> None:
    obstacles = _native.cuda_obstacles()
    if obstacles:
        pytest.skip("; ".join(obstacles))


BOTH = pytest.mark.parametrize(
    "target", [pytest.param("device", marks=pytest.mark.cuda), "emulated"], indirect=True
)


def on_both(cases: dict[str, Case]) -> pytest.MarkDecorator:
    """Each case on a device, and the small ones emulated, which is slow."""
    small = [name for name, (rows, _) in cases.items() if len(rows) <= 450]
    pairs = [pytest.param("device", name, marks=pytest.mark.cuda) for name in cases]
    pairs += [pytest.param("emulated", name) for name in small]
    return pytest.mark.parametrize(("target", "name"), pairs, indirect=["target"])


def batch_of(count: int, h: int, w: int, d: int) -> Tensor:
    return torch.stack([smooth(h, w, d, seed=seed) for seed in range(count)])


def assert_same(ours: PseudoLabels, expected: PseudoLabels) -> None:
    for field in fields(PseudoLabels):
        found, wanted = getattr(ours, field.name), getattr(expected, field.name)
        assert torch.equal(found.cpu(), wanted.cpu()), field.name


def assert_close(ours: PseudoLabels, expected: PseudoLabels, graph: str = "binary") -> None:
    """Two twins: equal where the answer is discrete, else as close as rounding lets them be."""
    for field in EXACT:
        assert torch.equal(getattr(ours, field), getattr(expected, field)), field
    for field in fields(PseudoLabels):
        assert getattr(ours, field.name).dtype == getattr(expected, field.name).dtype
    torch.testing.assert_close(ours.eigenvalue, expected.eigenvalue, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours.gap, expected.gap, rtol=0.05, atol=1e-5)
    torch.testing.assert_close(ours.separation, expected.separation, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.confidence, expected.confidence, rtol=0.02, atol=1e-5)
    assert ours.residual.max() < 1e-7
    scale = expected.fiedler.abs().max().item()
    gap = expected.gap.min().item()
    tolerance = 1e-6 if graph == "binary" else max(1e-6, 1e-8 / gap)  # float32 weights move it
    assert (ours.fiedler - expected.fiedler).abs().max().item() < tolerance * scale


def edges(rows: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    graph = selfment.affinity(rows, **options)
    return graph.bits, graph.degrees, graph.to_dense()


def every_operation(rows: Tensor, grid: tuple[int, int]) -> list[Tensor]:
    labels = selfment.pseudo_label(rows, grid, tau="auto", min_confidence=0.3)
    start = (rows[..., 0] > 0).int()
    graph = selfment.affinity(rows, graph="weighted")
    return [
        *vars(labels).values(),
        *vars(selfment.joint_label(rows, grid)).values(),
        *selfment.ncut(rows, k=2),
        selfment.ipo(rows, start),
        graph.degrees,
        graph.matvec(rows[..., :2]),
        *(selfment.affinity(rows, graph=mode).paint(start).degrees for mode in GRAPHS),
    ]
