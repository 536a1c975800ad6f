"""Optional libraries: where one is missing, one sentence says which extra brings it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_extra(module: str, library: str, extra: str, what: str) -> Any:
    """The module of an optional library.

    Args:
        module: its name, as in an import statement.
        library: what people call it.
        extra: the extra of selfment that brings it.
        what: what needs it, as the subject of a sentence.

    Raises:
        ImportError: it is missing.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{what} needs {library}, which is missing here: pip install "selfment[{extra}]"'
        ) from error
