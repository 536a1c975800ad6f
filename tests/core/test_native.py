"""The native boundary: interruption, the GIL, memory, and what is said when things are missing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import selfment
from helpers import processes
from helpers.callers import calling, interrupt_within
from selfment.core import native as _native
from selfment.core import options as _params
from selfment.core.graph import build
from selfment.core.options import CutOptions


@pytest.fixture
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def long_rows() -> Tensor:
    """Features whose graph takes seconds on one thread."""
    return torch.rand(1, 25_600, 1024, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ctrl_c_stops_a_long_operation() -> None:
    rows = long_rows()
    with pytest.raises(KeyboardInterrupt):
        interrupt_within(lambda _: build(rows, CutOptions()))
    # And the module is as good as before.
    assert selfment.affinity(torch.eye(3)).degrees.sum() == pytest.approx(3, abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_other_threads_run_meanwhile() -> None:
    """This thread gets many turns within one call of another; with the GIL held, one or two."""
    rows = long_rows()[:, :6400].contiguous()
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1
        build(rows, CutOptions())

    with calling(work, 1):
        seen = turns = 0
        while turns < 5:
            time.sleep(0.001)  # who else waits for the GIL gets it
            seen, turns = calls, turns + 1 if calls == seen else 0
            assert calls < 50, "in none of 50 calls had this thread five turns"


def test_the_rules_for_ties_are_the_same_on_both_sides() -> None:
    assert _native.cpu().PEAK_TIE == _params.SEED_TIE
    assert _native.cpu().IPO_TIE == _params.IPO_TIE


@pytest.mark.slow
def test_info_names_versions_and_states() -> None:
    info = _native.info()
    assert info["selfment"] == selfment.__version__
    assert info["instruction set"].split()[0] in _native.ISAS
    assert info["threads"] == str(torch.get_num_threads())
    obstacles = _native.cuda_obstacles()
    assert info["CUDA kernels"].startswith("no: " if obstacles else "yes: torch sees")
    assert all(reason in info["CUDA kernels"] for reason in obstacles)


def test_every_obstacle_to_cuda_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "selfment._cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _native.cuda.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"CUDA module cannot be loaded.*SELFMENT_CUDA=1"):
            _native.cuda()
        state = _native.cuda_state()
        assert re.fullmatch("no: selfment's CUDA module cannot.*; torch sees no CUDA device", state)
    finally:
        _native.cuda.cache_clear()


@pytest.mark.slow
def test_missing_module_says_why_and_what_to_do() -> None:
    script = """
import sys
sys.modules["selfment._cpu"] = None
import torch, selfment
selfment.affinity(torch.eye(3))
"""
    run = processes.run([sys.executable, "-c", script])
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert "selfment's CPU module cannot be loaded" in last
    assert "pip install ." in last


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "import torch, selfment; selfment.affinity(torch.eye(3))",
        "import runpy; sys.argv[1:] = ['label', '--samples', '--out', 'labels']; "
        "runpy.run_module('selfment', run_name='__main__', alter_sys=True)",
    ],
    ids=["import", "-m"],
)
def test_a_source_tree_that_hides_the_installed_package(tmp_path: Path, statement: str) -> None:
    """As a clone does right after `pip install .`, which builds nothing in it."""
    clone, installed = tmp_path / "clone", tmp_path / "installed"
    package, module = Path(selfment.__file__).parent, Path(str(_native.cpu().__file__))
    without = shutil.ignore_patterns("__pycache__", module.name)
    shutil.copytree(package, clone / "selfment", ignore=without)
    (installed / "selfment").mkdir(parents=True)
    shutil.copy(module, installed / "selfment")
    # An editable installation, which may be there, gives the module to whoever asks for it.
    script = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]"
    done = processes.run(
        [sys.executable, "-c", f"{script}; {statement}"],
        cwd=clone,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(
        f": the source tree in {clone}, where it is not built, hides the package that is installed "
        f"in {installed}; start `selfment`, or `torchrun --no-python selfment`, or Python in "
        "another folder"
    )


def peak_growth(shape: str) -> float:
    """MiB that labelling features of this shape takes at its peak, beyond the features."""
    script = f"""
import re, torch, selfment
from pathlib import Path
torch.set_num_threads(2)
selfment.pseudo_label(torch.rand(100, 8), (10, 10))
features = torch.randn({shape})
h = int(len(features) ** 0.5)
features[: len(features) // 3] += 1
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
def peak():
    return int(re.search(r"VmHWM:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
selfment.pseudo_label(features, (h, h))
print(peak() - before)
"""
    return float(processes.run([sys.executable, "-c", script], check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
@pytest.mark.parametrize("shape", ["6400, 384", "6400, 2048", "6400, 4096, dtype=torch.bfloat16"])
def test_memory_beyond_the_features(shape: str) -> None:
    """A dense float32 matrix of 6400 patches would be 156 MiB."""
    assert peak_growth(shape) < 64
