"""The guards of the tests: anything that a test leaves behind is named, and removed if possible."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import processes
from helpers.callers import calling, interrupt_within
from helpers.folders import TESTS

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads Linux's /proc")

HEAD = """
import multiprocessing, os, pathlib, subprocess, sys, tempfile, threading, time
from helpers import leaks
leaks.GRACE = 0  # what is planted does not end, however long it is waited for
SLEEP = [sys.executable, "-c", "import time; time.sleep(10**6)"]
"""


def pytest_on(
    folder: Path, *tests: str, settings: str = "", options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs tests with the given bodies and the conftest.py of this suite."""
    bodies = [
        f"def test_{index}(tmp_path):\n" + "".join(f"    {line}\n" for line in test.splitlines())
        for index, test in enumerate(tests)
    ]
    file = folder / "test_planted.py"
    file.write_text(HEAD + settings + "\n" + "\n".join(bodies))
    words = ["-p", "conftest", "-p", "no:cacheprovider", f"--basetemp={folder / 'inner'}"]
    path = f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ours = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    return processes.run(
        [sys.executable, "-m", "pytest", "-q", *words, *options, file],
        cwd=folder,
        env={**ours, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""},
    )


@pytest.mark.slow
@linux
@pytest.mark.parametrize(
    "leak",
    [
        pytest.param("process = subprocess.Popen(SLEEP)", id="child"),
        pytest.param(
            "process = subprocess.Popen(SLEEP, start_new_session=True)", id="of another session"
        ),
        pytest.param(
            "script = f'import subprocess; subprocess.Popen({SLEEP})'\n"
            "subprocess.run([sys.executable, '-c', script], check=True)",
            id="whose parent has ended",
        ),
        pytest.param(
            "context = multiprocessing.get_context('fork')\n"
            "context.Process(target=time.sleep, args=(10**6,), daemon=False).start()",
            id="forked",
        ),
    ],
)
def test_a_process_that_is_left_is_named_and_ended(tmp_path: Path, leak: str) -> None:
    done = pytest_on(tmp_path, f"{leak}\nassert False, 'the test fails'", "pass")
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 error" in done.stdout
    # The summary says it again, whole where the environment has CI.
    (found,) = set(re.findall(r"test_0 has left behind: process (\d+), `.*", done.stdout))
    assert not processes.is_at_work(int(found))


@linux
def test_a_process_whose_environment_is_not_there_yet_is_recognised(monkeypatch) -> None:
    """As in an orphan that is replacing its program when the test ends."""
    read, looks = Path.read_bytes, []

    def late(path: Path) -> bytes:
        looks.append(path.name)
        return b"" if looks.count("environ") < 4 else read(path)

    with processes.started(["sleep", "1000000"]) as process:
        monkeypatch.setattr(Path, "read_bytes", late)
        assert processes._is_marked(process.pid)
    assert looks.count("environ") == 4
    assert not processes._is_marked(process.pid)


@pytest.mark.slow
def test_a_thread_that_is_left_ends_the_tests(tmp_path: Path) -> None:
    thread = "threading.Thread(target=time.sleep, args=(10**6,), name='forgotten').start()"
    done = pytest_on(tmp_path, f"{thread}\nassert False", "pathlib.Path('second').touch()")
    assert done.returncode == 1
    assert "test_0 has left behind: the thread 'forgotten'" in done.stdout
    assert "has left a thread behind !" in done.stdout
    assert "1 failed, 1 error" in done.stdout
    assert not list(tmp_path.rglob("second"))


@pytest.mark.slow
def test_files_that_are_left_are_named_and_removed(tmp_path: Path) -> None:
    done = pytest_on(
        tmp_path,
        "pathlib.Path('in-cwd').touch()",
        "pathlib.Path.home().joinpath('in-home').mkdir()",
        "tempfile.mkstemp(prefix='temporary-')",
        "subprocess.run([sys.executable, '-c', 'import tempfile; tempfile.mkdtemp()'])",
        "os.chdir(tmp_path)",
        "tmp_path.joinpath('in-its-own').touch()\nwith tempfile.TemporaryFile() as file:\n    pass",
    )
    assert done.returncode == 1
    said = re.findall(r"test_(\d) has left behind: the (\S+ or \S+|\S+ folder) (.*)", done.stdout)
    left = {int(test): Path(path).name for test, _, path in said}
    assert sorted(left) == [0, 1, 2, 3, 4]
    assert (left[0], left[1], left[4]) == ("in-cwd", "in-home", "test_40")
    assert left[2].startswith("temporary-")
    assert "6 passed, 5 errors" in done.stdout


@pytest.mark.slow
def test_a_test_that_hangs_is_ended(tmp_path: Path) -> None:
    waits = "os.mkfifo(tmp_path / 'pipe')\nopen(tmp_path / 'pipe').read()"
    done = pytest_on(tmp_path, waits, settings="leaks.LIMIT = 1")
    assert done.returncode == 1
    assert "TimeoutError: this test has taken more than 1 s: it hangs" in done.stdout


@linux
@pytest.mark.slow
def test_a_test_that_hangs_in_native_code_ends_the_process(tmp_path, monkeypatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))  # the process removes nothing
    waits = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
    settings = "leaks.LIMIT = leaks.END = 1"
    done = pytest_on(tmp_path, f"{waits}time.sleep(10**6)", settings=settings, options=["-s"])
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr


@pytest.mark.slow
def test_memory_is_reported_and_limited(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, "pass", "pass", settings="leaks.MEMORY = 1 << 20")
    assert done.returncode == 1
    assert "test_0 takes too much: peak memory: " in done.stdout
    assert "2 passed, 1 error" in done.stdout
    assert re.search(r"\npeak memory: \d\.\d\d GiB in the tests, at most ", done.stdout)


def test_the_guards_work_in_several_processes(tmp_path: Path) -> None:
    """The processes share the memory limit, and a thread that stays ends them all."""
    pytest.importorskip("xdist")
    passing = pytest_on(tmp_path, "pass", "pass", options=("-n", "2"))
    assert passing.returncode == 0, passing.stdout
    assert re.search(r"\npeak memory: \d\.\d\d \+ \d\.\d\d GiB in the tests", passing.stdout)
    thread = "threading.Thread(target=time.sleep, args=(10**6,), name='forgotten').start()"
    failing = pytest_on(tmp_path, thread, "pass", options=("-n", "2"))
    assert failing.returncode != 0
    assert "test_0 has left behind: the thread 'forgotten'" in failing.stdout
    memory = "assert leaks.MEMORY == 2 << 30"
    assert pytest_on(tmp_path, memory, options=("-n", "2")).returncode == 0


@pytest.mark.slow
@linux
def test_a_command_ends_with_all_that_it_started(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    numbers.touch()
    script = f"""
import os, subprocess, sys, time
if len(sys.argv) < 3:
    words = [sys.executable, *sys.orig_argv[1:], "more"]
    subprocess.Popen(words, start_new_session=len(sys.argv) == 2)
with open({str(numbers)!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
time.sleep(10**6)
"""

    def fails() -> None:
        with processes.started([sys.executable, "-c", script]):
            while len(numbers.read_text().splitlines()) < 3:
                time.sleep(0.01)
            raise KeyError("of the test")

    with pytest.raises(KeyError, match="of the test"):
        fails()
    for number in numbers.read_text().split():
        assert not processes.is_at_work(int(number))


@pytest.mark.slow
def test_a_command_that_hangs_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        processes.run([sys.executable, "-c", "while True: pass"], timeout=0.1)


@pytest.mark.slow
def test_callers_end_with_a_test_that_fails() -> None:
    calls = []

    def failing() -> None:
        with calling(lambda: calls.append(1), 3):
            raise KeyError("of the test")

    with pytest.raises(KeyError, match="of the test"):
        failing()
    assert len(calls) >= 3  # the guard of this test looks for their threads

    def broken() -> None:
        raise ZeroDivisionError

    def disturbed() -> None:
        with calling(broken, 3):
            pass

    with pytest.raises(ZeroDivisionError):
        disturbed()


@pytest.mark.slow
def test_a_call_that_looks_for_no_signal_is_found_out() -> None:
    with pytest.raises(pytest.fail.Exception, match="none of 5 calls has looked for signals"):
        interrupt_within(lambda _: sum(range(10**7)), 5)
