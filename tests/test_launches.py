"""Kernels and fills that a batch queues on a CUDA device: few, and no more for a larger batch."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cases import smooth
from selfment import _ops
from selfment.pseudo_labels import _pseudo_label_impl

#: Views that do not say so; and what only looks whether vectors on the CPU have converged.
SILENT = ("_unsafe_view", "max", "_local_scalar_dense")


class Kernels(TorchDispatchMode):
    """Collects the operations of torch that run a kernel, which views and allocations do not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not (func.is_view or name in SILENT or name.startswith(("empty", "new_empty"))):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def launches(emulated: ModuleType, patch: pytest.MonkeyPatch, batch: int, **options: Any) -> int:
    """Those of the native module and of torch, for a batch of a size."""
    count = ctypes.CDLL(str(emulated.__file__)).selfment_launches
    count.restype = ctypes.c_int64
    rows = torch.stack([smooth(5, 7, 16, seed=seed) for seed in range(batch)])
    settings: dict[str, Any] = {"graph": "binary", "orient": "seed", "tau": 0.2, **options}
    with patch.context() as inner, Kernels() as kernels:
        inner.setattr(_ops, "_twin", lambda device: _ops._Cuda(emulated, device, 0, 0))
        before = count()
        labels = _pseudo_label_impl(
            rows, 5, 7, **settings, eps=1e-5, ipo_iters=20, ipo_min_count=10, min_confidence=0.25
        )
        native = count() - before
    assert len(labels[0]) == batch
    assert native > 5, "the native module must be the emulated one"
    return int(native) + len(kernels.names)


@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize(("tau", "most"), [(0.2, 15), (None, 40)], ids=["fixed", "auto"])
def test_a_batch_takes_few_launches(
    emulated: ModuleType, monkeypatch: pytest.MonkeyPatch, tau: float | None, most: int, graph: str
) -> None:
    counts = [
        launches(emulated, monkeypatch, batch, tau=tau, graph=graph, orient=orient)
        for batch in (1, 6)
        for orient in ("seed", "corners")
    ]
    assert len(set(counts)) == 1, "neither the batch nor the corner rule may matter"
    assert counts[0] <= most, counts
