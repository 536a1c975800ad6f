"""The direction of imports: a layer imports only layers before it, and its own modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from helpers.folders import ROOT

PACKAGE = ROOT / "selfment"
LAYERS = [
    {"util"},
    {"core"},
    {"backbones", "images"},
    {"methods", "compat"},
    {"models"},
    {"jobs", "evaluation"},
    {"shards", "training"},
    {"experiments"},
    {"cli"},
]
LEVEL = {folder: level for level, folders in enumerate(LAYERS) for folder in folders}
PRINTS = {"jobs", "shards", "training", "experiments", "cli"}
#: A search and a score print on standard error what they left out.
SAY_WHAT_IS_LEFT_OUT = {"images/search.py", "evaluation/pairs.py"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Yields folder, path and syntax tree of each module in a folder of the package."""
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        yield path.relative_to(PACKAGE).parts[0], path, ast.parse(path.read_text())


def imported(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields line and folder of each import from the package, also inside functions."""
    own = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = own[: len(own) - node.level + 1]
            target = [*above, *(node.module or "").split(".")]
            names = [target[0]] if target[0] else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names)


def test_every_folder_has_its_layer() -> None:
    assert {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} == set(LEVEL)


def test_no_import_points_upward() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for folder, path, tree in modules()
        for line, name in imported(path, tree)
        if name in LEVEL and name != folder and LEVEL[name] >= LEVEL[folder]
    ]
    assert not upward


def test_imports_inside_the_package_are_relative() -> None:
    """The test above sees no others."""
    absolute = []
    for _, path, tree in modules():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.partition(".")[0] == PACKAGE.name for name in names):
                absolute.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not absolute


def test_only_jobs_and_commands_print() -> None:
    printing = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for folder, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print" and folder not in PRINTS
        if path.relative_to(PACKAGE).as_posix() not in SAY_WHAT_IS_LEFT_OUT
    ]
    assert not printing


def test_only_commands_parse_arguments() -> None:
    parsing = [
        str(path.relative_to(PACKAGE))
        for folder, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import) and folder != "cli"
        if any(alias.name == "argparse" for alias in node.names)
    ]
    assert not parsing


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_files_and_functions_are_short() -> None:
    """A file has at most 400 lines; a function at most 60, without signature and docstring."""
    files = [
        path
        for folder in ("selfment", "tests", "benchmarks")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    long = [f"{path.relative_to(ROOT)}" for path in files if path.read_text().count("\n") > 400]
    for _, path, tree in modules():
        for function in functions(tree):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            if body and function.body[-1].end_lineno - body[0].lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}: {function.name}")
    assert not long


def test_arguments_are_described() -> None:
    """The docstring of a public function with more than five arguments has a list of them."""
    undescribed = [
        f"{path.relative_to(ROOT)}: {function.name}"
        for _, path, tree in modules()
        for function in functions(tree)
        if not function.name.startswith("_") or function.name == "__init__"
        if "Args:" not in (ast.get_docstring(function) or "")
        for arguments in [
            [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        ]
        if len([argument for argument in arguments if argument.arg not in ("self", "cls")]) > 5
    ]
    assert not undescribed
