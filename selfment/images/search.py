"""The search for files: what folders and globs hold, what is left out, and what is said of it."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ..util.distributed import world
from ..util.files import RealPaths, printable
from ..util.results import record_file, recorded_files
from .suffixes import is_taken, left_out

_SHOWN = 3  # names in a sentence


class Search:
    """What several inputs hold; the files are absolute paths, in order, each once."""

    def __init__(
        self, suffixes: Collection[str], out: str | os.PathLike[str] | None, results: bool
    ) -> None:
        """``out``: a folder that is left out. ``results``: take results of runs, too."""
        self.suffixes = suffixes
        self.roots: list[str] = []  #: the folders that names are relative to
        self.files: dict[str, None] = {}
        self.unlisted: list[str] = []  #: folders that may not be listed
        self._skip = None if out is None else os.path.realpath(out)
        self._takes_results = results
        self._left: dict[str, None] = {}
        self._folders: dict[str, None] = {}  # that hold records
        self._results: dict[str, None] = {}  # files that records name
        self._real = RealPaths()

    def add(self, value: str) -> None:
        """Searches one input. Raises ``ValueError`` where it names nothing."""
        if os.path.isfile(value):
            path = os.path.abspath(value)
            self._keep([os.path.dirname(path)], [path])
        elif os.path.isdir(value):
            folder = os.path.abspath(value)
            files = list(self._walk(folder, self._recorded(folder)))
            if not files:
                raise ValueError(f"the folder {value!r} holds no image{self._why()}")
            self._keep([folder], files)
        elif glob.has_magic(value):
            self._glob(value)
        elif os.path.exists(value):
            raise ValueError(f"neither a file nor a folder: {value!r}")
        else:
            raise ValueError(f"no such file or folder: {value!r}")

    def tell(self) -> None:
        """Says on stderr what was left out, and why; under torchrun the first process does."""
        if world()[0] > 0:
            return
        sentences = []
        if self._folders:
            many = len(self._folders) > 1
            folders = f"{len(self._folders):,} folders" if many else "1 folder"
            sentences.append(
                f"{folders} with results of selfment {'were' if many else 'was'} not searched: "
                f"{_some(self._folders)}"
            )
        if self._results:
            many = len(self._results) > 1
            files = f"{len(self._results):,} files were" if many else "1 file was"
            sentences.append(
                f"{files} left out, which records beside them name as results: "
                f"{_some(self._results)}"
            )
        if sentence := left_out((p for p in self._left if p not in self.files), self.suffixes):
            sentences.append(sentence)
        if self.unlisted:
            sentences.append(f"cannot list {_some(self.unlisted)}: what is in there is left out")
        for sentence in sentences:
            print(printable(sentence), file=sys.stderr)

    def _keep(self, roots: Sequence[str], files: Sequence[str]) -> None:
        self.roots += roots
        self.files |= dict.fromkeys(files)

    def _glob(self, value: str) -> None:
        base = os.path.abspath(value)
        while glob.has_magic(base):
            base = os.path.dirname(base)
        self._check_searched(base)
        recorded = self._recorded(base)
        roots, files = [], []
        for path in sorted({os.path.abspath(match) for match in self._matches(value)}):
            if self._skip is not None and _inside(os.path.realpath(path), self._skip):
                continue
            if self._in_results(path, base):
                continue
            if os.path.isdir(path):
                inside = list(self._walk(path, recorded))
                files += inside
                roots += [path] if inside else []
            elif os.path.isfile(path) and self._takes(path, recorded):
                files.append(path)
                roots.append(os.path.dirname(path))
        if not files:
            raise ValueError(f"no image matches {value!r}{self._why()}")
        self._keep(roots, files)

    def _matches(self, pattern: str) -> Iterator[str]:
        """What a glob matches; ``**`` does not follow links, which may lead in circles."""
        parts = pattern.split(os.sep)
        if "**" not in parts:
            yield from glob.iglob(pattern)
            return
        place = parts.index("**")
        rest = parts[place + 1 :]
        for root in glob.iglob(os.sep.join([*parts[:place], ""]) if place else os.curdir + os.sep):
            if not rest:  # folders are searched whole
                yield root
                continue
            for parent, folders, _ in os.walk(root, onerror=self._cannot_list):
                folders[:] = [name for name in folders if not name.startswith(".")]
                yield from self._matches(os.path.join(glob.escape(parent), *rest))

    def _walk(self, folder: str, recorded: Collection[str]) -> Iterator[str]:
        """The files under a folder; ``recorded``: the results among them, by their real paths."""
        self._check_searched(folder)
        for parent, folders, files in os.walk(folder, onerror=self._cannot_list):
            if parent != folder and self._holds_results(parent, files):
                folders.clear()
                continue
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".")
                and os.path.realpath(os.path.join(parent, name)) != self._skip
            )
            for name in sorted(files):
                path = os.path.join(parent, name)
                if name.startswith(".") or not os.path.isfile(path):
                    continue
                if self._takes(path, recorded):
                    yield path

    def _takes(self, path: str, recorded: Collection[str]) -> bool:
        if recorded and self._real(path) in recorded:
            self._results[path] = None
            return False
        if is_taken(path, self.suffixes):
            return True
        self._left[path] = None
        return False

    def _holds_results(self, folder: str, files: Collection[str]) -> bool:
        if self._takes_results or record_file(folder, files) is None:
            return False
        self._folders[folder] = None
        return True

    def _in_results(self, path: str, base: str) -> bool:
        """Whether a folder with records lies between a folder and what a glob has found in it."""
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        while folder != base and _inside(folder, base):
            try:
                if self._holds_results(folder, os.listdir(folder)):
                    return True
            except OSError as error:
                self._cannot_list(error)
            folder = os.path.dirname(folder)
        return False

    def _recorded(self, folder: str) -> set[str]:
        """The real paths of the results that records in a folder, and in those above it, name."""
        found: set[str] = set()
        if self._takes_results:
            return found
        real, above = os.path.realpath(folder), ""
        while real != above:
            above = real
            files = (os.path.join(above, *name.split("/")) for name in recorded_files(above))
            found |= {self._real(file) for file in files}
            real = os.path.dirname(above)
        return found

    def _check_searched(self, folder: str) -> None:
        if os.path.realpath(folder) == self._skip:
            raise ValueError(
                f"`out` must not be a folder that is searched for images: got {self._skip!r}"
            )

    def _cannot_list(self, error: OSError) -> None:
        folder = os.fspath(error.filename)
        if folder not in self.unlisted:
            self.unlisted.append(folder)

    def _why(self) -> str:
        """What to add to a sentence which says that nothing was found."""
        if self.unlisted:
            return f": {_some(self.unlisted)} may not be listed"
        if self._folders or self._results:
            return ": results of selfment are not taken for images"
        sentence = left_out(self._left, self.suffixes)
        return f": {sentence}" if sentence else ""


def mask_names(names: Sequence[str]) -> list[str]:
    """A unique ``.png`` path for each of the unique relative ``names``."""
    masks = [f"{os.path.splitext(name)[0]}.png" for name in names]
    # A suffix that is kept may meet another image's short name, "a.jpg.gif": repeat until it ends.
    while True:
        counts = Counter(masks)
        unique = [
            mask if counts[mask] == 1 else f"{name}.png"
            for mask, name in zip(masks, names, strict=True)
        ]
        if unique == masks:
            return masks
        masks = unique


def _some(names: Collection[str]) -> str:
    """The first names, and how many there are besides."""
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN:,} more"


def _inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
