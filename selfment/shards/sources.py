"""The file systems of the inputs of a run."""

from __future__ import annotations

from collections.abc import Iterable

from .rows import SourceFile
from .store import Store
from .stores import open_store
from .urls import split_root


class Sources:
    """The file systems of a run's inputs, which open the files; it can be pickled."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def add(self, argument: str, text: str) -> tuple[Store, str]:
        """Returns the root store of a path or URL, and the name of the path on it.

        ``argument``: its name, for errors. Raises ``ValueError``, also if the same root was added
        with other credentials or another query.
        """
        uri, name = split_root(argument, text)
        store = open_store(argument, uri)
        known = self._stores.setdefault(store.text, store)
        if known.uri != store.uri:
            raise ValueError(f"`{argument}` must reach {store.text} by one query and credentials")
        return known, name

    def locate(self, file: SourceFile) -> tuple[Store, str]:
        """Returns the root store of a file, and the name of the file on it."""
        root, name = split_root("inputs", file.uri)
        return self._stores[root], name

    def any_exists(self, files: Iterable[SourceFile]) -> bool:
        """Returns whether one of the files exists, or lies where the run has no input.

        Raises ``OSError``.
        """
        for file in files:
            try:
                store, name = self.locate(file)
            except KeyError:
                return True
            if store.stat([name]) != [None]:
                return True
        return False
