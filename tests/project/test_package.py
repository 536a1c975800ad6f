"""The package as a whole: what importing it imports, and the extras that messages name."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import selfment
from helpers import processes

PACKAGE = Path(selfment.__file__).parent
OPTIONAL = {
    *(
        "av",
        "cv2",
        "huggingface_hub",
        "kornia",
        "onnxruntime",
        "onnxscript",
        "py_sod_metrics",
        "pycocotools",
        "ray",
        "skimage",
    ),
    *("sklearn", "tensorboard", "timm", "torchvision"),
}


def brought_by(statement: str) -> set[str]:
    """Returns the third-party packages that ``statement`` imports in a new process, after torch."""
    script = f"""
import sys, torch
before = set(sys.modules)
{statement}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    command = [sys.executable, "-c", script]
    done = processes.run(
        command,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.slow
def test_importing_the_package_imports_torch_and_nothing_else() -> None:
    assert brought_by("import selfment") == {"selfment"}


@pytest.mark.slow
def test_what_only_some_uses_need_is_not_imported_before() -> None:
    found = brought_by(f"from selfment import cli, {', '.join(selfment.__all__)}")
    assert found & OPTIONAL == set()
    assert "PIL" in found


def test_names_that_are_loaded_when_used_are_listed() -> None:
    assert set(selfment.__all__) - set(dir(selfment)) == set()
    for name in selfment.__all__:
        assert getattr(selfment, name).__doc__, name


def test_every_extra_that_a_message_names_exists() -> None:
    named = set()
    for file in sorted(PACKAGE.glob("**/*.py")):
        text = file.read_text()
        named |= set(re.findall(r"selfment\[(\w+)\]", text))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_extra":
                named.add(ast.literal_eval(node.args[2]))
    assert {"eval", "samples", "video"} <= named
    assert named - {*metadata.metadata("selfment").get_all("Provides-Extra", [])} == set()
