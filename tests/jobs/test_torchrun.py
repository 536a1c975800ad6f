"""Runs under torchrun, of which a process is killed and all are started again."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import mortal, processes
from helpers.heads import a_head
from selfment import PseudoLabeler, Segmenter
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.jobs.predict import find_inputs, predict_images
from selfment.models.head import HeadInfo, load_head, save_head

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]

COUNT = 16


PHOTOS = tuple(f"{index:02}.png" for index in range(COUNT))  # of the fixture photos_in


def torchrun(
    folder: Path, fault: tuple[str, int, str] | None, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Two processes, started again once; ``fault``: function, number of the call, rank."""
    words: list[object] = [*arguments, "--threads", 1]
    if fault is None:
        return processes.torchrun(folder, "-m", "selfment", *words, restarts=1)
    where, nth, rank = fault
    words = mortal.command(folder, where, nth, *words, rank=rank)
    return processes.torchrun(folder, *words, restarts=1)


def assert_whole(out: Path, alone: Path, file: str) -> None:
    """The files of an undisturbed run, and one record for each image."""
    names = {path.relative_to(alone) for path in alone.rglob("*.png")}
    assert {path.relative_to(out) for path in out.rglob("[!.]*.png")} == names
    for name in names:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    assert [path.name for path in out.glob("*.jsonl")] == [file]
    rows = [json.loads(line) for line in (out / file).read_text().splitlines()]
    assert len(rows) == len({row["image"] for row in rows}) == COUNT
    assert all(row["error"] is None for row in rows)


def counts(said: str) -> tuple[int, int]:
    """How many images the last two processes to end well made, and found done."""
    found = re.findall(r"(\d+) labelled, (\d+) already done, 0 failed", said)
    made, skipped = zip(*[tuple(map(int, pair)) for pair in found[-2:]], strict=True)
    return sum(made), sum(skipped)


FAULTS = [
    ("selfment.models.labeler:PseudoLabeler.start_batch", 3, "1"),
    ("selfment.jobs.records:Records.add", 4, "0"),
    ("selfment.jobs.records:os.replace", 3, "1"),
    ("selfment.jobs.records:Path.unlink", 1, "any"),  # in the midst of merging the records
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0].rpartition(":")[2])
def test_labels_of_a_run_whose_process_was_killed(photos_in, tmp_path, fault):
    out = tmp_path / "out"
    command = ("label", photos_in, "--out", out, "--size", 96, "--batch", 1)
    done = torchrun(tmp_path, fault, *command)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr, done.stderr
    alone = tmp_path / "alone"
    label_images(find_images([photos_in]), alone, PseudoLabeler(size=96), progress=False)
    assert_whole(out, alone, "labels.jsonl")
    made, skipped = counts(done.stderr)
    assert made + skipped == COUNT
    if fault[2] == "any":  # whoever merges has done its half
        assert skipped >= COUNT // 2


def test_predictions_of_a_run_whose_process_was_killed(photos_in, tmp_path):
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    out = tmp_path / "out"
    command = ("predict", photos_in, "--head", tmp_path / "head", "--out", out, "--size", 64)
    fault = ("selfment.models.segmenter:Segmenter.start_batch", 3, "0")
    done = torchrun(tmp_path, fault, *command, "--batch", 1, "--binary", 0.5)
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr, done.stderr
    alone = tmp_path / "alone"
    segmenter = Segmenter(tmp_path / "head", size=64)
    predict_images(find_inputs([photos_in]), alone, segmenter, binary=0.5, progress=False)
    assert_whole(out, alone, "predictions.jsonl")


def test_broken_images_do_not_end_the_other_process(photos_in, tmp_path):
    """The second process has nothing else, and is ready before the first."""
    for path in sorted(photos_in.iterdir())[1::2]:
        path.write_bytes(b"not an image")
    out = tmp_path / "out"
    command = ("label", photos_in, "--out", out, "--size", 96, "--batch", 1)
    done = torchrun(tmp_path, None, *command)
    assert done.returncode == 1
    assert len(list(out.glob("*.png"))) == COUNT // 2
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    assert sum(row["error"] is not None for row in rows) == COUNT // 2
    assert f"{COUNT // 2} labelled, 0 already done, 0 failed" in done.stderr


# The second process looks at the store so rarely that the first has gone on meanwhile.
MEETINGS = """
import os, sys, time
from pathlib import Path
from selfment.util import distributed

rank, mark = int(os.environ["RANK"]), Path(sys.argv[1])
if rank == 1:
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(10 * seconds)
plan = {"common": ["a", "b", "c"]}
for _ in range(3):
    common, items = distributed.shared(lambda: (plan, [1, 2, 3]))
    assert common == plan
    assert distributed.any_failed(sum(1 for _ in items)) is True
    assert distributed.any_failed(0) is False
if rank == 1:
    time.sleep(0.1)
    mark.touch()
assert distributed.any_failed(1 - rank) is True  # the first has failed, and waits for the second
assert mark.exists()
"""


def test_processes_meet_again_and_again(tmp_path):
    script = tmp_path / "meetings.py"
    script.write_text(MEETINGS)
    done = processes.torchrun(tmp_path, script, tmp_path / "mark")
    assert done.returncode == 0, done.stderr


def test_sigterm_ends_a_run_in_good_order(photos_in, tmp_path):
    out = tmp_path / "out"
    where = "selfment.models.labeler:PseudoLabeler.start_batch"
    arguments = ("label", photos_in, "--out", out, "--size", 96, "--batch", 1)
    command = mortal.command(tmp_path, where, 6, *arguments, what="waits")
    with processes.started([sys.executable, *command], stderr=subprocess.PIPE) as process:
        while not list(out.glob("*.png")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        err = process.communicate(timeout=processes.LIMIT)[1]
    assert process.returncode == 130
    assert err.endswith("selfment label: interrupted; what was done is kept\n")
    rows = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    masks = {path.name for path in out.iterdir() if path.suffix == ".png"}
    assert 1 <= len(masks) < COUNT
    assert {row["mask"] for row in rows if row["error"] is None} == masks
    assert not list(out.glob(".*.tmp"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and an undisturbed training on them by two processes."""
    folder = tmp_path_factory.mktemp("training")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(6):
        pixels = np.random.RandomState(index).randint(0, 255, (40, 40, 3)).astype(np.uint8)
        pixels[:20] //= 4
        Image.fromarray(pixels).save(photos / f"{index}.png")
    done = torchrun(folder, None, *training(photos, folder / "run"))
    assert done.returncode == 0, done.stderr
    return photos, folder / "run"


def training(photos: Path, out: Path) -> tuple[object, ...]:
    return ("train", photos, "--out", out, "--size", 96, "--batch", 1, "--epochs", 3)


@pytest.mark.parametrize(
    ("fault", "epochs"),
    [
        (("selfment.training.cache:write_atomically", 3, "1"), 0),  # while it labels
        (("selfment.training.folder:RunFolder.log", 5, "1"), 1),  # in the second epoch
        (("selfment.training.folder:RunFolder.save", 3, "0"), 2),  # before the last checkpoint
        (("selfment.training.run:save_head", 1, "0"), 3),  # before the head is
    ],
    ids=lambda value: value[0].rpartition(":")[2] if isinstance(value, tuple) else str(value),
)
def test_training_that_was_killed_ends_with_the_same_weights(trained, tmp_path, fault, epochs):
    photos, undisturbed = trained
    out = tmp_path / "run"
    done = torchrun(tmp_path, fault, *training(photos, out))
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr, done.stderr
    taken = 3 * (3 - epochs)
    assert f"trained on 6 images, 0 failed, {taken} steps" in done.stderr
    expected = load_head(undisturbed / "head")[0].state_dict()
    for name, value in load_head(out / "head")[0].state_dict().items():
        assert torch.equal(value, expected[name]), name
    logs = [(path / "steps.jsonl").read_text().splitlines() for path in (out, undisturbed)]
    losses = [[(row["step"], row["total"]) for row in map(json.loads, log)] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 9
