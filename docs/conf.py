"""Sphinx: the pages of this folder and the docstrings of every public module.

``sphinx-build -W docs build/docs`` fails at a reference into selfment that leads nowhere, and at a
public name that is not on a page, as it is where it lacks a docstring.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

import selfment

project = "selfment"
version = release = selfment.__version__
html_theme = "furo"

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# A page for each module whose name has no underscore in front.
apidoc_modules = [{"path": str(Path(selfment.__file__).parent), "destination": "api"}]
apidoc_separate_modules = True
apidoc_module_first = True
apidoc_automodule_options = {"members", "show-inheritance"}  # and nothing without a docstring
autodoc_member_order = "bysource"

# A class that the package names has two pages, and annotations name it without its module.
suppress_warnings = ["ref.python"]

# Those of other libraries, and of modules without a page, are left as text.
nitpicky = True
_TYPE_VARIABLE = r"selfment\.jobs\.spec\.Result"
nitpick_ignore_regex = [("py:.*", rf"(?!selfment\b).*|selfment\._.*|{_TYPE_VARIABLE}")]


def escape_bars(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Outside literals, | is part of a norm, and starts no substitution."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[index] = "``".join(parts)


def public_names() -> set[str]:
    """Of what callers may use: all that the package names, and what each public module defines."""
    names = {f"selfment.{name}" for name in selfment.__all__ if name != "reference"}
    for found in pkgutil.walk_packages(selfment.__path__, "selfment."):
        if any(part.startswith("_") for part in found.name.split(".")):
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            ours = inspect.isclass(value) or inspect.isroutine(value)
            if ours and not name.startswith("_") and value.__module__ == module.__name__:
                names.add(f"{module.__name__}.{name}")
    return names


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that is on no page."""
    for name in sorted(public_names() - set(env.get_domain("py").objects)):
        getLogger(__name__).warning("%s is on no page: it needs a docstring", name)


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("env-check-consistency", check_public_names)
