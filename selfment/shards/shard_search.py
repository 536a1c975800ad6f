"""Searches folders and globs on any file system for shards and image files."""

from __future__ import annotations

import fnmatch
import json
import os
import posixpath
import re
from collections.abc import Collection, Iterator, Sequence

from ..images.search import first_names
from ..images.suffixes import image_suffixes, left_out, suffix_of
from ..util.files import RealPaths
from ..util.lines import without_checksum
from .formats import SUFFIXES
from .rows import SourceFile
from .sources import Sources
from .store import Store, answering
from .stores import LocalStore
from .unit_record import RECORDS

#: Suffixes of shards, and their kinds.
SHARDS = {
    **{".tar": "tar", ".tar.gz": "tar", ".tgz": "tar"},
    **{".parquet": "parquet", ".arrow": "arrow"},
}
_RESULTS = re.compile(r"(labels|predictions)(-rank\d+)?\.jsonl")  # of runs over folders
_CACHE = re.compile(r"cache-.*\.arrow")  # what `datasets` keeps beside its tables
_MAGIC = re.compile(r"[*?[]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST = 1 << 20  # bytes of a line


def kind_of(name: str) -> str | None:
    """Returns the kind of a shard by its suffix, "tar", "parquet" or "arrow"; None for others."""
    name = name.lower()
    return next((kind for suffix, kind in SHARDS.items() if name.endswith(suffix)), None)


def stem_of(name: str) -> str:
    """Returns the name of a shard without its suffix."""
    suffix = next(suffix for suffix in SHARDS if name.lower().endswith(suffix))
    return name[: -len(suffix)]


class ShardSearch:
    """A search through several inputs; its files are in order, each once."""

    def __init__(self, sources: Sources, out: Store | None) -> None:
        """``out``: a folder that is left out. The file systems are added to ``sources``."""
        self.sources = sources
        self.roots: list[str] = []  #: the folders that names are relative to, paths or URLs
        self._files: dict[str, SourceFile] = {}  # by path, without links to folders, or URL
        self._real_out = None if out is None else _real(out.text)
        self._real_path = RealPaths()
        self._suffixes = image_suffixes()
        self._left_out: dict[str, None] = {}
        self._working: dict[str, None] = {}  # files that programs keep beside their shards
        self._descriptions: dict[str, None] = {}  # tables on the images of a tar file or a folder
        self._results: dict[str, None] = {}  # folders of results

    def add(self, value: str) -> None:
        """Searches one input; raises ``ValueError`` if it has no files, and ``OSError``."""
        if not value:
            raise ValueError("`inputs` must be paths or URLs: got ''")
        store, name = self.sources.add("inputs", value)
        name = name.rstrip("/")
        with answering("inputs", store):
            files = self._at(store, [name])[0]
            folder = name if store.is_folder(name) else posixpath.dirname(name)
        if files is None:
            files = self._matches(store, name)
            folder = _literal_folder(name)
        text = store.text_of(name)
        files = self._without_descriptions(files)
        if not files:
            raise ValueError(f"{text!r} has no shard and no image{self._because()}")
        shards = sum(kind_of(file.name) is not None for file in files)
        if 0 < shards < len(files):
            raise ValueError(
                f"{text!r} has both shards, {shards:,}, and images, {len(files) - shards:,}: "
                "name them separately, or by globs"
            )
        self.roots.append(store.text_of(folder))
        for file in files:
            is_local = isinstance(store, LocalStore)
            self._files.setdefault(self._real_path(file.uri) if is_local else file.uri, file)

    @property
    def files(self) -> list[SourceFile]:
        """The files, each once, also if several links lead to its folder."""
        return list(self._files.values())

    def sentences(self) -> list[str]:
        """Returns what was left out, and why."""
        sentences = []
        if self._results:
            sentences.append(
                f"{_count(self._results, 'folder with results of selfment')} not searched: "
                f"{first_names(self._results)}"
            )
        if self._working:
            sentences.append(
                f"{_count(self._working, 'shard')} left out, which are caches or unfinished by "
                f"their names: {first_names(self._working)}"
            )
        if self._descriptions:
            sentences.append(
                f"{_count(self._descriptions, 'table')} left out because a tar file or folder of "
                f"images has the same name: {first_names(self._descriptions)}"
            )
        if sentence := left_out(self._left_out, self._suffixes):
            sentences.append(sentence)
        return sentences

    def _at(self, store: Store, names: Sequence[str]) -> list[list[SourceFile] | None]:
        """Returns for each name the file, or the files in the folder; None if there is neither."""
        found: list[list[SourceFile] | None] = []
        for name, stat in zip(names, store.stat(names), strict=True):
            if stat is not None:
                found.append([SourceFile(store.text_of(name), name, *stat)])
            else:
                found.append(self._in_folder(store, name) if store.is_folder(name) else None)
        return found

    def _matches(self, store: Store, pattern: str) -> list[SourceFile]:
        """Returns what matches a pattern; each alternative in braces must match something."""
        alternatives = list(_alternatives(pattern))
        literal = [name for name in alternatives if not _MAGIC.search(name)]
        found = dict(zip(literal, self._at(store, literal), strict=True))
        missing = [store.text_of(name) for name in literal if found[name] is None]
        if others := [text for text in missing if "://" not in text and os.path.lexists(text)]:
            raise ValueError(f"neither a file nor a folder: {first_names(others)}")
        if missing:
            raise ValueError(f"no such file or folder: {first_names(missing)}")
        files = []
        for name in alternatives:
            matched = found.get(name)
            if matched is None:
                found_files = self._expanded(store, "", name.split("/"))
                matched = sorted(found_files, key=lambda file: file.name)
            if not matched:
                raise ValueError(
                    f"no shard or image matches {store.text_of(name)!r}{self._because()}"
                )
            files += matched
        return files

    def _expanded(self, store: Store, folder: str, parts: Sequence[str]) -> Iterator[SourceFile]:
        """Yields the files that match the rest of a glob; folders that match are searched."""
        part, *rest = parts
        if part == "**":
            start = len(folder) + 1 if folder else 0
            for file in self._in_folder(store, folder):
                if _fits(file.name[start:].split("/"), parts):
                    yield file
            return
        folders = [posixpath.join(folder, part)]
        if _MAGIC.search(part):
            inside = store.folders(folder)
            folders = [path for path in inside if _fits_part(posixpath.basename(path), part)]
        elif not rest:
            yield from self._at(store, folders)[0] or ()
            return
        for path in folders:
            yield from self._expanded(store, path, rest) if rest else self._in_folder(store, path)
        if not rest:
            self._check_searched(store, folder)
            for file in store.list(folder, recursive=False):
                is_match = _fits_part(posixpath.basename(file.name), part)
                if is_match and self._accepts(file, folder):
                    yield file

    def _in_folder(self, store: Store, folder: str) -> list[SourceFile]:
        """Returns the shards and images under a folder."""
        self._check_searched(store, folder)
        files = store.list(folder)
        results = self._folders_of_results(store, files)
        accepted = []
        for file in files:
            inside = next((parent for parent in _parents(file.name) if parent in results), None)
            if inside is not None:
                self._results[store.text_of(inside)] = None
            elif not self._is_in_out(store, file.name) and self._accepts(file, folder):
                accepted.append(file)
        return accepted

    def _folders_of_results(self, store: Store, files: Sequence[SourceFile]) -> set[str]:
        """Returns the folders among the parents of files that have records of a run."""
        names = {file.name for file in files}
        results = set()
        for name in names:
            folder, base = posixpath.split(name)
            before, found, unit = f"/{name}".rpartition(f"/{RECORDS}/")
            if found and unit.endswith(".json"):
                shard = posixpath.join(before[1:], unit.removesuffix(".json"))
                if any(shard + suffix in names for suffix in SUFFIXES):
                    results.add(before[1:])
            elif _RESULTS.fullmatch(base) and _has_record(store, name):
                results.add(folder)
        return results

    def _accepts(self, file: SourceFile, folder: str) -> bool:
        """Returns whether a file in a folder is an input; otherwise remembers it, unless hidden."""
        parts = file.name.removeprefix(folder).strip("/").split("/")
        if any(part.startswith(".") for part in parts):
            return False
        if kind_of(file.name) is not None:
            if not any(part.startswith("_") for part in parts) and not _CACHE.fullmatch(parts[-1]):
                return True
            self._working[file.uri] = None
            return False
        if suffix_of(file.name) in self._suffixes:
            return True
        self._left_out[file.uri] = None
        return False

    def _without_descriptions(self, files: Sequence[SourceFile]) -> list[SourceFile]:
        """Returns the files without tables such as img2dataset writes beside its shards.

        ``00000.parquet`` describes the images in ``00000.tar`` or in the folder ``00000``.
        """
        described: set[str] = set()
        for file in files:
            kind = kind_of(file.name)
            if kind is None:
                described.update(_parents(file.name))
            elif kind == "tar":
                described.add(stem_of(file.name))
        kept = []
        for file in files:
            if kind_of(file.name) == "parquet" and stem_of(file.name) in described:
                self._descriptions[file.uri] = None
            else:
                kept.append(file)
        return kept

    def _is_in_out(self, store: Store, name: str) -> bool:
        if self._real_out is None:
            return False
        text = store.text_of(name)
        real = self._real_path(text) if isinstance(store, LocalStore) else text
        return real.startswith(f"{self._real_out}/")

    def _check_searched(self, store: Store, folder: str) -> None:
        if _real(store.text_of(folder)) == self._real_out:
            raise ValueError(
                f"`out` must not be a folder that is searched for images: got {self._real_out!r}"
            )

    def _because(self) -> str:
        sentences = self.sentences()
        return f": {'; '.join(sentences)}" if sentences else ""


def _real(text: str) -> str:
    """Returns a path without symbolic links; a URL as it is."""
    return text if "://" in text else os.path.realpath(text)


def _has_record(store: Store, name: str) -> bool:
    """Returns whether a file begins with a record of selfment."""
    try:
        with store.open(name) as file:
            line = file.readline(_LONGEST).decode(errors="replace").rstrip("\n")
        content = without_checksum(line)
        return content is not None and "settings" in json.loads(content)
    except (OSError, ValueError):
        return False


def _alternatives(pattern: str) -> Iterator[str]:
    """Yields the patterns that one with ``{000..123}`` and ``{a,b}`` stands for, as in a shell."""
    match = next(filter(_choices, _BRACES.finditer(pattern)), None)
    if match is None:
        yield pattern
        return
    for choice in _choices(match):
        yield from _alternatives(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(match: re.Match[str]) -> list[str]:
    """Returns what may stand for braces; empty if they are part of a name."""
    bounds = _RANGE.fullmatch(match[1])
    if bounds is None:
        return match[1].split(",") if "," in match[1] else []
    first, last = bounds.groups()
    digits = len(first) if first.startswith("0") else 1
    return [f"{number:0{digits}d}" for number in range(int(first), int(last) + 1)]


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Returns whether a path, or a folder above it, matches the parts of a glob."""
    if not parts:
        return True
    if parts[0] == "**":
        return any(_fits(names[start:], parts[1:]) for start in range(len(names)))
    return bool(names) and _fits_part(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _fits_part(name: str, part: str) -> bool:
    """Returns whether a name matches a part of a glob; a hidden one matches only a dot."""
    is_hidden = name.startswith(".") and not part.startswith(".")
    return not is_hidden and fnmatch.fnmatchcase(name, part)


def _literal_folder(pattern: str) -> str:
    """Returns the folder above the first part of a pattern that is no plain name."""
    parts = pattern.split("/")
    plain = 0
    while not _MAGIC.search(parts[plain]) and "{" not in parts[plain]:
        plain += 1
    return "/".join(parts[:plain])


def _parents(name: str) -> Iterator[str]:
    """Yields the folders above a file, the outermost first, which is the root of the store."""
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(len(parts)))


def _count(names: Collection[str], kind: str) -> str:
    noun, space, more = kind.partition(" ")
    many = len(names) > 1
    return f"{len(names):,} {noun}{'s' if many else ''}{space}{more} {'were' if many else 'was'}"
