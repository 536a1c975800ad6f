"""The native modules: loaded once, when first needed; when one is missing, it is told why."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch

_HERE = Path(__file__).resolve().parents[1]  # the package

ISAS = ("avx512vnni", "avx512", "avx2", "portable")


@cache
def cpu() -> ModuleType:
    """The CPU module. Raises ``ImportError`` that says why it is missing and what to do."""
    wish = os.environ.get("SELFMENT_ISA", "")
    if wish and wish not in ISAS:
        raise ImportError(f"SELFMENT_ISA must be one of {', '.join(ISAS)}: got {wish!r}")
    try:
        return import_module("selfment._cpu")
    except ImportError as error:
        if hidden := _hidden():
            raise ImportError(
                f"selfment's CPU module cannot be loaded ({error}): the source tree in "
                f"{_HERE.parent}, where it is not built, hides the package that is installed in "
                f"{hidden}; start `selfment`, or `torchrun --no-python selfment`, or Python in "
                "another folder"
            ) from error
        raise ImportError(
            f"selfment's CPU module cannot be loaded ({error}); build it with "
            f"`pip install .` in selfment's source tree, with this Python: {sys.executable}"
        ) from error


def _hidden() -> Path | None:
    """Returns the folder of another selfment with a built module that this one hides, or None."""
    if PathFinder.find_spec("_cpu", [str(_HERE)]) is not None:
        return None
    for folder in sys.path:
        other = Path(folder).resolve() / "selfment"
        if other != _HERE and PathFinder.find_spec("_cpu", [str(other)]) is not None:
            return other.parent
    return None


@cache
def cuda() -> ModuleType:
    """The CUDA module. Raises ``ImportError`` that says why it is missing and what to do."""
    try:
        return import_module("selfment._cuda")
    except ImportError as error:
        raise ImportError(
            f"selfment's CUDA module cannot be loaded ({error}); it is built where nvcc is found: "
            "install a CUDA toolkit and run `SELFMENT_CUDA=1 pip install .` in selfment's source "
            f"tree, with this Python, {sys.executable}, or move features to the CPU with .cpu()"
        ) from error


def threads() -> int:
    """As many threads as torch is set to use: ``torch.set_num_threads``."""
    return torch.get_num_threads()


def cuda_obstacles() -> list[str]:
    """Every reason why labels cannot be computed on CUDA; none where they can."""
    reasons = []
    try:
        cuda()
    except ImportError as error:
        reasons.append(str(error))
    if not torch.cuda.is_available():
        reasons.append("torch sees no CUDA device")
    return reasons


def cuda_state() -> str:
    """Returns the CUDA state in words: available, or the reason why not."""
    reasons = cuda_obstacles()
    if reasons:
        return f"no: {'; '.join(reasons)}"
    return f"yes: torch sees {torch.cuda.get_device_name(0)}"


def info() -> dict[str, str]:
    """Returns versions, instruction set and CUDA state, as `selfment info` prints them."""
    wish = os.environ.get("SELFMENT_ISA", "")
    try:
        isa = cpu().isa() + (f" (SELFMENT_ISA={wish})" if wish else "")
    except ImportError as error:
        isa = f"none: {error}"
    return {
        "selfment": _version("selfment"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "numpy": _version("numpy"),
        "instruction set": isa,
        "threads": str(threads()),
        "CUDA kernels": cuda_state(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
