"""Runs over shards by several processes: torchrun and Ray, of which one is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import mortal, processes
from helpers import shard_runs as shards

pytest.importorskip("pyarrow", reason="no PyArrow: pip install 'selfment[shards]'")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system"),
]

FAULT = "selfment.models.labeler:PseudoLabeler.start_batch"
SMALL_PARTS = "import selfment.shards.worker; selfment.shards.worker.PART_ROWS = 2"
BROKEN = 5


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    """A command over six shards of three images each, of which one is broken; without --out."""
    files = shards.photos(18, broken=[BROKEN])
    inputs = shards.write_shards(f"{tmp_path}/in", "tar", files, 3)
    return ("label", inputs, "--size", 96, "--batch", 1, "--device", "cpu", "--threads", 1)


@pytest.fixture
def undisturbed(tmp_path: Path, command: tuple[object, ...]) -> dict[str, bytes]:
    """The results of one process."""
    out = f"{tmp_path}/undisturbed"
    done = run(mortal.alone(*command, "--out", out))
    assert done.returncode == 1, done.stderr
    return shards.sealed(out)


def run(words: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    limit = processes.LIMIT
    return subprocess.run(words, capture_output=True, text=True, timeout=limit, env=variables)


def test_torchrun_starts_again_and_goes_on(tmp_path, command, undisturbed):
    out = f"{tmp_path}/out"
    # The shards go to whoever is ready, so that either process may be the first to make five.
    words = mortal.command(tmp_path, FAULT, 5, *command, "--out", out, before=SMALL_PARTS)
    done = processes.torchrun(tmp_path, *words, restarts=1)
    assert "exitcode: -9" in done.stderr, done.stderr
    assert done.returncode == 1  # an image is broken
    assert f"00001.tar: 00000{BROKEN}.png: not an image that Pillow knows" in done.stderr
    assert shards.sealed(out) == undisturbed
    again = processes.torchrun(tmp_path, "-m", "selfment", *command, "--out", out)
    counts = re.findall(r"(\d+) labelled, (\d+) already done, (\d+) failed", again.stderr)
    assert len(counts) == 2, again.stderr
    sums = [sum(map(int, each)) for each in zip(*counts, strict=True)]
    assert sums == [0, 17, 1], again.stderr


def test_a_worker_of_ray_is_killed(tmp_path, command, undisturbed):
    pytest.importorskip(
        "ray", reason='Ray is not installed: pip install "selfment[ray]"', exc_type=ImportError
    )
    (tmp_path / "modules").mkdir()
    # The first worker that comes to its fifth image dies.
    (tmp_path / "modules/mortal_net.py").write_text(_NET.format(mark=str(tmp_path / "dead")))
    ray = ("--engine", "ray", "--workers", 2, "--backbone", "mortal_net:net")
    environment = {
        "HOME": str(tmp_path / "home"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    out, alone = f"{tmp_path}/out", f"{tmp_path}/alone"
    done = run(mortal.alone(*command, "--out", out, *ray), **environment)
    assert done.returncode == 1, done.stderr
    assert (tmp_path / "dead").exists()
    assert "a worker was killed and is started again" in done.stderr
    assert done.stderr.count(f"00000{BROKEN}.png: not an image that Pillow knows") == 1
    assert "17 labelled, 0 already done, 1 failed" in done.stderr
    here = run(mortal.alone(*command, "--out", alone, *ray[-2:]), **environment)
    assert here.returncode == 1, here.stderr
    assert shards.sealed(out) == shards.sealed(alone)
    again = run(mortal.alone(*command, "--out", out, *ray[-2:]), **environment)
    assert "0 labelled, 17 already done, 1 failed" in again.stderr, again.stderr


_NET = """
import contextlib, os, signal
import torch

calls = 0

class Net(torch.nn.Module):
    patch_size = 8
    pretrained_cfg = {{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}}

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 16, 8, 8)

    def forward(self, batch):
        global calls
        calls += 1
        if calls == 5:
            with contextlib.suppress(FileExistsError):
                open({mark!r}, "x").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.conv(batch)

def net():
    torch.manual_seed(0)
    return Net()
"""
