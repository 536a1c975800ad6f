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

import processes

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tests/emulation"
FLAGS = [
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    *("-DSELFMENT_EMULATE", f"-I{EMULATION}", f"-I{ROOT / 'csrc'}"),
]


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, or c++; None where there is none."""
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    return command if shutil.which(command[0]) else None


def run(command: Sequence[str | Path]) -> None:
    done = processes.run(command)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}")


def link(target: Path, sources: Sequence[Path], flags: Sequence[str], last: Sequence[str]) -> Path:
    """Compiles the sources, two at a time, and links them into ``target``.

    With sanitizers one at a time: a compiler takes more than 1 GiB then.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("no C++ compiler: neither $CXX nor c++")
    target.parent.mkdir(parents=True, exist_ok=True)
    objects = [target.parent / f"{target.name}.{source.name}.o" for source in sources]

    def compile_one(source: Path, to: Path) -> None:
        run([*command, *FLAGS, *flags, "-x", "c++", "-c", source, "-o", to])

    sanitized = any("-fsanitize" in flag for flag in flags)
    with ThreadPoolExecutor(1 if sanitized else 2) as pool:
        list(pool.map(compile_one, sources, objects))
    run([*command, *FLAGS, *flags, *objects, *last, "-o", target])
    return target


def build(folder: Path, flags: Sequence[str] = ()) -> Path:
    """Builds the module ``_cuda`` in ``folder``; ``flags`` come after the usual ones."""
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
    return link(folder / name, sources, ours, shared)


def load(path: Path) -> ModuleType:
    """Imports the module that ``build`` has made."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
