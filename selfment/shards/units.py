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
from .stores import Store
from .unit_record import stamps

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

    def units(self, earlier: Iterable[Unit] = (), block: int = BLOCK) -> list[Unit]:
        """The shards, and groups of up to ``block`` image files in their order.

        ``earlier``: units of earlier runs. Groups whose files are all there and unchanged remain
        units, so that new files do not shift the groups.
        """
        require("block", block, "an integer >= 1", isinstance(block, int) and block >= 1)
        return [*self.shards, *_groups(self.images, block, earlier)]


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


def _groups(images: Sequence[SourceFile], block: int, earlier: Iterable[Unit]) -> list[Unit]:
    """Returns earlier units whose files are unchanged, and the other files in new units."""
    keys = dict(zip(images, image_keys([file.name for file in images]), strict=True))
    current = dict(zip(stamps(images), images, strict=True))
    units = []
    for unit in earlier:
        if unit.kind == "files" and all(stamp in current for stamp in stamps(unit.files)):
            # The files may have been moved to another place together.
            files = tuple(current.pop(stamp) for stamp in stamps(unit.files))
            units.append(Unit(unit.name, "files", files, tuple(keys[file] for file in files)))
    left = list(current.values())
    for start in range(0, len(left), block):
        files = tuple(left[start : start + block])
        digest = hashlib.sha256(json.dumps(stamps(files)).encode()).hexdigest()
        units.append(
            Unit(f"files-{digest[:12]}", "files", files, tuple(keys[file] for file in files))
        )
    return units
