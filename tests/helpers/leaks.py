"""Detects what a test must not leave behind: threads, processes, files, memory beyond a limit.

Processes are detected if there is a /proc (Linux).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import os
import resource
import shutil
import signal
import site
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import processes

#: Bytes that all processes of the tests together, or any process they start, may use.
TOTAL = 4 << 30

#: Bytes that this process may use: ``pytest -n`` divides the tests among several.
MEMORY = TOTAL // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

#: If this process uses more bytes, free memory is returned to the system after a test.
MANY = 1 << 30
#: Bytes by which the process must have grown since it last did so.
GROWTH = 128 << 20
_kept = 0  # bytes that were in use after that

#: Seconds after which a test counts as hanging; the longest takes some minutes.
LIMIT = 840
#: Seconds after which a test that cannot be interrupted then ends the process.
END = 60

#: Seconds in which threads and processes of a test must end.
GRACE = 60.0

# Threads that serve the whole process: the module that starts them, and their purpose.
_THREADS = {
    "tqdm": "the monitor of progress bars",
    "torch._inductor": "the pool of compilers",
    "ray": "the connection to the cluster",
}
# Processes that serve the whole process: a part of their command, and their purpose.
_PROCESSES = {
    "multiprocessing.resource_tracker": "removes shared objects of spawned processes",
    "multiprocessing.forkserver": "the parent of later processes",
    "loky.backend.resource_tracker": "joblib's",
    "loky.backend.popen_loky": "joblib's pool",
    "torch/_inductor/compile_worker": "the pool of compilers",
    "ray::": "Ray's pool, which its own shutdown ends",
}
# Files that libraries keep between calls, by name in the temporary or home folder.
_FILES = {
    "pymp-": "multiprocessing's sockets, until the process ends",
    "torchinductor_": "compiled code",
    "ray": "Ray's log",
    ".ses": "the number of a session of ONNX Runtime",
    ".cache": "caches of libraries",
    ".config": "settings that libraries write when they are first used",
    ".triton": "compiled code",
    ".nv": "compiled code of the CUDA driver",
    ".cupy": "compiled code",
    ".ccache": "compiled code",
    ".hypothesis": "failed examples",
    "Library": "the same on macOS",
}


@dataclass
class State:
    """The state before a test."""

    threads: frozenset[threading.Thread]
    processes: frozenset[int]
    files: frozenset[Path]
    cwd: str


class Watch:
    """Private home, temporary and current folders of the session.

    All are empty at first, so that files of a test are detected whatever else runs on the machine.
    Files that a test writes to other places, by their path, are not detected.
    """

    def __init__(self, cwd: Path, home: Path, temporary: Path) -> None:
        self.folders = (cwd, home, temporary)

    def state(self) -> State:
        """Returns the current state."""
        return State(
            frozenset(threading.enumerate()), processes.snapshot(), self._files(), os.getcwd()
        )

    def _files(self) -> frozenset[Path]:
        return frozenset(
            path
            for folder in self.folders
            for path in folder.iterdir()
            if not path.name.startswith(tuple(_FILES))
        )

    def left_since(self, before: State) -> list[str]:
        """Returns a phrase for each new thing; kills the processes and removes the files."""
        end = time.monotonic() + GRACE
        while (threads(before) or _processes(before)) and time.monotonic() < end:
            time.sleep(0.01)
        left = [f"the thread {thread.name!r}" for thread in threads(before)]
        left += [
            f"process {number}, `{processes.command_of(number)[:200]}`"
            for number in _processes(before)
        ]
        processes.kill(_processes(before))
        _reap(before)
        for path in sorted(self._files() - before.files):
            left.append(f"the file or folder {path}")
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if os.getcwd() != before.cwd:
            left.append(f"the current folder {os.getcwd()}")
            os.chdir(before.cwd)
        return left


def threads(before: State) -> list[threading.Thread]:
    """Returns the new running threads, without those that serve the whole process."""
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before.threads and not _serves(thread)
    ]


def _serves(thread: threading.Thread) -> bool:
    # Threads of C++ that once called Python remain on the list.
    if isinstance(thread, threading._DummyThread):
        return True
    target = getattr(thread, "_target", None)
    modules = (type(thread).__module__, str(getattr(target, "__module__", "")))
    return any(f"{module}.".startswith(f"{name}.") for module in modules for name in _THREADS)


def _processes(before: State) -> list[int]:
    return [
        number
        for number in processes.started_since(before.processes)
        if not any(part in processes.command_of(number) for part in _PROCESSES)
    ]


def _reap(before: State) -> None:
    """Waits for killed children, whose process numbers are in use until then."""
    for number in processes.snapshot() - before.processes:
        if processes.parent(number) == os.getpid() and not processes.is_at_work(number):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(number, os.WNOHANG)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises ``TimeoutError`` in the main thread if the block takes longer than ``seconds``.

    A block in native code does not see this; ``END`` seconds later the process ends with code 1.
    """

    def ring(*_: object) -> None:
        raise TimeoutError(f"this test has taken more than {seconds} s: it hangs")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(seconds + END, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def watched(cwd: Path) -> Iterator[Watch]:
    """Changes to ``cwd``, and sets a private home and temporary folder for this process."""
    # A short path, because paths of sockets must not be longer than about 100 bytes.
    own = Path(tempfile.mkdtemp(prefix="t"))
    home, temporary = own / "home", own / "tmp"
    home.mkdir()
    temporary.mkdir()
    # The user's own packages can still be imported.
    changes = {
        "PYTHONUSERBASE": site.getuserbase(),
        "HOME": str(home),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
    }
    kept = {name: os.environ.get(name) for name in (*changes, processes.MARK)}
    before, tempdir = os.getcwd(), tempfile.tempdir
    os.environ.update(changes)
    tempfile.tempdir = str(temporary)
    processes.mark()
    os.chdir(cwd)
    try:
        yield Watch(cwd, home, temporary)
    finally:
        os.chdir(before)
        tempfile.tempdir = tempdir
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _own.append(own)


# Registered before multiprocessing is imported, so that its files there are closed first.
_own: list[Path] = []


@atexit.register
def remove_folders() -> None:
    """Removes the private folders of the session."""
    for folder in _own:
        shutil.rmtree(folder, ignore_errors=True)


def release() -> None:
    """Returns memory to the system if this process uses much, mostly for models in cycles.

    A collection takes most of a second once large libraries are imported, so the next one waits
    until the process has grown.
    """
    global _kept
    if _resident() < max(MANY, _kept + GROWTH):
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only in glibc
        ctypes.CDLL(None).malloc_trim(0)
    _kept = _resident()


def _resident() -> int:
    """Returns the bytes of this process that are in memory; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peaks() -> tuple[int, int]:
    """Returns the peak memory in bytes of this process, and the largest of its children.

    On Linux the peak of a child starts with that of its parent.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    ours, theirs = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ours.ru_maxrss * unit, theirs.ru_maxrss * unit


def memory_report(workers: Sequence[tuple[int, int]] = ()) -> str:
    """Returns one line with the peak memory of the test processes, of others, and the limit.

    ``workers``: the :func:`peaks` of each process that ran tests; by default this one's.
    """
    ours, theirs = zip(*(workers or [peaks()]), strict=True)
    each = " + ".join(f"{peak / 2**30:.2f}" for peak in ours)
    return (
        f"peak memory: {each} GiB in the tests, at most {max(theirs) / 2**30:.2f} GiB in a process "
        f"that they started; the limit is {(TOTAL if workers else MEMORY) / 2**30:.0f} GiB"
    )
