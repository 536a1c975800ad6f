"""Ctrl-C before a command has begun: one sentence and exit code 130, whatever is being imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers import processes

#: Runs a command that sends itself SIGINT when a module begins to be imported.
RUN = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.meta_path.insert(0, Interrupt())
sys.argv = ["selfment", *{words!r}]
from selfment.__main__ import run
run()
"""


def run(name: str, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", before + RUN.format(name=name, words=words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=processes.LIMIT)


@pytest.mark.parametrize(
    "name", ["selfment.cli", "argparse", "selfment.cli.label", "torch", "torch.fx", "PIL"]
)
def test_an_interrupt_while_modules_are_imported(tmp_path, name):
    done = run(name, "label", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "selfment: interrupted\n")


def test_an_interrupt_after_the_work_changes_nothing(tmp_path):
    late = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT)"
    done = run("no_module", "info", before=late)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("no_module", "label", str(tmp_path / "none"), "--out", "out", before=late)
    assert done.returncode == 2
    assert done.stderr.startswith("selfment label: no such file or folder: ")
    assert len(done.stderr.splitlines()) == 1


def test_little_is_imported_before_an_interrupt_is_handled():
    code = "import sys; import selfment.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=processes.LIMIT
    )
    loaded = {"signal", "typing", "pathlib", "argparse", "torch"}.intersection(done.stdout.split())
    assert loaded == {"signal"}, done.stderr
