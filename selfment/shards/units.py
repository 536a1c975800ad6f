"""Units of work: the shards and the groups of image files that the inputs of a run name."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..core.options import require
from ..images.search import unique_names
from ..util.files import printable
from .keys import image_keys, key_error
from .rows import SourceFile, Unit
from .shard_search import ShardSearch, kind_of, stem_of
from .sources import Sources
from .store import Store
from .unit_record import stamp, stamps

BLOCK = 1000  # image files of a unit


@dataclass(frozen=True)
class Inputs:
    """The shards and the image files that the inputs of a run name."""

    shards: Sequence[Unit]  #: a unit for each shard
    images: Sequence[SourceFile]
    sources: Sources  #: their file systems

    @property
    def kinds(self) -> set[str]:
        """The kinds of their units."""
        return {unit.kind for unit in self.shards} | ({"files"} if self.images else set())

    def units(self, earlier: Sequence[Unit] = (), block: int = BLOCK) -> list[Unit]:
        """The shards, and groups of up to ``block`` image files in their order.

        ``earlier``: units of earlier runs. Groups remain units with the files that are still there,
        so that new files do not shift the groups, and changed ones cost no other. Raises
        ``OSError``.
        """
        require("block", block, "an integer >= 1", isinstance(block, int) and block >= 1)
        return [*self.shards, *_groups(self.images, block, earlier, self.sources)]


def find_inputs(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], out: Store | None = None
) -> Inputs:
    """Lists the shards and image files of inputs.

    An input is a path or a URL: a file, a folder (searched recursively), or a glob with ``*``,
    ``**``, ``?``, ``[...]``, ``{0000..0123}`` and ``{a,b}``. A folder has shards or images, not
    both. A shard is a unit, named by its path without the suffix, which it keeps where others
    have the same path without it. Names are relative to the common parent of the inputs, as in
    :func:`selfment.images.find_images`.

    Hidden files, and what is in the folder ``out`` and in folders of earlier results, are left out.
    The number of other files that are left out is printed on stderr, by suffix and reason.

    Args:
        inputs: one input, or several.
        out: the output folder.

    Raises:
        ValueError: an input without a shard or an image, a missing file, inputs on several kinds
            of file systems, or an ``out`` that is itself searched.
        OSError: a folder cannot be listed.
        ImportError: PyArrow is needed and missing.
    """
    search = ShardSearch(Sources(), out)
    for value in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        search.add(os.fspath(value))
    if not search.files:
        raise ValueError("`inputs` must name at least one shard or image: got none")
    for sentence in search.sentences():
        print(printable(sentence), file=sys.stderr)
    files = _with_names(search.files, search.roots)
    shards = [file for file in files if kind_of(file.name) is not None]
    images = [file for file in files if kind_of(file.name) is None]
    names = unique_names([stem_of(file.name) for file in shards], [file.name for file in shards])
    for name, file in zip(names, shards, strict=True):
        if (wrong := key_error(name)) is not None:
            raise ValueError(f"`inputs` must have names that results can have: {file.uri}: {wrong}")
    units = [
        Unit(name, kind_of(file.name) or "", (file,))
        for name, file in zip(names, shards, strict=True)
    ]
    return Inputs(units, images, search.sources)


def _with_names(files: Sequence[SourceFile], roots: Sequence[str]) -> list[SourceFile]:
    """Returns the files with names relative to the common parent of the inputs."""
    schemes = sorted({root.partition("://")[0] if "://" in root else "paths" for root in roots})
    if len(schemes) > 1:
        raise ValueError(
            f"`inputs` must be on one kind of file system: got {' and '.join(schemes)}"
        )
    base = posixpath.commonpath([_path(root) for root in roots])
    return [replace(file, name=_path(file.uri)[len(base) :].lstrip("/")) for file in files]


def _path(uri: str) -> str:
    """Returns an absolute path of a path or URL, with the bucket or host as its first folder."""
    return "/" + uri.partition("://")[2] if "://" in uri else uri


def _groups(
    images: Sequence[SourceFile], block: int, earlier: Sequence[Unit], sources: Sources
) -> list[Unit]:
    """Returns earlier units with the files that they have now, and the other files in new units."""
    keys = dict(zip(images, image_keys([file.name for file in images]), strict=True))
    by_stamp = dict(zip(stamps(images), images, strict=True))
    by_place = {(file.uri, file.name): file for file in images}
    kept: dict[Unit, dict[int, SourceFile]] = {}  # the files by their places in the unit
    for unit in earlier:
        missing = [file for file in unit.files if stamp(file) not in by_stamp]
        gone = [file for file in missing if (file.uri, file.name) not in by_place]
        # Files that exist, but are not among the inputs, keep their results.
        if unit.kind == "files" and len(gone) < len(unit.files) and not sources.any_exists(gone):
            kept[unit] = {}
    left = dict.fromkeys(images)
    # Files that have not changed come first: they may have been moved to another place together.
    for is_changed in (False, True):
        for unit, members in kept.items():
            for place, file in enumerate(unit.files):
                now = by_stamp.get(stamp(file))
                if is_changed:
                    now = by_place.get((file.uri, file.name))
                if now in left and place not in members:
                    members[place] = now
                    del left[now]
    groups = {
        unit.name: tuple(members[place] for place in sorted(members))
        for unit, members in kept.items()
        if members
    }
    rest, names = list(left), {unit.name for unit in earlier}
    for start in range(0, len(rest), block):
        files = tuple(rest[start : start + block])
        name = f"files-{hashlib.sha256(json.dumps(stamps(files)).encode()).hexdigest()[:12]}"
        while name in names:  # of a unit whose files have changed since
            name += "-"
        groups[name] = files
    return [
        Unit(name, "files", files, tuple(keys[file] for file in files))
        for name, files in groups.items()
    ]
