"""The CUDA module for the host: the sources of csrc/cuda on the grids of tests/emulation."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

from helpers import processes
from helpers.folders import ROOT, TESTS

EMULATION = TESTS / "emulation"
FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-DSELFMENT_EMULATE", f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"),
]

# With tests/emulation/race.cpp in the place of the thread sanitizer's runtime: see README.md there.
RACES = [
    *("-O1", "-g", "-DSELFMENT_RACES", "-fsanitize=thread", "-Wno-tsan"),
    *("--param", "tsan-distinguish-volatile=1"),
]


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, or c++; None where there is none."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return command if shutil.which(command[0]) else None


def run(command: Sequence[str | Path]) -> None:
    done = processes.run(command)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")


def link(
    target: Path,
    sources: Sequence[Path],
    flags: Sequence[str],
    last: Sequence[str],
    only: Sequence[str] | None = None,
) -> Path:
    """Compiles the sources, two at a time, and links them into ``target``.

    ``only`` names the sources to compile where ``target`` has been linked before. With sanitizers
    one at a time: a compiler takes more than 1 GiB then.
    """
    races = "-DSELFMENT_RACES" in flags
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: neither $CXX nor c++")
    target.parent.mkdir(parents=True, exist_ok=True)
    objects = [target.parent / f"{target.name}.{source.name}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        # Only device code is looked at: not the scheduler, nor the detector itself.
        seen = [
            f for f in flags if source.suffix == ".cu" or not (races and f == "-fsanitize=thread")
        ]
        run([*command, *FLAGS, *seen, "-x", "c++", "-c", source, "-o", to])

    sanitized = any("-fsanitize" in flag for flag in flags)
    with ThreadPoolExecutor(1 if sanitized else 2) as pool:
        changed = [i for i, source in enumerate(sources) if only is None or source.name in only]
        list(pool.map(compile_one, [sources[i] for i in changed], [objects[i] for i in changed]))
    # The detector is the runtime.
    linked = [flag for flag in flags if not (races and flag == "-fsanitize=thread")]
    run([*command, *FLAGS, *linked, *objects, *last, "-o", target])
    return target


def build(folder: Path, flags: Sequence[str] = (), only: Sequence[str] | None = None) -> Path:
    """Builds the module ``_cuda`` in ``folder``; ``flags`` come after the usual ones.

    ``only`` names the sources that have changed since it was last built there.
    """
    version = (ROOT / "selfment/VERSION").read_text().strip()
    sources = [
        ROOT / "csrc/bindings_cuda.cpp",
        *sorted((ROOT / "csrc/cuda").glob("*.cu")),
        *sorted(EMULATION.glob("*.cpp")),
    ]
    includes = [pybind11.get_include(), sysconfig.get_path("include")]
    ours = [
        *("-O2", f'-DSELFMENT_VERSION="{version}"'),
        *(flag for path in includes for flag in ("-isystem", path)),
        *flags,
    ]
    # On macOS an extension finds the symbols of Python when it is loaded.
    darwin = sys.platform == "darwin"
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if darwin else ["-shared"]
    name = "_cuda" + sysconfig.get_config_var("EXT_SUFFIX")
    return link(folder / name, sources, ours, shared, only)


def load(path: Path) -> ModuleType:
    """Imports the module that ``build`` has made, under a name of its own.

    pybind11 keeps modules by their full names: a second one of the same name would be the first.
    """
    package = str(path.parent).replace(".", "_")
    spec = importlib.util.spec_from_file_location(f"{package}._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
