"""On a device alone: streams, graphs, compilation, other libraries, several devices, memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import selfment
from helpers import processes
from helpers.cases import (
    Case,
    generator,
    noise,
    smooth,
)
from helpers.cuda import (
    GRAPHS,
    assert_same,
    batch_of,
    every_operation,
    need_cuda,
)
from selfment import PseudoLabels

pytestmark = pytest.mark.slow


BUSY = 200_000_000  # cycles, a tenth of a second


@pytest.fixture(scope="module")
def problem() -> Case:
    return batch_of(3, 20, 21, 48), (20, 21)


@pytest.mark.cuda
def test_a_hundred_thousand_patches(device: torch.device) -> None:
    rows = smooth(250, 400, 32).to(device)
    graph = selfment.affinity(rows)
    values, vectors = selfment.ncut(graph)
    x, D = vectors[:, 0], graph.degrees
    error = (D * x - graph.matvec(x) - values * D * x) / D.sqrt()
    assert error.norm() < 1e-9
    assert abs((D * x * x).sum() - 1) < 1e-9
    some = torch.randint(len(rows), (2000,), generator=generator(0), device="cpu").to(device)
    f = torch.nn.functional.normalize(rows[some].double(), dim=1).float().double()
    near = ((f @ f.T) - 0.2).abs() < 1e-6
    one = torch.zeros(len(rows), 2000, dtype=torch.float64, device=device)
    one[some, torch.arange(2000, device=device)] = 1
    joined = graph.matvec(one)[some] > 0.5
    assert ((joined == (f @ f.T > 0.2)) | near).all()


@pytest.mark.cuda
def test_queues_on_the_current_stream_and_does_not_wait(
    device: torch.device, problem: Case
) -> None:
    rows, grid = problem[0].to(device), problem[1]
    expected = every_operation(rows, grid)
    stream = torch.cuda.Stream()
    late = torch.full_like(rows, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        every_operation(rows, grid)  # new memory may make the first call on a stream wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(BUSY)
            late.copy_(rows)
            found = every_operation(late, grid)
            done = torch.cuda.Event()
            done.record()
            assert not done.query(), "a call has waited for the device"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.device == device
        assert torch.equal(ours, wanted)


@pytest.mark.cuda
def test_replays_as_a_cuda_graph(device: torch.device, problem: Case) -> None:
    rows, grid = problem[0].to(device), problem[1]
    static = rows.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        every_operation(static, grid)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = every_operation(static, grid)
    for other in (rows.flip(0), rows + 0.05, rows):
        static.copy_(other)
        captured.replay()
        for ours, wanted in zip(found, every_operation(other, grid), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.cuda
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(device: torch.device, problem: Case, dynamic: bool) -> None:
    torch.compiler.reset()
    rows, grid = problem[0].to(device), problem[1]

    def label(rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(vars(selfment.pseudo_label(rows * 2, grid)).values())

    compiled: Any = torch.compile(label, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert all(map(torch.equal, compiled(rows), label(rows)))


@pytest.mark.cuda
def test_operators_are_what_they_claim(device: torch.device) -> None:
    rows = batch_of(2, 6, 9, 20).to(device)
    labels = rows[..., 0] > 0
    graph = (0.2, 1e-5, "binary")
    opcheck(torch.ops.selfment.pseudo_label.default, (rows, 6, 9, *graph, "seed", 20, 10))
    opcheck(torch.ops.selfment.ncut.default, (rows, 2, *graph, "lapack"))
    opcheck(torch.ops.selfment.ipo.default, (rows, labels, 20, 10))


@pytest.mark.cuda
def test_cupy_in_cupy_out_on_its_stream(device: torch.device, problem: Case) -> None:
    cupy = pytest.importorskip("cupy")
    rows, grid = problem[0].to(device), problem[1]
    expected = every_operation(rows, grid)
    torch.cuda.synchronize()
    given = cupy.from_dlpack(rows)

    def every_cupy_operation(rows: Any) -> list[Any]:
        graph = selfment.affinity(rows, graph="weighted")
        start = (rows[..., 0] > 0).astype(cupy.int32)
        return [
            *vars(selfment.pseudo_label(rows, grid)).values(),
            *selfment.ncut(rows, k=2),
            selfment.ipo(rows, start),
            graph.degrees,
            graph.matvec(rows[..., :2]),
            graph.to_dense(),
        ]

    with cupy.cuda.Stream(non_blocking=True) as stream:
        late = cupy.full_like(given, cupy.nan)
        every_cupy_operation(given)  # new memory may make the first call on a stream wait
        stream.synchronize()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr, device)):
            torch.cuda._sleep(BUSY)
        late[...] = given
        *found, dense = every_cupy_operation(late)
        assert not stream.done, "a call has waited for the device"
        stream.synchronize()
    assert isinstance(dense, cupy.ndarray)
    for ours, wanted in zip(found, expected, strict=True):
        assert isinstance(ours, cupy.ndarray)
        assert ours.device.id == device.index
        assert torch.equal(torch.from_dlpack(ours), wanted)


@pytest.mark.cuda
def test_devices_must_agree(device: torch.device) -> None:
    rows = noise(4, 5, 8)
    with pytest.raises(
        ValueError, match=r"`labels` must be on the device of `features`, cuda:.*cpu"
    ):
        selfment.ipo(rows.to(device), rows[:, 0] > 0)
    with pytest.raises(ValueError, match="`x` must be on the device of the graph, cpu: got cuda"):
        selfment.affinity(rows).matvec(rows[:, 0].to(device))


@pytest.fixture
def devices() -> Iterator[tuple[torch.device, torch.device]]:
    """The current device and another one."""
    need_cuda()
    if torch.cuda.device_count() < 2:
        pytest.skip("torch sees one CUDA device; this needs two")
    current = torch.cuda.current_device()
    yield torch.device("cuda", current), torch.device("cuda", int(current == 0))
    torch.cuda.set_device(current)


@pytest.mark.cuda
def test_the_current_device_stays_for_torch(
    devices: tuple[torch.device, torch.device], problem: Case
) -> None:
    """The native module's runtime is not torch's; what one makes current, the other one sees."""
    rows, grid = problem
    expected = selfment.pseudo_label(rows.to(devices[0]), grid)
    # Either way round, as the first of them need not have been used before.
    for current, other in (devices, devices[::-1]):
        torch.cuda.set_device(current)
        label = selfment.pseudo_label(rows.to(other), grid)
        values, _ = selfment.ncut(rows.to(other), k=2)
        assert torch.cuda.current_device() == current.index
        assert torch.empty(1, device="cuda").device == current
        assert label.mask.device == values.device == other
        for field in fields(PseudoLabels):
            ours, wanted = getattr(label, field.name).cpu(), getattr(expected, field.name).cpu()
            assert torch.equal(ours, wanted), field.name
        with pytest.raises(ValueError, match="must be on the device of"):
            selfment.ipo(rows.to(other), torch.zeros(len(rows), device=current) > 0)
        assert torch.cuda.current_device() == current.index
    # A stream of the other device, which was current in a block around the call.
    current, other = devices
    torch.cuda.set_device(current)
    with torch.cuda.device(other), torch.cuda.stream(torch.cuda.Stream(other)):
        label = selfment.pseudo_label(rows.to(other), grid)
        assert torch.cuda.current_device() == other.index
        torch.cuda.synchronize(other)
    assert torch.cuda.current_device() == current.index
    assert torch.equal(label.mask.cpu(), expected.mask.cpu())


@pytest.mark.cuda
def test_a_device_that_nobody_uses_is_left_alone(
    devices: tuple[torch.device, torch.device],
) -> None:
    """A process that labels on the second device takes no memory on the first one."""
    script = """
import torch, selfment
rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0)).to("cuda:1")
selfment.pseudo_label(rows, (6, 10))
torch.cuda.synchronize(1)
print(torch.cuda.current_device(), *map(torch._C._cuda_hasPrimaryContext, (0, 1)))
"""
    done = processes.run([sys.executable, "-c", script], check=True)
    assert done.stdout.split() == ["0", "False", "True"]


@pytest.mark.cuda
def test_labels_other_than_0_count_as_1(device: torch.device) -> None:
    rows = smooth(6, 8, 12).to(device)
    start = torch.arange(48, device=device) % 3
    expected = selfment.ipo(rows, (start != 0).long())
    assert torch.equal(selfment.ipo(rows, start), expected)


@pytest.mark.cuda
def test_labeler_labels_where_the_backbone_runs(device: torch.device) -> None:
    labeler = selfment.PseudoLabeler(size=160, device=device)
    batch = torch.rand(2, 3, 160, 160, generator=generator(0))
    labels = labeler.label_batch(batch)
    rows = labeler.backbone(batch)
    assert rows.device == device
    assert all(value.device.type == "cpu" for value in vars(labels).values())
    assert_same(labels, selfment.pseudo_label(rows, (10, 10), orient="corners"))
    batch[1, 0, 80, 80] = float("nan")
    with pytest.raises(ValueError, match=r"`features` must be finite.*in image 1"):
        labeler.label_batch(batch)


@pytest.mark.cuda
def test_gives_its_memory_back(device: torch.device, problem: Case) -> None:
    rows, grid = problem[0].to(device), problem[1]
    selfment.pseudo_label(rows, grid)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for graph in GRAPHS:
        selfment.pseudo_label(rows, grid, graph=graph)
    assert torch.cuda.memory_allocated() == before
