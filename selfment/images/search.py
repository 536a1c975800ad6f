"""Searches folders and globs for files, and reports which files were left out, and why."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ..util.distributed import world
from ..util.files import RealPaths, printable
from ..util.results import record_file, recorded_files
from .suffixes import is_taken, is_video, left_out

_SHOWN = 3  # at most so many names in a sentence


class Search:
    """A search through several inputs; its files are absolute paths, in order, each once."""

    def __init__(
        self, suffixes: Collection[str], out: str | os.PathLike[str] | None, results: bool
    ) -> None:
        """``out``: a folder that is left out. ``results``: also find results of earlier runs."""
        self.suffixes = suffixes
        self.roots: list[str] = []  #: the folders that names are relative to
        self.files: dict[str, None] = {}
        self.unlisted: list[str] = []  #: folders that may not be listed
        self._skip = None if out is None else os.path.realpath(out)
        self._includes_results = results
        self._left_out: dict[str, None] = {}
        self._folders: dict[str, None] = {}  # folders with records, not searched
        self._results: dict[str, None] = {}  # files that records name, left out
        self._real = RealPaths()

    def add(self, value: str) -> None:
        """Searches one input; raises ``ValueError`` if it has no files."""
        if os.path.isfile(value):
            path = os.path.abspath(value)
            self._add_files([os.path.dirname(path)], [path])
        elif os.path.isdir(value):
            folder = os.path.abspath(value)
            files = list(self._walk(folder, self._recorded_results(folder)))
            if not files:
                kind = "image" if ".png" in self.suffixes else " or ".join(self.suffixes)
                raise ValueError(f"the folder {value!r} holds no {kind}{self._explanation()}")
            self._add_files([folder], files)
        elif glob.has_magic(value):
            self._glob(value)
        elif os.path.exists(value):
            raise ValueError(f"neither a file nor a folder: {value!r}")
        else:
            raise ValueError(f"no such file or folder: {value!r}")

    def report(self) -> None:
        """Prints on stderr what was left out, and why; under torchrun in the first process only."""
        if world()[0] > 0:
            return
        sentences = []
        if self._folders:
            many = len(self._folders) > 1
            folders = f"{len(self._folders):,} folders" if many else "1 folder"
            sentences.append(
                f"{folders} with results of selfment {'were' if many else 'was'} not searched: "
                f"{first_names(self._folders)}"
            )
        if self._results:
            many = len(self._results) > 1
            files = f"{len(self._results):,} files were" if many else "1 file was"
            sentences.append(
                f"{files} left out, which records beside them name as results: "
                f"{first_names(self._results)}"
            )
        not_found = (path for path in self._left_out if path not in self.files)
        if sentence := left_out(not_found, self.suffixes):
            sentences.append(sentence)
        if self.unlisted:
            folders = first_names(self.unlisted)
            sentences.append(f"cannot list {folders}: what is in there is left out")
        for sentence in sentences:
            print(printable(sentence), file=sys.stderr)

    def _add_files(self, roots: Sequence[str], files: Sequence[str]) -> None:
        self.roots += roots
        self.files |= dict.fromkeys(files)

    def _glob(self, value: str) -> None:
        base = os.path.abspath(value)
        while glob.has_magic(base):
            base = os.path.dirname(base)
        self._check_searched(base)
        recorded = self._recorded_results(base)
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
            elif os.path.isfile(path) and self._accepts(path, recorded):
                files.append(path)
                roots.append(os.path.dirname(path))
        if not files:
            raise ValueError(f"no image matches {value!r}{self._explanation()}")
        self._add_files(roots, files)

    def _matches(self, pattern: str) -> Iterator[str]:
        """Yields the matches of a glob; ``**`` does not follow links, which may form circles."""
        parts = pattern.split(os.sep)
        if "**" not in parts:
            yield from glob.iglob(pattern)
            return
        place = parts.index("**")
        rest = parts[place + 1 :]
        for root in glob.iglob(os.sep.join([*parts[:place], ""]) if place else os.curdir + os.sep):
            if not rest:  # the caller searches folders recursively
                yield root
                continue
            for parent, folders, _ in os.walk(root, onerror=self._cannot_list):
                folders[:] = [name for name in folders if not name.startswith(".")]
                yield from self._matches(os.path.join(glob.escape(parent), *rest))

    def _walk(self, folder: str, recorded: Collection[str]) -> Iterator[str]:
        """Yields the files under a folder; ``recorded`` are real paths of results to leave out."""
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
                if self._accepts(path, recorded):
                    yield path

    def _accepts(self, path: str, recorded: Collection[str]) -> bool:
        """Returns whether a file is in the search; otherwise remembers it for the report."""
        # A record names a folder of frames as a whole.
        real = self._real(path)
        if real in recorded or os.path.dirname(real) in recorded:
            self._results[path] = None
            return False
        if is_taken(path, self.suffixes):
            return True
        self._left_out[path] = None
        return False

    def _holds_results(self, folder: str, files: Collection[str]) -> bool:
        """Returns whether a folder has records of a run, and remembers it for the report."""
        if self._includes_results or record_file(folder, files) is None:
            return False
        self._folders[folder] = None
        return True

    def _in_results(self, path: str, base: str) -> bool:
        """Returns whether a folder with records is between ``base`` and a match of a glob in it."""
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        while folder != base and _inside(folder, base):
            try:
                if self._holds_results(folder, os.listdir(folder)):
                    return True
            except OSError as error:
                self._cannot_list(error)
            folder = os.path.dirname(folder)
        return False

    def _recorded_results(self, folder: str) -> set[str]:
        """Returns the real paths of the results named by records in a folder and all above it."""
        results: set[str] = set()
        if self._includes_results:
            return results
        real, above = os.path.realpath(folder), ""
        while real != above:
            above = real
            files = (os.path.join(above, *name.split("/")) for name in recorded_files(above))
            results |= {self._real(file) for file in files}
            real = os.path.dirname(above)
        return results

    def _check_searched(self, folder: str) -> None:
        if os.path.realpath(folder) == self._skip:
            raise ValueError(
                f"`out` must not be a folder that is searched for images: got {self._skip!r}"
            )

    def _cannot_list(self, error: OSError) -> None:
        folder = os.fspath(error.filename)
        if folder not in self.unlisted:
            self.unlisted.append(folder)

    def _explanation(self) -> str:
        """Returns the end of a sentence on an input without images: the reason, if known."""
        if self.unlisted:
            return f": {first_names(self.unlisted)} may not be listed"
        if self._folders or self._results:
            return ": results of selfment are not taken for images"
        sentence = left_out(self._left_out, self.suffixes)
        return f": {sentence}" if sentence else ""


def mask_names(names: Sequence[str]) -> list[str]:
    """Returns a unique path for each of the unique relative ``names``; ``.mp4`` for a video."""
    short = [f"{os.path.splitext(name)[0]}{_mask_suffix(name)}" for name in names]
    return unique_names(short, [f"{name}{_mask_suffix(name)}" for name in names])


def unique_names(short: Sequence[str], long: Sequence[str]) -> list[str]:
    """Returns the short name of each file, or the long one where others have the same short name.

    The long names must be unique.
    """
    names = list(short)
    # A long name, "a.jpg.png", may equal the short one of "a.jpg.gif": repeat until unique.
    while True:
        counts = Counter(names)
        unique = [
            name if counts[name] == 1 else full for name, full in zip(names, long, strict=True)
        ]
        if unique == names:
            return names
        names = unique


def _mask_suffix(name: str) -> str:
    return ".mp4" if is_video(name) else ".png"


def first_names(names: Collection[str]) -> str:
    """Returns the first names, and the number of the others."""
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN:,} more"


def _inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
