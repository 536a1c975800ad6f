"""The runner: what waits for what, and how much of a stream of images is in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tqdm import tqdm

from helpers import cuda, vits
from selfment import PseudoLabeler
from selfment.images.load import load_image, sample_images
from selfment.jobs.runner import Runner
from selfment.jobs.task import Task


class Spec:
    """Results are the first value of each image; the second batch fails if ``fails`` says where."""

    batch_size = 2

    def __init__(self, ahead: int, fails: str = "") -> None:
        self.batches_ahead = ahead
        self.log: list[str] = []
        self._fails = fails

    def prepare(self, task: Task) -> None:
        assert task.data is not None
        task.pixels = torch.full((3, 1, 1), float(task.data[0]))

    def start(self, batch: torch.Tensor) -> Any:
        values = batch[:, 0, 0, 0].int().tolist()
        self.log.append(f"start {values}")
        if self._fails == "start" and 3 in values:
            raise RuntimeError("a start fails")

        def wait() -> list[int]:
            self.log.append(f"wait {values}")
            if self._fails == "wait" and 3 in values:
                raise RuntimeError("a wait fails")
            return values

        return wait

    def draw(self, task: Task, result: int) -> Any:
        assert task.bytes == 1
        return {}, {"value": result}


class Sink:
    """Remembers what was done and what failed."""

    def __init__(self) -> None:
        self.started = 0
        self.done: dict[str, int] = {}
        self.failed: list[str] = []

    def start(self, task: Task) -> None:
        self.started += 1

    def write(self, task: Task, contents: Any) -> dict[str, Any]:
        return {}

    def finish(self, task: Task, fields: dict[str, Any]) -> None:
        self.done[task.image] = fields["value"]

    def fail(self, task: Task, error: Exception) -> str:
        self.failed.append(task.image)
        return str(error)


def run(spec: Spec, tasks: Any) -> Sink:
    sink = Sink()
    with tqdm(disable=True) as bar:
        Runner(spec, sink, bar).run(tasks)
    return sink


def tasks(count: int) -> list[Task]:
    return [Task(str(index), f"shard: {index}", data=bytes([index])) for index in range(count)]


def test_on_a_cpu_each_batch_is_waited_for():
    spec = Spec(ahead=0)
    assert run(spec, tasks(5)).done == {str(index): index for index in range(5)}
    batches = ["[0, 1]", "[2, 3]", "[4]"]
    assert spec.log == [f"{what} {batch}" for batch in batches for what in ("start", "wait")]


def test_a_device_gets_the_next_batch_before_the_last_is_waited_for():
    spec = Spec(ahead=1)
    assert run(spec, tasks(5)).done == {str(index): index for index in range(5)}
    assert spec.log == [
        *("start [0, 1]", "start [2, 3]", "wait [0, 1]"),
        *("start [4]", "wait [2, 3]", "wait [4]"),
    ]


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("where", ["start", "wait"])
def test_a_failed_batch_costs_the_image_that_failed(ahead, where, capsys):
    sink = run(Spec(ahead, where), tasks(6))
    assert sink.failed == ["3"]
    assert sink.done == {name: int(name) for name in "01245"}
    assert capsys.readouterr().err == f"a {where} fails\n"


def test_a_stream_is_read_no_further_than_it_is_needed():
    taken = finished = most = 0

    def stream() -> Any:
        nonlocal taken, most
        for task in tasks(60):
            taken += 1
            most = max(most, taken - finished)
            yield task

    class Counting(Sink):
        def finish(self, task: Task, fields: dict[str, Any]) -> None:
            nonlocal finished
            finished += 1

    spec = Spec(ahead=1)
    with tqdm(disable=True) as bar:
        Runner(spec, Counting(), bar).run(stream())
    assert finished == 60
    assert most <= 8 * spec.batch_size


@pytest.mark.cuda
def test_nothing_waits_when_a_batch_is_started(tmp_path):
    cuda.need_cuda()
    name = "vit_tiny_patch16_224"
    weights = vits.save(vits.random_state(name), tmp_path / "weights.pt")
    labeler = PseudoLabeler(name, size=160, weights=weights, device="cuda")
    pictures = [load_image(entry.path)[0] for entry in sample_images()]
    batch = torch.stack([labeler.preprocess(picture) for picture in pictures])
    expected = labeler.label_batch(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        wait = labeler.start_batch(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(wait().mask, expected.mask)
