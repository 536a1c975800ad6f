"""Compiles and disassembles the CUDA kernels.

Needs nvcc and nvdisasm, which is part of the toolkit and of the package nvidia-cuda-nvdisasm, but
no device.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from machine_code import Function, Instruction, Kernel, readable

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cu"))

_INSTRUCTION = re.compile(
    r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;"
)
_LABEL = re.compile(r"^(\.L_\w+):")
_FUNCTION = re.compile(r"\s+\.type\s+(\S+),@function")
_SECTION = re.compile(r"\s+\.section\s+\.text\.(\S+?),")


def find_nvcc() -> str | None:
    """Finds nvcc as setup.py does."""
    home = os.environ.get("CUDA_HOME")
    places = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc"]
    places.append("/usr/local/cuda/bin/nvcc")
    return next(filter(None, map(shutil.which, filter(None, places))), None)


def find_nvdisasm() -> str | None:
    """Finds nvdisasm on the PATH, beside nvcc, or in the package of that name."""
    nvcc = find_nvcc()
    places = ["nvdisasm", *([str(Path(nvcc).resolve().with_name("nvdisasm"))] if nvcc else [])]
    places.append("/usr/local/cuda/bin/nvdisasm")
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        places += map(str, sorted(Path(folder).glob("*/bin/nvdisasm"), reverse=True))
    return next(filter(None, map(shutil.which, places)), None)


def obstacle() -> str:
    """Returns why the kernels cannot be disassembled here; empty if they can."""
    if find_nvcc() is None:
        return "no nvcc: neither at $CUDACXX, in $CUDA_HOME/bin nor on the PATH"
    if find_nvdisasm() is None:
        return "no nvdisasm: neither beside nvcc nor by `pip install nvidia-cuda-nvdisasm`"
    return ""


def _nvcc_flags() -> list[str]:
    """Returns the flags of setup.py, without those of the host compiler."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NVCC_FLAGS":
            flags: list[str] = eval(ast.unparse(node.value))
            return [flag for flag in flags if not flag.startswith("-Xcompiler")]
    raise LookupError("setup.py has no NVCC_FLAGS")


def _run(*command: str | Path) -> tuple[str, str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def compiled(source: Path, arch: str) -> list[Kernel]:
    """Compiles a .cu file for an architecture, such as "90", and returns its kernels.

    Raises ``RuntimeError`` with the message of nvcc or nvdisasm.
    """
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        raise RuntimeError(obstacle())
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "code.cubin"
        flags = [*_nvcc_flags(), f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v"]
        printed, said = _run(nvcc, *flags, source, "-o", cubin)
        code, _ = _run(nvdisasm, "-c", cubin)
    kernels = {kernel.symbol: kernel for kernel in _resources(printed + said, source.name, arch)}
    for symbol, functions in _parsed(code):
        kernels[symbol].functions = functions
    return sorted(kernels.values(), key=lambda kernel: kernel.name)


def _resources(said: str, source: str, arch: str) -> Iterator[Kernel]:
    """Parses the output of `ptxas -v` for each kernel, including the functions that it calls."""
    for part in re.split(r"Compiling entry function '", said)[1:]:
        kernel = Kernel(source, arch, part.partition("'")[0])
        stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", part)
        kernel.stack = max((int(stack) for stack, _, _ in stacks), default=0)
        kernel.spills = sum(int(stores) + int(loads) for _, stores, loads in stacks)
        for name, pattern in (
            ("registers", r"Used (\d+) registers"),
            ("barriers", r"used (\d+) barriers"),
            ("shared", r"(\d+) bytes smem"),
        ):
            if number := re.search(pattern, part):
                setattr(kernel, name, int(number[1]))
        yield kernel


def _parsed(text: str) -> Iterator[tuple[str, list[Function]]]:
    """Parses the functions of each kernel from the output of nvdisasm."""
    symbol, functions = "", list[Function]()
    for line in text.splitlines():
        if section := _SECTION.match(line):
            if symbol:
                yield symbol, functions
            symbol, functions = section[1], []
        elif named := _FUNCTION.match(line):
            functions.append(Function(readable(named[1])))
        elif label := _LABEL.match(line):
            # A label before the next function's name still belongs to the section.
            functions[-1].labels[label[1]] = len(functions[-1].instructions)
        elif code := _INSTRUCTION.match(line):
            address, predicate, opcode, operands = code.groups()
            functions[-1].instructions.append(
                Instruction(int(address, 16), predicate or "", opcode, operands)
            )
    if symbol:
        yield symbol, functions
