"""`--engine ray` on a local Ray of two workers: equal results, kills, and interrupts."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import processes, runs
from helpers.pictures import pictures
from selfment import PseudoLabeler, PseudoLabels
from selfment.images.load import ImageEntry, find_images
from selfment.jobs.label import LabelSummary, label_images
from selfment.jobs.report import report_labels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]

ray: Any = pytest.importorskip(
    "ray", reason='Ray is not installed: pip install "selfment[ray]"', exc_type=ImportError
)

COUNT = 12
# A backbone that lets two images of each process pass, and waits with the third until the gate is
# open. Workers can be seen at the gate by their numbers.
BACKBONE = """
import os, time
from pathlib import Path
import torch

GATE = Path(os.environ["GATE"])
passed = 0

class Net(torch.nn.Module):
    patch_size, embed_dim = 8, 16
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 8, 8)

    def forward(self, batch):
        global passed
        while passed >= 2 and not (GATE / "open").exists():
            (GATE / f"worker-{os.getpid()}").touch()
            time.sleep(0.01)
        passed += 1
        return self.conv(batch)

def net():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    names = [f"{index:02}.png" for index in range(COUNT)]
    return pictures(tmp_path / "photos", *names, size=(80, 60))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray leaves a token in the home folder; workers wait at the gate."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/gated.py").write_text(BACKBONE)
    (tmp_path / "gate").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "gated", raising=False)
    for name, value in {
        "HOME": tmp_path / "home",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "GATE": tmp_path / "gate",
    }.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def start(photos: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `selfment label --engine ray` with the gated backbone."""
    with contextlib.ExitStack() as stack:

        def run(*options: object) -> subprocess.Popen[str]:
            label = ["label", photos, "--out", tmp_path / "out", "--size", 96, "--batch", 1]
            words = [*label, "--backbone", "gated:net", "--engine", "ray", *options]
            command = [sys.executable, "-m", "selfment", *words]
            return stack.enter_context(
                processes.started(command, cwd=tmp_path, stderr=subprocess.PIPE)
            )

        yield run


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    err = process.communicate(timeout=processes.LIMIT)[1]
    return process.returncode, err


def wait_for(
    process: subprocess.Popen[str], count: int, files: Callable[[], Iterable[Path]]
) -> list[Path]:
    """Waits until there are so many files, and returns them; the process must not end before."""
    while len(found := list(files())) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return found


def wait_for_workers(process: subprocess.Popen[str], tmp_path: Path, count: int) -> list[int]:
    """Waits until so many have come to the gate, and returns their numbers."""
    there = wait_for(process, count, lambda: tmp_path.glob("gate/worker-*"))
    return [int(path.name.rpartition("-")[2]) for path in there]


def wait_for_masks(process: subprocess.Popen[str], tmp_path: Path) -> None:
    """Waits until both workers are at the gate, and what they made before has been written."""
    wait_for_workers(process, tmp_path, 2)
    wait_for(process, 4, lambda: tmp_path.glob("out/*.png"))


def results(out: Path) -> dict[str, Any]:
    """What is in the folder, without the temporary files that a killed process may leave."""
    return {name: item for name, item in runs.results(out).items() if not name.endswith(".tmp")}


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def label(
    images: list[ImageEntry], out: Path, shard: tuple[int, int] = (0, 1), **options: Any
) -> LabelSummary:
    """Labels with the gated backbone, in this process."""
    Path(os.environ["GATE"], "open").touch()
    labeler = PseudoLabeler("gated:net", size=96, batch_size=1, device="cpu")
    return label_images(images, out, labeler, progress=False, shard=shard, **options)


def test_a_killed_worker_and_a_broken_image_lose_nothing(start, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"not an image")
    page = tmp_path / "page.html"
    words = ["--overlay", "--format", "png,yolo,coco,fiedler", "--report", page]
    process = start(*words)
    victim = wait_for_workers(process, tmp_path, 2)[0]
    os.kill(victim, signal.SIGKILL)
    assert len(wait_for_workers(process, tmp_path, 3)) == 3  # another has taken its place
    (tmp_path / "gate/open").touch()
    code, err = finished(process)
    sentence = f"cannot read {photos}/broken.png: not an image that Pillow knows"
    assert (code, err.count(sentence)) == (1, 1), err
    assert err.count("a worker was killed and is started again") == 1
    assert f"1 failed; see {tmp_path}/out/labels.jsonl" in err
    assert f"the labels of {COUNT + 1} images are in {page}" in err
    formats = ("png", "yolo", "coco", "fiedler")
    label(find_images([photos]), tmp_path / "alone", overlays=True, formats=formats)
    assert results(tmp_path / "out") == results(tmp_path / "alone")
    report_labels(tmp_path / "out", tmp_path / "later.html", progress=False)
    assert page.read_bytes() == (tmp_path / "later.html").read_bytes()


def test_a_killed_job_is_continued_by_any_engine(start, photos, tmp_path):
    """By one process, then on Ray, then by two ranks of torchrun."""
    out, images = tmp_path / "out", find_images([photos])
    assert label(images[:3], out).labelled == 3
    (tmp_path / "gate/open").unlink()
    process = start()
    wait_for_masks(process, tmp_path)
    started = processes.below(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(is_locked, out.glob("labels*.jsonl"))):  # the workers follow their driver
        time.sleep(0.02)
    processes.kill(started)  # Ray's agents would follow in a minute
    assert 4 <= len(list(out.glob("*.png"))) < COUNT
    ranks = [label(images, out, (rank, 2)) for rank in range(2)]
    total = sum(ranks, LabelSummary())
    assert total.labelled + total.skipped == COUNT
    assert total.skipped >= 3
    label(images, tmp_path / "alone")
    assert results(out) == results(tmp_path / "alone")


def test_sigterm_ends_a_job_in_good_order(start, tmp_path):
    process = start()
    wait_for_masks(process, tmp_path)
    process.terminate()
    code, err = finished(process)
    assert code == 130, err
    assert err.endswith("selfment label: interrupted; what was done is kept\n")
    found = results(tmp_path / "out")
    rows = found.pop("labels.jsonl")
    assert 4 <= len(found) < COUNT
    assert {row["mask"] for row in rows if row["error"] is None} == found.keys()


def test_ray_data_takes_a_pseudo_labeler(tmp_path, photos):
    """Paths, the samples of tar files, and a table with a column of files."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from webdataset import TarWriter

    files = sorted(photos.iterdir())[:3]
    column = pa.array([path.read_bytes() for path in files], pa.binary())
    pq.write_table(pa.table({"image": column}), tmp_path / "images.parquet")
    with TarWriter(str(tmp_path / "images.tar")) as writer:
        for path in files:
            buffer = io.BytesIO()
            Image.open(path).save(buffer, "PNG")
            writer.write({"__key__": path.stem, "png": buffer.getvalue()})

    def label(data: Any) -> list[dict[str, Any]]:
        return data.map_batches(
            PseudoLabeler,
            fn_constructor_kwargs={"size": 96},
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=2,
        ).take_all()

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=128 << 20,
        log_to_driver=False,
    )
    try:
        paths = label(ray.data.from_items([{"path": str(path)} for path in files]))
        read = label(ray.data.read_images(list(map(str, files)), mode="RGB"))
        table = label(ray.data.read_parquet(str(tmp_path / "images.parquet")))
        samples = ray.data.read_webdataset(str(tmp_path / "images.tar"), decoder=None)
        tar = label(samples.rename_columns({"png": "image"}))
    finally:
        ray.shutdown()
    labeler = PseudoLabeler(size=96)
    for rows in (paths, read, table, tar):
        assert len(rows) == 3
    for index, path in enumerate(files):
        labels = labeler(path)
        for name in (field.name for field in dataclasses.fields(PseudoLabels)):
            expected = getattr(labels, name).numpy()
            for rows in (paths, table, tar):
                assert np.array_equal(rows[index][name], expected), name
