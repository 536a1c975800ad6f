"""Optional libraries: if one is missing, one sentence names the extra that installs it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_extra(module: str, library: str, extra: str, what: str) -> Any:
    """Imports and returns the module of an optional library.

    Args:
        module: the module's name, as in an import statement.
        library: the library's usual name.
        extra: the extra of selfment that installs it.
        what: the feature that needs it, as the subject of a sentence.

    Raises:
        ImportError: the library is missing.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{what} needs {library}, which is missing here: pip install "selfment[{extra}]"'
        ) from error
