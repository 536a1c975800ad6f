"""Builds the native modules with ninja; everything else is in pyproject.toml.

The innermost loops are compiled once per instruction set, each with its own flags, which is why
this drives ninja itself. Nothing is tuned to the machine that builds.

Environment: SELFMENT_CUDA = auto (default) | 0 | 1; CXX and CXXFLAGS as usual.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
VERSION = (ROOT / "selfment" / "VERSION").read_text().strip()
X86 = platform.machine().lower() in ("x86_64", "amd64", "i686")

FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-DNDEBUG"),
    # A product is fused into a sum only where the source says so; results must not depend on it.
    *("-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
]
ISA_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
    "avx512": [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-mavx2", "-mfma", "-mf16c", "-mpopcnt"),
        # GCC 12 finds fault with its own avx512fintrin.h; clang does not know that warning.
        *("-Wno-unknown-warning-option", "-Wno-maybe-uninitialized"),
    ],
}


def check_cuda_wish() -> None:
    """Ends the build if SELFMENT_CUDA asks for what cannot be had; there is no CUDA module yet."""
    wish = os.environ.get("SELFMENT_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"SELFMENT_CUDA must be auto, 0 or 1: got {wish!r}")
    if wish == "1" and shutil.which("nvcc") is None:
        sys.exit("SELFMENT_CUDA=1 asks for the CUDA module, but nvcc is not on the PATH")
    if wish == "1":
        sys.exit("SELFMENT_CUDA=1 asks for the CUDA module, which this version does not have yet")


def escape(text: object) -> str:
    """``text`` as a path or word of a ninja file."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):  # type: ignore[misc]
    """Builds each extension from its sources through a generated build.ninja."""

    def build_extension(self, ext: Extension) -> None:
        """Writes build.ninja and runs it."""
        check_cuda_wish()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)

        # On macOS an extension finds the symbols of Python when it is loaded.
        shared = ["-bundle", "-undefined", "dynamic_lookup"]
        shared = shared if sys.platform == "darwin" else ["-shared"]
        flags = [
            *FLAGS,
            f'-DSELFMENT_VERSION=\\"{VERSION}\\"',
            *(["-DSELFMENT_X86"] if X86 else []),
        ]
        paths = map(shlex.quote, self.include_paths())
        flags += ["-isystem " + path.replace("$", "$$") for path in paths]
        lines = [
            f"cxx = {os.environ.get('CXX', 'c++')}",
            f"cxxflags = {' '.join(flags)} {os.environ.get('CXXFLAGS', '')}",
            f"ldflags = {' '.join(shared)} -pthread {os.environ.get('LDFLAGS', '')}",
            "rule compile",
            "  command = $cxx $cxxflags $isa -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            "rule link",
            "  command = $cxx $in $ldflags -o $out",
            "  description = link $out",
        ]
        objects = []
        for source in map(Path, ext.sources):
            objects.append(escape(folder / (source.stem + ".o")))
            isa = ISA_FLAGS.get(source.stem.removeprefix("simd_"), [])
            lines += [
                f"build {objects[-1]}: compile {escape(ROOT / source)}",
                f"  isa = {' '.join(isa)}",
            ]
        lines += [
            f"build {escape(target)}: link {' '.join(objects)}",
            f"default {escape(target)}",
            "",
        ]
        (folder / "build.ninja").write_text("\n".join(lines))
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", folder, *(["-v"] if self.verbose else [])]
        try:
            subprocess.run(list(map(str, command)), check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(f"building {ext.name} failed: ninja ended with status {error.returncode}")

    @staticmethod
    def include_paths() -> list[str]:
        """Of pybind11 and of Python."""
        return [pybind11.get_include(), sysconfig.get_path("include")]


def cpu_sources() -> list[str]:
    """The sources of the CPU module; the x86 instruction sets on x86 only."""
    sources = [CSRC / "bindings_cpu.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    if not X86:
        sources = [s for s in sources if s.stem not in ("simd_avx2", "simd_avx512")]
    return [str(source.relative_to(ROOT)) for source in sources]


setup(
    ext_modules=[Extension("selfment._cpu", cpu_sources())],
    cmdclass={"build_ext": NinjaBuild},
)
