"""Processes of tests: each ends with its test, together with all its descendants."""

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

#: Seconds after which a command counts as hanging. No command of the tests needs a tenth of it.
LIMIT = 600.0

#: An environment variable that all commands of the tests inherit. Orphaned processes are identified
#: by it, in /proc.
MARK = "SELFMENT_TEST_SESSION"

#: Seconds in which a process that has no environment may still get one; hardly any has none.
_EXEC = 10.0


def mark() -> None:
    """Marks all processes that this one starts from now on."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"


def snapshot() -> frozenset[int]:
    """Returns the numbers of all processes of the machine; none if there is no /proc."""
    with contextlib.suppress(OSError):
        return frozenset(int(name) for name in os.listdir("/proc") if name.isdigit())
    return frozenset()


def parent(number: int) -> int:
    """Returns the parent of a process; 0 if the process has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name, in parentheses, may contain any characters.
        stat = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(stat[1])
    return 0


def is_at_work(number: int) -> bool:
    """Returns whether a process exists and has not ended; False if there is no /proc."""
    with contextlib.suppress(OSError, IndexError):
        stat = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return stat[0] not in "ZX"
    return False


def _is_marked(number: int) -> bool:
    wanted = f"{MARK}={os.environ.get(MARK, '-')}".encode()
    end = time.monotonic() + _EXEC
    with contextlib.suppress(OSError):
        os.readlink(f"/proc/{number}/exe")  # there is none for a thread of the kernel
        environment = Path(f"/proc/{number}/environ").read_bytes()
        # A process that is replacing its program has no environment for an instant.
        while not environment and is_at_work(number) and time.monotonic() < end:
            time.sleep(0.001)
            environment = Path(f"/proc/{number}/environ").read_bytes()
        return wanted in environment.split(b"\0")
    return False


def command_of(number: int) -> str:
    """Returns the command line of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        return " ".join(word.decode(errors="replace") for word in words)
    return ""


def started_since(before: frozenset[int]) -> list[int]:
    """Returns the running descendants of this process that are not in ``before``."""
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
    """Returns all descendants of a process."""
    parents = {number: parent(number) for number in snapshot()}
    tree = [root]
    for number in tree:
        tree += [child for child, above in parents.items() if above == number]
    return tree[1:]


def kill(numbers: Sequence[int]) -> None:
    """Kills processes, and returns when they have ended (on Linux)."""
    for number in numbers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(number, getattr(signal, "SIGKILL", signal.SIGTERM))
    end = time.monotonic() + 60  # a process that cannot end must not block the tests
    while any(map(is_at_work, numbers)) and time.monotonic() < end:
        time.sleep(0.001)


@contextlib.contextmanager
def started(
    command: Sequence[object], *, text: bool = True, **options: Any
) -> Iterator[subprocess.Popen[Any]]:
    """Starts a command; at the end of the block kills it with its descendants if it still runs.

    Args:
        command: Words, each of which is converted to a string.
        text: Its pipes carry text, not bytes.
        options: Keyword arguments of ``subprocess.Popen``.
    """
    # A process group, for systems without /proc.
    options.setdefault("start_new_session", True)
    process = subprocess.Popen([str(word) for word in command], text=text, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            # Descendants are listed first: an orphan can be identified by its mark only.
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
    """Runs a command to its end, as ``subprocess.run`` does; returns its output.

    Args:
        command: Words, each of which is converted to a string.
        check: Fail the test for an exit code other than 0, and show the output.
        timeout: Seconds after which the command is killed, with all its descendants.
        env: The environment; this process's by default.
        options: Keyword arguments of ``subprocess.Popen``.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with started(command, env=env, **options) as process:
        out, err = process.communicate(timeout=timeout)
    if check:
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def torchrun(folder: Path, *words: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs two processes under torchrun on this machine, on a free port.

    Args:
        folder: A folder for torchrun's own files, which remain if a process fails.
        words: A script, or "-m" and a module, and their arguments.
        restarts: How often all processes are restarted after one has failed.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "2", "--max-restarts", str(restarts)]
    launch += ["--log-dir", str(folder / "torchrun")]
    return run([*launch, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
