"""Configures Sphinx for the pages of this folder and the docstrings of every public module.

``sphinx-build -W docs build/docs`` runs the notebooks (``tutorial.md`` and ``gallery.md``) and
fails for an error in one of their cells, for a broken reference into selfment, and for a public
name that is not on a page, for example because it lacks a docstring. Each name in the package's
namespace must also be in the reference by task, ``api.md``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

import selfment

project = "selfment"
version = release = selfment.__version__
html_theme = "furo"

html_title = f"selfment {version}"
html_show_copyright = False

extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# Notebooks are pages with a kernel in their header. Each runs in a temporary folder.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 120  # seconds for a cell
nb_merge_streams = True

# There is a page for each module whose name does not start with an underscore.
apidoc_modules = [{"path": str(Path(selfment.__file__).parent), "destination": "api"}]
apidoc_separate_modules = True
apidoc_module_first = True
apidoc_automodule_options = {"members", "show-inheritance"}  # only names with a docstring
autodoc_member_order = "bysource"

# A class in the package's namespace is on two pages, and annotations name it without its module.
suppress_warnings = ["ref.python"]

# For links to a heading of another page.
myst_heading_anchors = 3

# References to other libraries, and to private modules and classes, remain text.
nitpicky = True
_TYPE_VARIABLES = r"selfment\.jobs\.(spec\.Result|cluster\.(Unit|Result)|ranks\.Summary)"
nitpick_ignore_regex = [("py:.*", rf"(?!selfment\b).*|selfment\.(.+\.)?_.*|{_TYPE_VARIABLES}")]


def escape_bars(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Escapes each | outside of literals: it is part of a norm and starts no substitution."""
    for index, line in enumerate(lines):
        parts = line.split("``")
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[index] = "``".join(parts)


def names_of_package() -> set[str]:
    """Returns the names in the package's namespace; a module has the name of its page."""
    modules = {"reference": "core.reference"}
    return {f"selfment.{modules.get(name, name)}" for name in selfment.__all__}


def public_names() -> set[str]:
    """Returns the names in the package's namespace and the definitions of each public module."""
    names = names_of_package()
    for info in pkgutil.walk_packages(selfment.__path__, "selfment."):
        if any(part.startswith("_") for part in info.name.split(".")):
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            ours = inspect.isclass(value) or inspect.isroutine(value)
            if ours and not name.startswith("_") and value.__module__ == module.__name__:
                names.add(f"{module.__name__}.{name}")
    return names


def check_public_names(app: Sphinx, env: BuildEnvironment) -> None:
    """Warns of every public name that is not on a page, or not in the reference by task."""
    documented = env.get_domain("py")
    for name in sorted(public_names() - {*documented.objects, *documented.modules}):
        getLogger(__name__).warning("%s is on no page: it needs a docstring", name)
    linked = {target["reftarget"] for target in env.get_doctree("api").findall(pending_xref)}
    for name in sorted(names_of_package() - linked):
        getLogger(__name__).warning("%s is not in docs/api.md", name)


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("env-check-consistency", check_public_names)
