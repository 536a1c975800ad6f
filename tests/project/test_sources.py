"""What belongs to the sources and what is installed."""

from __future__ import annotations

import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest

import selfment
from helpers import processes
from helpers.folders import ROOT
from selfment.core import native as _native

VERSION = (ROOT / "selfment/VERSION").read_text().strip()
AARCH64 = "aarch64-linux-gnu-g++"


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", VERSION)
    versions = (selfment.__version__, _native.cpu().__version__, metadata.version("selfment"))
    assert versions == (VERSION,) * 3


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() == "aarch64", reason="the ordinary build is for arm64 here")
@pytest.mark.skipif(shutil.which(AARCH64) is None, reason=f"needs {AARCH64}")
def test_portable_sources_compile_for_arm64(tmp_path: Path) -> None:
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi", "-Werror"]
    sources = [
        str(path) for path in sorted(ROOT.glob("csrc/cpu/*.cpp")) if "simd_avx" not in path.name
    ]
    done = processes.run(
        [AARCH64, *flags, "-c", *sources],
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.o"))) == len(sources)
