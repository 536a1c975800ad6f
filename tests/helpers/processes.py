"""Processes that tests start: each ends with its test, together with all that it has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Seconds after which a command hangs. No command of the tests needs a tenth of them.
LIMIT = 600.0

#: Inherited by every command that a test starts, and read from /proc: who has lost its parent is
#: found by it.
MARK = "SELFMENT_TEST_SESSION"


def mark() -> None:
    """Marks all processes that this one starts from here on."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"


def snapshot() -> frozenset[int]:
    """The numbers of all processes of the machine; none where there is no /proc."""
    with contextlib.suppress(OSError):
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())
    return frozenset()


def parent(number: int) -> int:
    """The parent of a process; 0 where the process is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name, in parentheses, may hold anything.
        stat = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(stat[1])
    return 0


def is_at_work(number: int) -> bool:
    """Whether there is such a process, and it has not ended; False where there is no /proc."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return stat[0] not in "ZX"
    return False


def _is_marked(number: int) -> bool:
    with contextlib.suppress(OSError):
        wanted = f"{MARK}={os.environ.get(MARK, '-')}".encode()
        return wanted in Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    return False


def command_of(number: int) -> str:
    """The command line of a process; nothing where it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return " ".join(word.decode(errors="replace") for word in words)
    return ""


def started_since(before: frozenset[int]) -> list[int]:
    """The processes at work that this one has started since, and those that they have started."""
    new = sorted(snapshot() - before - {os.getpid()})
    parents = {number: parent(number) for number in new}
    ours = {number for number in new if _is_marked(number)}
    for number in new:
        line = [number]
        while line[-1] in parents:
            line.append(parents[line[-1]])
        if line[-1] == os.getpid():
            ours.add(number)
    return sorted(number for number in ours if is_at_work(number))


def below(root: int) -> list[int]:
    """The processes that a process has started, those that they have started, and so on."""
    parents = {number: parent(number) for number in snapshot()}
    found = [root]
    for number in found:
        found += [child for child, above in parents.items() if above == number]
    return found[1:]


def kill(numbers: Sequence[int]) -> None:
    """Ends processes at once, and returns when they have ended (on Linux)."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, getattr(signal, "SIGKILL", signal.SIGTERM))
    end = time.monotonic() + 60  # one that the system holds up must not hold up the tests
    while any(map(is_at_work, numbers)) and time.monotonic() < end:
        time.sleep(0.001)


@contextlib.contextmanager
def started(
    command: Sequence[object], *, text: bool = True, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Starts a command; kills it and all that it has started where it has not ended by then.

    Args:
        command: Words, of which each is made a string.
        text: Whether its pipes carry text.
        options: Those of ``subprocess.Popen``.
    """
    # A group of its own, for systems without /proc.
    options.setdefault("start_new_session", True)
    process = subprocess.Popen([str(word) for word in command], text=text, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            # Children first: one that has lost its parent is found by its mark only.
            kill([*below(process.pid), process.pid])
            if sys.platform != "win32":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def run(
    command: Sequence[object],
    *,
    check: bool = False,
    timeout: float = LIMIT,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, as ``subprocess.run`` does; returns what it has printed.

    Args:
        command: Words, of which each is made a string.
        check: Whether an exit code other than 0 is an error, which shows what was printed.
        timeout: Seconds after which the command is killed, with all that it has started.
        env: The environment; this process's by default.
        options: Those of ``subprocess.Popen``.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with started(command, env=env, **options) as process:
        out, err = process.communicate(timeout=timeout)
    if check:
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def torchrun(folder: Path, *words: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes of torchrun on this machine, on a port that is free.

    Args:
        folder: Where torchrun keeps its own files, which it leaves behind where one fails.
        words: A script or "-m" and a module, and their arguments.
        restarts: How often all are started again after one has failed.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    launch += ["--log-dir", str(folder / "torchrun")]
    return run([*launch, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
