"""Builds the native modules with ninja; everything else is in pyproject.toml.

The innermost loops are compiled once per instruction set with different flags, which setuptools
cannot express; so this module writes a ninja file. Nothing is tuned to the machine that builds.

Environment:
    SELFMENT_CUDA: auto (default: builds ``selfment._cuda`` if there is an nvcc), 0 or 1.
    SELFMENT_CUDA_ARCHS: compute capabilities, such as "90 120"; the default is DEFAULT_CUDA_ARCHS.
    CUDACXX, CUDA_HOME: the location of nvcc.
    NVCC_CCBIN (a C++ compiler; CXX by default), NVCC_PREPEND_FLAGS, NVCC_APPEND_FLAGS: as in nvcc.
    CXX, CXXFLAGS, LDFLAGS: as usual.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

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
    # Multiply-adds are fused only where the source does so, as results must not depend on it.
    *("-ffp-contract=off", "-fno-math-errno"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mpopcnt"]
AVX512 = [
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", *AVX2),
    # GCC 12 warns of its own avx512fintrin.h; clang does not know that warning.
    *("-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]
ISA_FLAGS = {
    "portable": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512vnni": [*AVX512, "-mavx512vnni"],
}

CUDA_MODULE = "selfment._cuda"
DEFAULT_CUDA_ARCHS = "80 86 89 90 100 120"
NVCC_FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "-DNDEBUG"),
    *("-Werror=all-warnings", "-Wno-deprecated-gpu-targets"),
    "-Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off",
    "-Xcompiler=-Wall,-Wextra,-Wno-psabi,-Werror",
]
WITHOUT_CUDA = "SELFMENT_CUDA=0 builds without the CUDA module"


class Cuda(NamedTuple):
    """The CUDA toolkit for the build."""

    nvcc: str
    archs: list[str]  # flags of nvcc
    includes: list[str]  # flags of the C++ compiler
    libraries: list[str]  # flags of the C++ compiler


def find_nvcc() -> str | None:
    """Returns the path of nvcc, or None to build without; ends the build if nvcc is required."""
    wish = os.environ.get("SELFMENT_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"SELFMENT_CUDA must be auto, 0 or 1: got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    places = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc"]
    for place in filter(None, [*places, "/usr/local/cuda/bin/nvcc"]):
        if nvcc := shutil.which(place):
            return os.path.abspath(nvcc)
    if wish == "1":
        sys.exit(
            "SELFMENT_CUDA=1 asks for the CUDA module, but nvcc is not at $CUDACXX, in "
            "$CUDA_HOME/bin, on the PATH or at /usr/local/cuda/bin/nvcc"
        )
    return None


def refuse_without_compiler() -> None:
    """Ends the build with one sentence if the C++ compiler is missing."""
    # The compiler is the last word of a CXX such as "ccache g++".
    words = [word for word in shlex.split(os.environ.get("CXX", "")) if not word.startswith("-")]
    if shutil.which(words[-1] if words else "c++") is None:
        reason = f"CXX names {words[-1]!r}, which is not" if words else "c++ is not"
        sys.exit(
            f"selfment needs a C++17 compiler, as nvcc does, and {reason} on the PATH: "
            "install GCC or clang, or set CXX to where one is"
        )


def run_nvcc(nvcc: str, *arguments: str) -> str:
    """Runs nvcc and returns its output; ends the build if it fails."""
    command = [nvcc, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        refuse_without_compiler()
        sys.exit(f"{shlex.join(command)} failed; {WITHOUT_CUDA}\n{done.stdout}")
    return done.stdout


def arch_flags(nvcc: str) -> list[str]:
    """Returns flags for machine code of each architecture, and PTX for ones after the newest."""
    asked = os.environ.get("SELFMENT_CUDA_ARCHS", "").strip()
    wanted = list(dict.fromkeys(re.split(r"[\s,;]+", asked or DEFAULT_CUDA_ARCHS)))
    if not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in wanted):
        sys.exit(f"SELFMENT_CUDA_ARCHS must be a list such as '80 90a 120': got {asked!r}")
    known = sorted(set(map(int, re.findall(r"compute_(\d+)", run_nvcc(nvcc, "--list-gpu-arch")))))
    unknown = [arch for arch in wanted if int(arch.rstrip("af")) not in known]
    if asked and unknown:
        sys.exit(
            f"SELFMENT_CUDA_ARCHS must be of those that {nvcc} knows, "
            f"{' '.join(map(str, known))}: got {asked!r}"
        )
    wanted = [arch for arch in wanted if arch not in unknown]
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in wanted]
    # PTX of an architecture with a letter would not run on later devices.
    newest = sorted(int(arch) for arch in wanted if arch.isdigit())[-1:]
    return flags + [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in newest]


def find_cuda() -> Cuda | None:
    """Returns the toolkit, or None to build without."""
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    cxx = [word for word in shlex.split(os.environ.get("CXX", "")) if not word.startswith("-")]
    if cxx:
        os.environ.setdefault("NVCC_CCBIN", cxx[-1])
    archs = arch_flags(nvcc)
    # Only nvcc knows where its headers and libraries are; they may be in other folders.
    output = run_nvcc(nvcc, "--dryrun", "-c", "any.cu")
    lines = re.findall(r"^#\$ \w*(?:INCLUDES|LIBRARIES)=(.*)$", output, re.MULTILINE)
    words = [word for line in lines for word in shlex.split(line) if word != "-isystem"]
    folders = [word.removeprefix("-I") for word in words if not word.startswith("-L")]
    return Cuda(
        nvcc=nvcc,
        archs=archs,
        includes=[f"-isystem {quote(folder)}" for folder in folders],
        libraries=[
            *(quote(word) for word in words if word.startswith("-L")),
            # The static runtime exports nothing, and loads the driver when it is first used.
            "-lcudart_static",
            "-ldl",
            "-lrt",
        ],
    )


def escape(text: object) -> str:
    """Escapes a path or word for a ninja file."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def quote(word: str) -> str:
    """Quotes a word of a command for a ninja file."""
    return shlex.quote(word).replace("$", "$$")


class NinjaBuild(build_ext):  # type: ignore[misc]
    """Builds each extension from its sources through a generated build.ninja."""

    extensions: list[Extension]
    cuda: Cuda | None

    def run(self) -> None:
        """Builds the CUDA module too if there is a toolkit."""
        self.cuda = find_cuda()
        if self.cuda is None:
            self.extensions = [ext for ext in self.extensions if ext.name != CUDA_MODULE]
            # Otherwise the module of an earlier build would be installed.
            for folder in [self.build_lib, *([ROOT] if self.inplace else [])]:
                (Path(folder) / self.get_ext_filename(CUDA_MODULE)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Writes build.ninja and runs it."""
        cuda = self.cuda if ext.name == CUDA_MODULE else None
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [*self.rules(cuda, ext), *self.targets(ext, folder, target), ""]
        (folder / "build.ninja").write_text("\n".join(lines))
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", folder, *(["-v"] if self.verbose else [])]
        try:
            subprocess.run(list(map(str, command)), check=True)
        except subprocess.CalledProcessError as error:
            if cuda is None:
                refuse_without_compiler()
            hint = f"; {WITHOUT_CUDA}" if cuda else ""
            status = f"ninja ended with status {error.returncode}"
            sys.exit(f"building {ext.name} failed: {status}{hint}")

    def rules(self, cuda: Cuda | None, ext: Extension) -> list[str]:
        """Returns the variables and rules of the ninja file."""
        # On macOS an extension finds the symbols of Python when it is loaded.
        shared = ["-bundle", "-undefined", "dynamic_lookup"]
        shared = shared if sys.platform == "darwin" else ["-shared"]
        flags = [
            *FLAGS,
            f'-DSELFMENT_VERSION=\\"{VERSION}\\"',
            *(["-DSELFMENT_X86"] if X86 else []),
        ]
        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        flags += [f"-isystem {quote(path)}" for path in includes]
        flags += cuda.includes if cuda else []
        libraries = cuda.libraries if cuda else []
        return [
            f"cxx = {os.environ.get('CXX', 'c++')}",
            f"cxxflags = {' '.join(flags)} {os.environ.get('CXXFLAGS', '')}",
            f"ldflags = {' '.join(shared)} -pthread {os.environ.get('LDFLAGS', '')}",
            f"libraries = {' '.join(libraries)}",
            "rule compile",
            "  command = $cxx $cxxflags $isa -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compile $in",
            "rule link",
            "  command = $cxx $in $ldflags $libraries -o $out",
            "  description = link $out",
            *(self.nvcc_rule(cuda, ext) if cuda else []),
        ]

    def targets(self, ext: Extension, folder: Path, target: Path) -> list[str]:
        """Returns the object files and the extension, for the ninja file."""
        lines, objects = [], []
        for source in map(Path, ext.sources):
            objects.append(escape(folder / (source.name + ".o")))
            isa = ISA_FLAGS.get(source.stem.removeprefix("simd_"), [])
            rule = "nvcc" if source.suffix == ".cu" else "compile"
            lines += [
                f"build {objects[-1]}: {rule} {escape(ROOT / source)}",
                f"  isa = {' '.join(isa)}",
            ]
        built = escape(target)
        return [*lines, f"build {built}: link {' '.join(objects)}", f"default {built}"]

    def nvcc_rule(self, cuda: Cuda, ext: Extension) -> list[str]:
        """Returns the rule for .cu files."""
        # Ninja compiles the files in parallel; the remaining processors are for architectures.
        threads = max(1, (os.cpu_count() or 1) // len(ext.sources))
        flags = [*NVCC_FLAGS, *cuda.archs, f"--threads={threads}"]
        if self.verbose > 1:  # 1 is the default
            flags.append("-Xptxas=-v")
        host = os.environ.get("NVCC_CCBIN")
        return [
            f"nvcc = {f'NVCC_CCBIN={quote(host)} ' if host else ''}{quote(cuda.nvcc)}",
            f"nvccflags = {' '.join(flags)}",
            "rule nvcc",
            "  command = $nvcc $nvccflags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $in",
        ]


def cpu_sources() -> list[str]:
    """Returns the sources of the CPU module; the x86 instruction sets on x86 only."""
    sources = [CSRC / "bindings_cpu.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    if not X86:
        sources = [s for s in sources if not s.stem.startswith("simd_avx")]
    return [str(source.relative_to(ROOT)) for source in sources]


def cuda_sources() -> list[str]:
    """Returns the sources of the CUDA module."""
    sources = [CSRC / "bindings_cuda.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
    return [str(source.relative_to(ROOT)) for source in sources]


setup(
    ext_modules=[
        Extension("selfment._cpu", cpu_sources()),
        Extension(CUDA_MODULE, cuda_sources()),
    ],
    cmdclass={"build_ext": NinjaBuild},
)
