"""What a batch launches on a CUDA device, counted without one: by benchmarks/cuda_plan.py."""

from __future__ import annotations

import importlib
import shutil
import sys
from typing import Any

import pytest
import torch

import selfment
from helpers import emulated
from helpers.folders import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or emulated.compiler() is None or shutil.which("nm") is None,
        reason="needs Linux, a C++ compiler ($CXX or c++) and nm",
    ),
]


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """132 multiprocessors with 227 KiB of shared memory, each of which holds one block."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        plan = importlib.import_module("cuda_plan")
    finally:
        sys.path.remove(folder)
    return plan.Device(tmp_path_factory.mktemp("plan"), 132, 227 << 10, lambda *kernel: 1)


def launched(device: Any, batch: int, n: int, d: int, **options: Any) -> Any:
    features = torch.empty(batch, n, d, dtype=torch.bfloat16)
    return device.plan(lambda: selfment.pseudo_label(features, (1, n), **options))


@pytest.mark.parametrize("graph", ["binary", "weighted"])
def test_a_batch_launches_as_much_as_an_image(device: Any, graph: str) -> None:
    one, many = (launched(device, batch, 900, 384, graph=graph) for batch in (1, 32))
    assert [x.kernel for x in many.launches] == [x.kernel for x in one.launches]
    assert many.operators == one.operators
    kernels = [x.kernel for x in many.launches if x.kernel != "memset"]
    assert len(set(kernels)) == len(kernels) <= 10
    assert many.total <= 40


def test_each_image_has_blocks_of_its_own(device: Any) -> None:
    plan = launched(device, 32, 2304, 64)
    for launch in plan.launches:
        if launch.kernel.startswith(("solve", "optimize")):
            assert launch.blocks % 32 == 0
            assert 100 < launch.blocks <= 132
        assert launch.shared <= 227 << 10


def test_scratch_of_a_large_batch_cuts_it(device: Any) -> None:
    """A batch whose memory would exceed the limit is launched in parts."""
    parts = launched(device, 40, 25600, 8)
    joins = [x for x in parts.launches if x.kernel.startswith("join")]
    assert 1 < len(joins) < 40


@pytest.mark.parametrize("graph", ["binary", "weighted"])
@pytest.mark.parametrize("orient", ["seed", "corners"])
def test_a_batch_launches_little(device: Any, graph: str, orient: str) -> None:
    assert launched(device, 32, 2304, 384, graph=graph, orient=orient).total <= 15


def test_automatic_thresholds_launch_little(device: Any) -> None:
    rows = torch.randn(32, 2304, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    plan = device.plan(lambda: selfment.pseudo_label(rows, (48, 48), tau="auto"))
    assert plan.total <= 40
