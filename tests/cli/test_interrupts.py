"""Ctrl-C and SIGTERM: one sentence and exit code 130, whatever is being imported or done."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers import processes
from helpers.pictures import pictures

#: Runs a command that sends itself a signal when a module begins to be imported.
RUN = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{number})

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.meta_path.insert(0, Interrupt())
sys.argv = ["selfment", *{words!r}]
from selfment.__main__ import run
run()
"""


def run(
    name: str, *words: str, before: str = "", number: str = "SIGINT"
) -> subprocess.CompletedProcess[str]:
    code = RUN.format(name=name, words=words, number=number)
    command = [sys.executable, "-c", before + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=processes.LIMIT)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, "SIGINT") for name in ("selfment.cli", "argparse", "selfment.cli.label")),
        *(("torch", "SIGINT"), ("torch.fx", "SIGINT"), ("PIL", "SIGINT"), ("torch", "SIGTERM")),
    ],
)
def test_an_interrupt_while_modules_are_imported(tmp_path, name, number):
    done = run(name, "label", str(tmp_path), "--out", str(tmp_path / "out"), number=number)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "selfment: interrupted\n")


#: Runs a command, which receives SIGTERM in its first call of a function of its own.
TERMINATED = """
import os, signal, sys
from importlib import import_module

def terminated(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)

setattr(import_module({module!r}), {function!r}, terminated)
sys.argv = ["selfment", *{words!r}]
from selfment.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("module", "function", "words", "kept"),
    [
        ("training.run", "fit", ["train", "photos", "--out", "run", "--size", "96"], True),
        ("evaluation.folders", "evaluate", ["eval", "--pred", "photos", "--gt", "photos"], False),
        ("cli.info", "run", ["info"], False),
    ],
)
def test_a_termination_ends_each_command_in_good_order(tmp_path, module, function, words, kept):
    pictures(tmp_path / "photos", "a.png", "b.png")
    code = TERMINATED.format(module=f"selfment.{module}", function=function, words=words)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=processes.LIMIT,
        cwd=tmp_path,
    )
    end = "; what was done is kept" if kept else ""
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == f"selfment {words[0]}: interrupted{end}"


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
