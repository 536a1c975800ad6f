"""The build: what a source distribution holds, how it compiles, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

import selfment
from selfment import _native

ROOT = Path(__file__).resolve().parent.parent
CSRC = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/**/*.*"))
VERSION = (ROOT / "selfment/VERSION").read_text().strip()
AARCH64 = "aarch64-linux-gnu-g++"

MISSING = [
    name for name in ("setuptools", "pybind11", "ninja") if not importlib.util.find_spec(name)
]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} to build")


def python(
    *arguments: str, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs this Python in ``cwd``, with no build settings but those of ``environment``."""
    ours = ("SELFMENT_CUDA", "CXXFLAGS", "LDFLAGS", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def build(tree: Path) -> list[list[str]]:
    """Builds in ``tree`` as `setup.py build_ext --inplace` does; returns the commands that ran."""
    # -O0 comes last and wins: these tests are about the build, not about its speed.
    done = python("setup.py", "build_ext", "--inplace", cwd=tree, CXXFLAGS="-O0")
    steps = re.findall(r"^\[\d+/\d+\] (.*)$", done.stdout, re.MULTILINE)
    assert steps or "ninja: no work to do." in done.stdout, done.stdout
    return [shlex.split(step) for step in steps]


def source(command: list[str]) -> str:
    """The name of what a command compiles, or "link"."""
    return Path(command[command.index("-c") + 1]).name if "-c" in command else "link"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, made from a copy of the tree that a build has been run in."""
    tree = tmp_path_factory.mktemp("tree")
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE"):
        if path.is_file():
            shutil.copy(path, tree)
    for name in ("csrc", "selfment"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "selfment/_cpu.built-before.so").touch()
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    python("-c", script, cwd=tree)
    return tree / f"dist/selfment-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def tree(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution unpacked, under a path with a space."""
    folder = tmp_path_factory.mktemp("sdist") / "a folder"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)  # our own archive
    return folder / f"selfment-{VERSION}"


@pytest.fixture(scope="module")
def commands(tree: Path) -> list[list[str]]:
    """What a first build runs."""
    return build(tree)


@needs_tools
def test_sdist_holds_all_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "LICENSE", "README.md", "selfment/VERSION", *CSRC}
    assert needed - names == set()
    assert [name for name in names if name.endswith((".so", ".o", ".pyc"))] == []


@needs_tools
def test_unpacked_sdist_builds_and_works(tree: Path, commands: list[list[str]]) -> None:
    built = {source(command) for command in commands}
    expected = {Path(name).name for name in CSRC if name.endswith(".cpp")} | {"link"}
    other = set() if "simd_avx2.cpp" in built else {"simd_avx2.cpp", "simd_avx512.cpp"}
    assert built == expected - other
    script = """
import torch, selfment
from selfment._native import cpu
print(cpu().__file__, cpu().__version__, selfment.affinity(torch.eye(3)).degrees.tolist(), sep="|")
"""
    file, version, degrees = python("-c", script, cwd=tree).stdout.strip().split("|")
    assert Path(file).parent == tree / "selfment"
    assert version == VERSION
    assert degrees == str([1 + 2e-5] * 3)


@needs_tools
def test_no_command_is_tuned_to_this_machine_or_loose_with_floats(
    commands: list[list[str]],
) -> None:
    for command in commands:
        name = source(command)
        machine = {flag for flag in command if flag.startswith("-m")}
        if name in ("simd_avx2.cpp", "simd_avx512.cpp"):
            assert "-mavx2" in machine
            assert not [flag for flag in machine if flag.startswith(("-march", "-mtune"))]
        else:
            assert machine == set(), f"{name}: {machine}"
        loose = ("-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-fassociative-math")
        assert not set(loose) & set(command)
        assert name == "link" or "-ffp-contract=off" in command


@needs_tools
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        (None, []),
        ("csrc/cpu/components.cpp", ["components.cpp", "link"]),
        ("csrc/cpu/symmetric_eigen.h", ["fiedler.cpp", "link", "symmetric_eigen.cpp"]),
    ],
)
def test_a_second_build_redoes_what_changed(
    tree: Path, changed: str | None, redone: list[str]
) -> None:
    if changed:
        (tree / changed).touch()
    assert sorted(source(command) for command in build(tree)) == redone


@needs_tools
@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ("1", "SELFMENT_CUDA=1 asks for the CUDA module, but nvcc is not on the PATH"),
        ("maybe", "SELFMENT_CUDA must be auto, 0 or 1: got 'maybe'"),
    ],
)
def test_wrong_cuda_wishes_are_refused(
    tree: Path, tmp_path: Path, wish: str, sentence: str
) -> None:
    # An empty folder as PATH: no nvcc.
    done = python(
        *("setup.py", "build_ext", "--build-temp", str(tmp_path / "temp")),
        cwd=tree,
        check=False,
        SELFMENT_CUDA=wish,
        PATH=str(tmp_path),
    )
    assert done.returncode == 1
    assert done.stderr == sentence + "\n"


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", VERSION)
    versions = (selfment.__version__, _native.cpu().__version__, metadata.version("selfment"))
    assert versions == (VERSION,) * 3


@pytest.mark.skipif(platform.machine() == "aarch64", reason="the ordinary build is for arm64 here")
@pytest.mark.skipif(shutil.which(AARCH64) is None, reason=f"needs {AARCH64}")
def test_portable_sources_compile_for_arm64(tmp_path: Path) -> None:
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
    sources = [
        str(ROOT / name)
        for name in CSRC
        if name.startswith("csrc/cpu/") and name.endswith(".cpp") and "simd_avx" not in name
    ]
    done = subprocess.run(
        [AARCH64, *flags, "-c", *sources], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.o"))) == len(sources)
