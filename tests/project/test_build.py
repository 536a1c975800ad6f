"""The build: the contents of a source distribution, how it compiles, and what it refuses."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from helpers import processes
from helpers.folders import ROOT

CSRC = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/**/*.*"))
CUDA = ["csrc/bindings_cuda.cpp", *(name for name in CSRC if name.endswith(".cu"))]
DATA = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.glob("selfment/**/*.*")
    if path.suffix in (".toml", ".css", ".html", ".js")
)
TESTS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("tests/**/*.*"))
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh")
]
VERSION = (ROOT / "selfment/VERSION").read_text().strip()
BINARY = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"

MISSING = [
    name for name in ("setuptools", "pybind11", "ninja") if not importlib.util.find_spec(name)
]
NVCC = next(filter(None, map(shutil.which, ("nvcc", "/usr/local/cuda/bin/nvcc"))), None)
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} to build")


def python(
    *arguments: str, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs this Python in ``cwd``, with the build settings of ``environment`` only.

    A build is without CUDA unless SELFMENT_CUDA is among them.
    """
    ours = ("SELFMENT_CUDA_ARCHS", "CUDACXX", "CUDA_HOME", "CXXFLAGS", "LDFLAGS", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["SELFMENT_CUDA"] = "0"
    done = processes.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**kept, **environment},
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def commands_in(output: str) -> list[list[str]]:
    """Returns the commands that ninja printed."""
    return [shlex.split(step) for step in re.findall(r"^\[\d+/\d+\] (.*)$", output, re.MULTILINE)]


def build(tree: Path, script: str = "setup.py", **environment: str) -> list[list[str]]:
    """Builds in ``tree`` as `setup.py build_ext --inplace` does; returns the commands that ran."""
    # -O0 comes last and wins: the speed of the module does not matter here.
    environment["CXXFLAGS"] = "-O0"
    done = python(script, "build_ext", "--inplace", cwd=tree, check=True, **environment)
    ran = commands_in(done.stdout)
    assert ran or "ninja: no work to do." in done.stdout, done.stdout
    return ran


def fake_nvcc(folder: Path, known: str) -> str:
    """Writes a compiler that answers like nvcc but compiles nothing; returns its path."""
    file = folder / "nvcc"
    file.write_text(f"""#!/bin/sh
case "$*" in
--list-gpu-arch) printf 'compute_%s\\n' {known} ;;
--dryrun*) echo '#$ INCLUDES="-I{folder}/toolkit include"' ;;
*) echo "not really nvcc" && exit 7 ;;
esac
""")
    file.chmod(0o755)
    return str(file)


def refused(tree: Path, script: str = "setup.py", **environment: str) -> tuple[str, str]:
    """Returns the output and the error of a build that must fail."""
    # -O0 as in build(), otherwise all of selfment._cpu would be compiled again.
    environment["CXXFLAGS"] = "-O0"
    done = python(script, "build_ext", cwd=tree, check=False, **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout, done.stderr


def source(command: list[str]) -> str:
    """Returns the name of the source that a command compiles, or "link"."""
    return Path(command[command.index("-c") + 1]).name if "-c" in command else "link"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of a copy of the tree in which a build has run."""
    tree = tmp_path_factory.mktemp("tree")
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE"):
        if path.is_file():
            shutil.copy(path, tree)
    for name in ("csrc", "selfment", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "selfment/_cpu.built-before.so").touch()
    script = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    python("-c", script, cwd=tree)
    return tree / f"dist/selfment-{VERSION}.tar.gz"


@pytest.fixture(scope="module")
def tree(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution, under a path with a space."""
    folder = tmp_path_factory.mktemp("sdist") / "a folder"
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)  # our own archive
    return folder / f"selfment-{VERSION}"


@pytest.fixture(scope="module")
def commands(tree: Path) -> list[list[str]]:
    """The commands of a first build."""
    return build(tree)


@pytest.mark.slow
@needs_tools
def test_sdist_holds_all_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "LICENSE", "README.md", "selfment/VERSION"}
    needed |= {*CSRC, *TESTS, *DATA}
    assert needed - names == set()
    assert [name for name in names if name.endswith((".so", ".o", ".pyc"))] == []


@pytest.mark.slow
@needs_tools
def test_unpacked_sdist_builds_and_works(tree: Path, commands: list[list[str]]) -> None:
    built = {source(command) for command in commands}
    expected = {Path(name).name for name in CSRC if name.endswith(".cpp")} | {"link"}
    expected.remove("bindings_cuda.cpp")
    x86 = {name for name in expected if name.startswith("simd_avx")}
    assert built == expected - (set() if "simd_avx2.cpp" in built else x86)
    script = """
import torch, selfment
from selfment.core.native import cpu
print(cpu().__file__, cpu().__version__, selfment.affinity(torch.eye(3)).degrees.tolist(), sep="|")
"""
    file, version, degrees = python("-c", script, cwd=tree).stdout.strip().split("|")
    assert Path(file).parent == tree / "selfment"
    assert version == VERSION
    assert degrees == str([1 + 2e-5] * 3)


@pytest.mark.slow
@needs_tools
def test_recipes_and_the_page_s_files_are_installed(tree: Path, tmp_path: Path) -> None:
    python("setup.py", "build_py", "--build-lib", str(tmp_path), cwd=tree)
    installed = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("selfment/**/*")}
    assert "selfment/experiments/recipe_files/offline.toml" in installed
    assert set(DATA) <= installed


@needs_tools
def test_no_command_is_tuned_to_this_machine_or_loose_with_floats(
    commands: list[list[str]],
) -> None:
    for command in commands:
        name = source(command)
        machine = {flag for flag in command if flag.startswith("-m")}
        if name.startswith("simd_avx"):
            assert "-mavx2" in machine
            assert not [flag for flag in machine if flag.startswith(("-march", "-mtune"))]
        else:
            assert machine == set(), f"{name}: {machine}"
        loose = ("-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-fassociative-math")
        assert not set(loose) & set(command)
        assert name == "link" or "-ffp-contract=off" in command


@pytest.mark.slow
@needs_tools
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        (None, []),
        ("csrc/cpu/components.cpp", ["components.cpp", "link"]),
        (
            "csrc/cpu/symmetric_eigen.h",
            ["fiedler.cpp", "lanczos.cpp", "link", "symmetric_eigen.cpp"],
        ),
    ],
)
def test_a_second_build_redoes_what_changed(
    tree: Path, changed: str | None, redone: list[str]
) -> None:
    if changed:
        (tree / changed).touch()
    assert sorted(source(command) for command in build(tree)) == redone


@pytest.fixture
def elsewhere(tree: Path, tmp_path: Path) -> str:
    """The name of a setup.py that searches nvcc in ``tmp_path``, not in /usr/local."""
    text = (tree / "setup.py").read_text()
    assert text.count('"/usr/local/cuda/bin/nvcc"') == 1
    text = text.replace('"/usr/local/cuda/bin/nvcc"', repr(str(tmp_path / "local/nvcc")))
    (tree / "setup_elsewhere.py").write_text(text)
    return "setup_elsewhere.py"


@needs_tools
@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (
            "1",
            "SELFMENT_CUDA=1 asks for the CUDA module, but nvcc is not at $CUDACXX, in "
            "$CUDA_HOME/bin, on the PATH or at /usr/local/cuda/bin/nvcc",
        ),
        ("maybe", "SELFMENT_CUDA must be auto, 0 or 1: got 'maybe'"),
    ],
)
def test_wrong_cuda_wishes_are_refused(
    tree: Path, tmp_path: Path, elsewhere: str, wish: str, sentence: str
) -> None:
    # An empty folder as PATH: no nvcc.
    environment = {"SELFMENT_CUDA": wish, "PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)}
    assert refused(tree, elsewhere, **environment)[1] == sentence + "\n"


@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize("archs", ["9.0", "sm_90", "90x", "90 native", ","])
def test_malformed_architectures_are_refused(tree: Path, tmp_path: Path, archs: str) -> None:
    nvcc = fake_nvcc(tmp_path, "80 90")
    _, error = refused(tree, SELFMENT_CUDA="auto", CUDACXX=nvcc, SELFMENT_CUDA_ARCHS=archs)
    assert error == f"SELFMENT_CUDA_ARCHS must be a list such as '80 90a 120': got {archs!r}\n"


@needs_tools
def test_unknown_architectures_are_refused(tree: Path, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, "75 100 90")
    _, error = refused(tree, SELFMENT_CUDA="auto", CUDACXX=nvcc, SELFMENT_CUDA_ARCHS="90 120")
    known = f"{nvcc} knows, 75 90 100"
    assert error == f"SELFMENT_CUDA_ARCHS must be of those that {known}: got '90 120'\n"


@pytest.mark.slow
@needs_tools
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("archs", "code"),
    [
        ("", {"80": "sm_80", "90": "sm_90 compute_90"}),  # of the default, what nvcc knows
        ("75, 80;90a", {"75": "sm_75", "80": "sm_80 compute_80", "90a": "sm_90a"}),
    ],
)
@pytest.mark.parametrize("place", ["CUDACXX", "CUDA_HOME", "PATH", "local"])
def test_nvcc_is_found_and_its_failure_is_one_of_the_build(
    tree: Path, tmp_path: Path, elsewhere: str, place: str, archs: str, code: dict[str, str]
) -> None:
    for folder in ("local", "bin"):
        (tmp_path / folder).mkdir()
    nvcc = fake_nvcc(tmp_path / ("local" if place == "local" else "bin"), "75 80 90 90a 130")
    environment = {"PATH": "/nowhere"}
    if place in ("CUDACXX", "CUDA_HOME", "PATH"):
        value = {"CUDACXX": nvcc, "CUDA_HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}
        environment[place] = value[place]
    output, error = refused(
        tree, elsewhere, **environment, SELFMENT_CUDA="auto", SELFMENT_CUDA_ARCHS=archs
    )
    assert error.endswith("; SELFMENT_CUDA=0 builds without the CUDA module\n")
    assert "not really nvcc" in output
    found = re.findall(r"-gencode=arch=compute_(\w+),code=(\w+)", output)
    wanted = {(arch, one) for arch, several in code.items() for one in several.split()}
    assert set(found) == wanted
    assert f"{nvcc} -std=c++17" in output
    assert f"-isystem '{Path(nvcc).parent}/toolkit include'" in output


@pytest.mark.slow
@needs_tools
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(
    ("cxx", "reason"),
    [
        (None, "c++ is not"),
        ("ccache absent-g++ -m64", "CXX names 'absent-g++', which is not"),
    ],
)
@pytest.mark.parametrize("wish", ["0", "1"])
def test_a_missing_compiler_is_one_sentence(
    tree: Path, tmp_path: Path, wish: str, cxx: str | None, reason: str
) -> None:
    nvcc = tmp_path / "nvcc"  # it answers as one does that finds no compiler
    nvcc.write_text(f"""#!{shutil.which("sh")}
case "$*" in
--list-gpu-arch) echo compute_90 ;;
*) echo 'nvcc fatal   : Failed to preprocess host compiler properties.' && exit 1 ;;
esac
""")
    nvcc.chmod(0o755)
    environment = {"SELFMENT_CUDA": wish, "CUDACXX": str(nvcc), "PATH": str(tmp_path)}
    if cxx is not None:
        environment["CXX"] = cxx
    changed = tree / "csrc/cpu/components.cpp"
    times = changed.stat()
    changed.touch()
    try:
        _, error = refused(tree, **environment)
    finally:
        os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert error == (
        f"selfment needs a C++17 compiler, as nvcc does, and {reason} on the PATH: "
        "install GCC or clang, or set CXX to where one is\n"
    )


@pytest.mark.slow
@needs_tools
@pytest.mark.usefixtures("commands")
@pytest.mark.parametrize(("wish", "nvcc"), [("0", True), ("auto", False)])
def test_a_build_without_cuda_leaves_no_module_of_an_earlier_one(
    tree: Path, tmp_path: Path, elsewhere: str, wish: str, nvcc: bool
) -> None:
    library = next(tree.glob("build/lib*/selfment"))
    for folder in (library, tree / "selfment"):
        (folder / BINARY).touch()
    cuda = {"CUDACXX": fake_nvcc(tmp_path, "80 90")} if nvcc else {"PATH": str(tmp_path)}
    assert build(tree, elsewhere, SELFMENT_CUDA=wish, **cuda) == []
    assert list(tree.glob("**/_cuda*")) == []
    assert len(list(library.glob("_cpu*"))) == 1


@pytest.mark.slow
@needs_tools
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.usefixtures("commands")
def test_cuda_module_needs_no_cuda_library_and_loads_without_a_driver(tree: Path) -> None:
    # One architecture and one build for all checks, because nvcc is slow.
    wishes = {"SELFMENT_CUDA": "1", "SELFMENT_CUDA_ARCHS": "90", "CUDACXX": str(NVCC)}
    sources = [source(command) for command in build(tree, **wishes)]
    assert sorted(sources) == sorted([*(Path(name).name for name in CUDA), "link"])

    binary = tree / "selfment" / BINARY
    dynamic = ["readelf", "--dynamic", "--wide", str(binary)]
    text = processes.run(dynamic, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    assert "libc.so.6" in needed
    assert [name for name in needed if "cuda" in name or "nv" in name] == []
    assert not re.search(r"\((RPATH|RUNPATH)\)", text)
    symbols = ["nm", "--dynamic", "--defined-only", str(binary)]
    text = processes.run(symbols, check=True).stdout
    assert "PyInit__cuda" in text
    assert not re.search(r" (cuda|_ZNK?8selfment)", text)

    # The module alone: torch, which selfment imports, would load its own CUDA runtime.
    script = f"""
import importlib.machinery as machinery, importlib.util as util
loader = machinery.ExtensionFileLoader("selfment._cuda", {str(binary)!r})
module = util.module_from_spec(util.spec_from_loader("selfment._cuda", loader))
loader.exec_module(module)
print(module.__version__)
"""
    assert python("-c", script, cwd=tree).stdout == f"{VERSION}\n"

    # A dry run: what a change of a header would compile again.
    (tree / "csrc/cuda/platform.h").touch()
    script = "import ninja, subprocess as s, sys; s.run([ninja.BIN_DIR + '/ninja', *sys.argv[1:]])"
    folder = next(tree.glob("build/temp*/selfment._cuda"))
    again = python("-c", script, "-n", "-v", "-C", str(folder), cwd=tree).stdout
    including = {Path(name).name for name in CUDA if "platform.h" in (tree / name).read_text()}
    assert including - {source(command) for command in commands_in(again)} == set()
