"""Labelling on a local Ray of two workers: equal masks, broken images, and kills."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import processes
from helpers.folders import ROOT
from selfment import PseudoLabeler, PseudoLabels
from selfment.images.load import find_images
from selfment.jobs.label import label_images

pytestmark = pytest.mark.slow

ray: Any = pytest.importorskip(
    "ray", reason='Ray is not installed: pip install "selfment[ray]"', exc_type=ImportError
)
pytest.importorskip("ray.data", reason="Ray Data lacks its parts: selfment[ray] has them")

SCRIPT = ROOT / "examples" / "ray_label.py"
SIZE = 384


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(count):
        stream = np.random.RandomState(index)
        pixels = stream.randint(60, 120, (60 + index % 3, 80, 3)).astype(np.uint8)
        pixels[10:40, 20 + index % 5 : 50] = stream.randint(100, 255, 3)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ray leaves a token in the home folder."""
    return {**os.environ, "HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"}


# Put before the end of the script: once so many records are there, workers wait within a block
# until the gate is open and so many of them have been there.
GATE = """
import time

_call = BlockLabeler.__call__

def _gated(self, batch):
    gate = Path({gate!r})
    (gate / f"worker-{{os.getpid()}}").touch()
    while len(list(Path({out!r}).glob("records/*.parquet"))) >= {records} and not (
        (gate / "open").exists() and len(list(gate.glob("worker-*"))) >= {workers}
    ):
        time.sleep(0.01)
    return _call(self, batch)

BlockLabeler.__call__ = _gated

"""


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts the script; ``gate``: the records and workers for which others wait."""
    with contextlib.ExitStack() as stack:

        def run(
            folder: Path, out: Path, *options: str, gate: tuple[int, int] | None = None
        ) -> subprocess.Popen[str]:
            script = SCRIPT
            if gate is not None:
                script = tmp_path / SCRIPT.name
                end = 'if __name__ == "__main__":'
                text = SCRIPT.read_text()
                assert text.count(end) == 1
                (tmp_path / "gate").mkdir()
                places = {"gate": str(tmp_path / "gate"), "out": str(out)}
                inserted = GATE.format(records=gate[0], workers=gate[1], **places)
                script.write_text(text.replace(end, inserted + end))
            command = [sys.executable, script, folder, "--out", out, "--block", "1"]
            process = processes.started(
                [*command, "--size", SIZE, *options],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            return stack.enter_context(process)

        yield run


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    err = process.communicate(timeout=processes.LIMIT)[1]
    return process.returncode, err


def wait_for_records(process: subprocess.Popen[str], out: Path, count: int) -> None:
    while len(list(out.glob("records/*.parquet"))) < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def records(out: Path) -> list[dict]:
    import pyarrow.parquet as pq

    rows = [
        row for file in out.glob("records/*.parquet") for row in pq.read_table(file).to_pylist()
    ]
    return sorted(rows, key=lambda row: row["image"])


def assert_masks(found: dict[str, bytes], folder: Path, out: Path) -> None:
    """Those of `selfment label`, to the byte."""
    labeler = PseudoLabeler(size=SIZE, device="cpu")
    label_images(find_images([folder]), out, labeler, progress=False)
    expected = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        assert found[name] == data, name


def test_ray_data_takes_a_pseudo_labeler(tmp_path, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = pictures(tmp_path / "in", 7)
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=128 << 20, log_to_driver=False
    )
    try:
        images = ray.data.read_images(str(folder), include_paths=True, mode="RGB")
        rows = images.map_batches(
            PseudoLabeler,
            fn_constructor_kwargs={"size": 96},
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=3,
        ).take_all()
    finally:
        ray.shutdown()
    assert len(rows) == 7
    labeler = PseudoLabeler(size=96)
    for row in rows:
        labels = labeler(row["path"])
        for name in (field.name for field in dataclasses.fields(PseudoLabels)):
            assert np.array_equal(row[name], getattr(labels, name).numpy()), name


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_worker_and_a_broken_image_lose_nothing(start, tmp_path):
    folder, out = pictures(tmp_path / "in", 30), tmp_path / "out"
    (folder / "broken.png").write_bytes(b"not an image")
    process = start(folder, out, gate=(3, 3))
    wait_for_records(process, out, 3)
    while len(list(tmp_path.glob("gate/worker-*"))) < 2:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    victim = int(records(out)[0]["worker"].rpartition(":")[2])
    os.kill(victim, signal.SIGKILL)
    (tmp_path / "gate/open").touch()
    code, err = finished(process)
    sentence = f"cannot read {folder}/broken.png: not an image that Pillow knows"
    assert (code, err.count(sentence)) == (1, 1), err
    assert "30 labelled, 0 already done, 1 failed" in err
    rows = records(out)
    assert len(rows) == 31
    assert [row["error"] for row in rows if row["image"].endswith("broken.png")] == [sentence]
    assert sum(row["error"] is None for row in rows) == 30
    assert len({row["worker"] for row in rows}) == 3  # another took the killed one's place
    (folder / "broken.png").unlink()
    assert_masks({p.name: p.read_bytes() for p in out.glob("masks/*.png")}, folder, tmp_path / "x")
    code, err = finished(start(folder, out))
    assert (code, err) == (0, f"0 labelled, 30 already done, 0 failed; see {out}/records\n")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_job_goes_on(start, tmp_path):
    folder, out = pictures(tmp_path / "in", 20), tmp_path / "out"
    process = start(folder, out, "--format", "parquet", gate=(2, 3))
    wait_for_records(process, out, 2)
    started = processes.below(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(map(processes.is_at_work, started)):  # they follow their driver
        time.sleep(0.02)
    there = list(out.glob("records/*.parquet"))
    assert 2 <= len(there) < 20
    there[0].write_bytes(there[0].read_bytes()[:-5])  # and a power failure
    code, err = finished(start(folder, out, "--format", "parquet"))
    assert code == 0, err
    assert f"{there[0]} cannot be read: its images are labelled again" in err
    labelled = 20 - len(there) + 1
    assert f"{labelled} labelled, {20 - labelled} already done, 0 failed" in err
    assert not (out / "masks").exists()
    assert_masks({row["mask"]: row["png"] for row in records(out)}, folder, tmp_path / "label")


def test_one_folder_is_for_one_kind_of_mask(start, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, out = pictures(tmp_path / "in", 1), tmp_path / "out"
    (out / "records").mkdir(parents=True)
    names = ("image", "mask", "settings", "error", "bytes", "mtime_ns", "time")
    row = dict(
        zip(names, (str(folder / "00.png"), "00.png", "other", None, 1, 1, 1.0), strict=True)
    )
    pq.write_table(pa.Table.from_pylist([row]), out / "records/a.parquet")
    code, err = finished(start(folder, out))
    assert code == 2
    assert err == (
        f"ray_label: `--out` must be used with the same settings: {out} has records of others\n"
    )
    masks = pictures(tmp_path / "other/masks", 1)
    code, err = finished(start(masks, tmp_path / "other"))
    assert code == 2
    assert err == f"ray_label: `--out` must not hold the inputs: got {masks}\n"
