"""Fixtures: the photographs to test on, where they are; the CUDA module on emulated grids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def outside_the_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands that tests start import the installed package, not the folder of sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Real photographs: $SELFMENT_DATA, or a folder shared/data beside the repository."""
    folder = Path(os.environ.get("SELFMENT_DATA") or ROOT.parent / "shared" / "data")
    found = sorted(folder.glob("*/images/*.jpg"))
    if not found:
        pytest.skip(f"no photographs in {folder}/*/images; set SELFMENT_DATA to a folder that has")
    return found


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA module, which runs its grids on the host; $SELFMENT_EMULATED_FLAGS: more flags."""
    import emulated

    if emulated.compiler() is None:
        pytest.skip("no C++ compiler: neither $CXX nor c++")
    flags = os.environ.get("SELFMENT_EMULATED_FLAGS", "").split()
    return emulated.load(emulated.build(tmp_path_factory.mktemp("emulated"), flags))
