"""Fixtures: photographs, the emulated CUDA module, and a check that tests leave nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers import leaks
from helpers.folders import SHARED

# Workers of ``pytest -n`` share the cores, and more threads than cores would slow the tests down
# several times. The variable is read when torch is imported, and by commands that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

OVER = pytest.StashKey[str]()
ENDLESS = pytest.StashKey[bool]()
STATUS = pytest.StashKey[int]()
WORKERS = pytest.StashKey[list[tuple[int, int]]]()


@pytest.fixture(scope="session", autouse=True)
def outside_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[leaks.Watch]:
    """Sets private current, home and temporary folders for the session.

    Commands that tests start then import the installed package, not the folder of sources.
    """
    import_module("torch.distributed.nn")  # torch 2.6 makes a temporary folder at its first import
    with leaks.watched(tmp_path_factory.mktemp("cwd")) as watch:
        yield watch


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, outside_the_tree: leaks.Watch) -> Iterator[None]:
    """Fails a test that hangs, or that leaves a thread, a process or a file behind.

    Processes are killed. Threads cannot be killed, so the session ends before they affect other
    tests.
    """
    before = outside_the_tree.state()
    with leaks.time_limit(leaks.LIMIT):
        yield
    leaks.release()
    left = outside_the_tree.left_since(before)
    if leaks.threads(before):
        request.session.shouldfail = f"{request.node.nodeid} has left a thread behind"
        request.config.stash[ENDLESS] = True
    if left:
        pytest.fail(f"{request.node.nodeid} has left behind: {'; '.join(left)}", pytrace=False)
    if max(leaks.peaks()) > leaks.MEMORY and not request.config.stash.get(OVER, ""):
        request.config.stash[OVER] = request.node.nodeid
        pytest.fail(f"{request.node.nodeid} takes too much: {leaks.memory_report()}", pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how much memory the tests used."""
    terminalreporter.line(leaks.memory_report(terminalreporter.config.stash.get(WORKERS, [])))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Stores the exit status; a worker of ``pytest -n`` reports how much memory it used."""
    session.config.stash[STATUS] = int(exitstatus)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peaks"] = leaks.peaks()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Stores the report of a worker of ``pytest -n``."""
    if peaks := getattr(node, "workeroutput", {}).get("peaks"):
        node.config.stash.setdefault(WORKERS, []).append(tuple(peaks))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends a process whose threads do not end; Python would wait for them forever."""
    if config.stash.get(ENDLESS, False):
        leaks.remove_folders()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash.get(STATUS, 1) or 1)


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Photographs in $SELFMENT_DATA, or in a folder shared/data beside the repository."""
    folder = Path(os.environ.get("SELFMENT_DATA") or SHARED / "data")
    paths = sorted(folder.glob("*/images/*.jpg"))
    if not paths:
        pytest.skip(f"no photographs in {folder}/*/images; set SELFMENT_DATA to a folder that has")
    return paths


@pytest.fixture
def photos_in(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of small pictures; their names are ``PHOTOS`` of the test's file, if it has that."""
    from helpers.pictures import pictures

    names = getattr(request.module, "PHOTOS", ("a.png", "b.png", "c.png"))
    return pictures(tmp_path / "photos", *names)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA module on emulated grids; $SELFMENT_EMULATED_FLAGS has further compiler flags."""
    from helpers import emulated

    if emulated.compiler() is None:
        pytest.skip("no C++ compiler: neither $CXX nor c++")
    flags = os.environ.get("SELFMENT_EMULATED_FLAGS", "").split()
    return emulated.load(emulated.build(tmp_path_factory.mktemp("emulated"), flags))
