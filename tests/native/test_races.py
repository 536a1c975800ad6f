"""The race detector of the emulation: it finds what is planted, and nothing in csrc/cuda."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest

from helpers import emulated, processes, races
from helpers.folders import TESTS

pytestmark = pytest.mark.slow

CASES = TESTS / "emulation/race_cases.py"
SOURCES = [emulated.EMULATION / name for name in ("emulation.cpp", "race.cpp", "racetest.cu")]

# What each planted kernel lacks, and what the detector says of it.
PLANTED = {
    "barrier": "shared read-after-write",
    "turn": "shared read-after-write",  # thread 0 runs ahead
    "warp": "shared read-after-write",
    "same_value": "global write-after-write",
    "release": "global read-after-write",
    "acquire": "global read-after-write",
    "strong": "global volatile-read-after-write",
    "blocks": "global read-after-write",
    "copy": "shared read of cp.async under way",
    "noncoherent": "global ld.nc of what this kernel wrote",
    "uninitialised": "shared read of uninitialised shared memory",
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if emulated.compiler() is None:
        pytest.skip("no C++ compiler: neither $CXX nor c++")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the race detector needs GCC on Linux on x86-64")
    probe = tmp_path_factory.mktemp("probe") / "probe.cu"
    probe.write_text("int main() {}\n")
    try:
        emulated.link(probe.with_suffix(""), [probe, SOURCES[0], SOURCES[1]], emulated.RACES, [])
    except RuntimeError as error:
        pytest.skip(f"the compiler cannot tell volatile accesses: {str(error).splitlines()[-1]}")
    return emulated.RACES


def found(command: list[str | Path], log: Path, **settings: str) -> list[str]:
    """The reports of a program."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SELFMENT_")}
    environment = {**kept, **settings, "SELFMENT_RACE_LOG": str(log)}
    done = processes.run(command, env=environment, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    return races.reports(log)


@pytest.fixture(scope="module")
def planted(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulated.link(tmp_path_factory.mktemp("planted") / "racetest", SOURCES, flags, [])


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_race_is_reported(name: str, planted: Path, tmp_path: Path) -> None:
    reports = found([planted, name], tmp_path / "log")
    assert any(report.startswith(PLANTED[name]) for report in reports), reports
    assert all("racetest.cu:" in report for report in reports)


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_ordered_is_not_reported(name: str, planted: Path, tmp_path: Path) -> None:
    assert found([planted, f"{name}_right"], tmp_path / "log") == []


def test_the_kernels_have_no_race(flags: list[str], tmp_path: Path) -> None:
    """A part; `.ci/cuda-proof` runs all of it."""
    module = emulated.build(tmp_path, flags)
    chosen = os.environ.get("SELFMENT_RACE_CASES", "lapack paint complements components").split()
    chosen = [] if chosen == ["all"] else chosen
    order = os.environ.get("SELFMENT_EMULATED_ORDER", "forward")
    path = os.pathsep.join([str(TESTS), *sys.path])
    reports = found(
        [sys.executable, CASES, module, *chosen],
        tmp_path / "log",
        PYTHONPATH=path,
        SELFMENT_EMULATED_ORDER=order,
    )
    assert reports == []


def test_mutants_are_found_by_their_text() -> None:
    """`.ci/cuda-proof` builds and runs them."""
    script = emulated.EMULATION / "mutants.py"
    done = processes.run([sys.executable, script, "--list"], check=True)
    kinds = {line.split(": ")[1] for line in done.stdout.splitlines()}
    assert kinds == {
        *("barrier", "barrier of a team", "barrier of a warp", "wait", "volatile"),
        *("buffer turn", "end of a group", "release", "acquire"),
    }
    assert "operand_product.cuh" not in done.stdout  # only a device compiles its instructions
