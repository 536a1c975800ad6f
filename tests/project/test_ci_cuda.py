"""`.ci/cuda` with fake programs: what it runs, what it keeps, and what it reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import processes
from helpers.folders import ROOT

SCRIPT = ROOT / ".ci/cuda"
STEPS = ("build", "tests", "speed-2304-4096", "racecheck", "memcheck", "profile-900-384", "ncu")

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason=f"there is no {SCRIPT}")

# Says what device there is; else notes its arguments, and fails where a word of $FAIL is among them
# or waits for its end where one of $HANG is.
STUB = """#!/bin/sh
if [ "$1" = -c ]; then echo "$PROBE"; exit 0; fi
if [ "$1" = --help ]; then echo "  --kernel-name arg"; exit 0; fi
echo "$0 $*" >>"$CALLS"
echo "output of $0 with $PYTHONPATH"
echo "$OUTCOME"
for word in $FAIL; do case "$*" in *"$word"*) echo "no $word today"; exit 7 ;; esac; done
for word in $HANG; do case "$*" in *"$word"*) exec sleep 1000 ;; esac; done
"""
PROBE = {"device": "NVIDIA Pretence", "compute capability": "9.0", "torch": "2.99"}


class Machine:
    """A machine that appears to have a device."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.out, self.log = folder / "bin", folder / "out", folder / "calls"
        self.bin.mkdir()
        for name in ("python", "compute-sanitizer", "ncu"):
            self.add(name)

    def add(self, name: str) -> None:
        (self.bin / name).write_text(STUB)
        (self.bin / name).chmod(0o755)

    def call(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHON": str(self.bin / "python"), "CALLS": str(self.log)}
        environment |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "PROBE": json.dumps(PROBE)}
        command = [sys.executable, SCRIPT, self.out, *options]
        return processes.run(
            command, env=environment | {"FAIL": "", "HANG": "", "OUTCOME": "9 passed"} | variables
        )

    def calls(self) -> list[str]:
        """Returns the commands since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def report(self) -> str:
        return (self.out / "report.md").read_text()

    def result(self, step: str) -> str:
        row = next(line for line in self.report().splitlines() if line.startswith(f"| {step} |"))
        return row.split("|")[2].strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = processes.run([sys.executable, SCRIPT, tmp_path / "out"], env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("nothing was run: a CUDA device that torch sees is needed, and t")
    assert done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_everything_runs_once_and_is_reported(machine: Machine) -> None:
    done = machine.call()
    assert done.returncode == 0, done.stdout + done.stderr
    calls = machine.calls()
    assert "pip install" in calls[0]
    assert "-m cuda" in calls[1]
    assert "tests/native/test_cuda.py" in calls[1]
    for tool in ("racecheck", "memcheck", "synccheck", "initcheck"):
        assert sum(f"--tool {tool}" in call and "kns=selfment" in call for call in calls) == 1
    for size in ("900 --dim 384", "2304 --dim 4096", "6400 --dim 4096", "25600 --dim 4096"):
        assert sum("ncut_speed" in call and size in call for call in calls) == 1
    assert all(machine.result(step) == "passed" for step in STEPS)
    assert machine.result("nsys").startswith("left out: Nsight Systems (nsys) is not")
    assert "| device | NVIDIA Pretence |" in machine.report()
    assert "| commit | " in machine.report()
    assert f"with {machine.out / 'site'}" in machine.report()

    assert machine.call().returncode == 0
    assert machine.calls() == []
    machine.add("nsys")
    assert machine.call().returncode == 0
    assert ["nsys" in call for call in machine.calls()] == [True]


def test_a_failure_is_kept_until_asked_again(machine: Machine) -> None:
    assert machine.call(FAIL="racecheck 6400").returncode == 1
    assert len(machine.calls()) > 12
    assert machine.result("racecheck") == "failed with status 7"
    assert "no racecheck today" in machine.report()
    assert machine.result("memcheck") == "passed"
    assert machine.call().returncode == 1
    assert machine.calls() == []
    assert machine.call("--again").returncode == 0
    assert len(machine.calls()) == 3  # a size's speed and profile, and the sanitizer
    assert machine.result("racecheck") == "passed"


def test_tests_that_are_all_skipped_have_not_passed(machine: Machine) -> None:
    assert machine.call(OUTCOME="12 skipped").returncode == 1
    assert machine.result("tests") == "failed: its output does not say passed"
    assert machine.result("racecheck") == "failed: its output does not say passed"
    assert machine.result("build") == "passed"


def test_without_a_build_nothing_else_runs(machine: Machine) -> None:
    assert machine.call(FAIL="install").returncode == 1
    assert len(machine.calls()) == 1
    assert machine.result("tests") == "not run yet"
    assert machine.call().returncode == 0
    assert len(machine.calls()) > 12


def test_other_sources_or_another_device_begin_anew(machine: Machine) -> None:
    assert machine.call().returncode == 0
    machine.calls()
    other = json.dumps(PROBE | {"device": "NVIDIA Other"})
    assert machine.call("--minutes", "0.01", PROBE=other).returncode == 3
    assert machine.calls() == []  # there is no time for any
    assert machine.result("build") == "not run yet"
    assert "| device | NVIDIA Other |" in machine.report()
    assert machine.call(PROBE=other).returncode == 0
    assert len(machine.calls()) > 12


def test_a_step_is_ended_at_its_limit_and_at_the_end_of_the_call(machine: Machine) -> None:
    assert machine.call("--limit", "1", HANG="racecheck").returncode == 1
    assert machine.result("racecheck") == "stopped after 1 s, its limit"
    assert machine.result("memcheck") == "passed"
    machine.calls()
    done = machine.call("--limit", "4", "--minutes", "0.05", "--again", HANG="racecheck")
    assert done.returncode == 3
    assert machine.result("racecheck").startswith("not run yet")
    assert machine.call("--again").returncode == 0
    assert "racecheck" in machine.calls()[-1]
