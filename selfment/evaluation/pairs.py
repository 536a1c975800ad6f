"""Predictions and the ground truths that they belong to, by the names of their files."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..images.load import find_images
from ..util.files import nfc
from ..util.results import recorded_files
from .datasets import split_stray
from .tables import counted

#: The ends of the names of predictions. Where a folder has both, the first one counts.
SUFFIXES = ("_saliency", "_mask")
_MASKS = ("gt", "labels")  # arguments that are folders of masks


@dataclass(frozen=True)
class FilePair:
    """A prediction, its ground truth, and the path that they share, without suffixes."""

    name: str
    prediction: Path
    truth: Path


def match(
    pred: str | os.PathLike[str],
    gt: str | os.PathLike[str],
    suffix: str | None = None,
    gt_suffix: str = "",
) -> tuple[list[FilePair], list[str], list[str]]:
    """The pairs of two folders; then the names of files without a partner.

    These are ground truths without a prediction, and predictions without a ground truth. All are
    sorted by name. Arguments and errors are those of :func:`evaluate`.
    """
    truths = by_stem(gt, "gt", gt_suffix)
    files = files_by_stem(pred, "pred")
    if suffix is None:
        suffix = find_suffix(_predicted(pred, files), truths)
    chosen = {
        stem[: len(stem) - len(suffix)]: _only(alike, "pred")
        for stem, alike in files.items()
        if stem.endswith(suffix) and not (suffix == "" and _is_suffixed(stem, truths))
    }
    pairs = [FilePair(name, chosen[name], truths[name]) for name in truths if name in chosen]
    missing = [name for name in truths if name not in chosen]
    extra = [f"{name}{suffix}" for name in chosen if name not in truths]
    if not pairs:
        raise ValueError(
            "`pred` must hold files named after those in `gt`"
            f"{f', with the suffix {suffix!r}' if suffix else ''}: got {next(iter(files))!r} and "
            f"the like for {next(iter(truths))!r} and the like"
        )
    return pairs, missing, extra


def by_stem(folder: str | os.PathLike[str], name: str, suffix: str = "") -> dict[str, Path]:
    """The images in a folder by their stems, sorted.

    A stem is the path in the folder without the suffix of the file, with ``/`` between its parts
    and composed letters (NFC).

    Args:
        folder: The folder to search.
        name: Of the argument in an error. For "gt" and "labels", JPEG masks with a lossless twin do
            not count.
        suffix: Only files whose stem ends so count; the keys are without it.

    Raises:
        ValueError: For a folder that does not exist, holds no such image, or two of one stem.
    """
    images = {
        stem.removesuffix(suffix): _only(split_stray(files)[0] if name in _MASKS else files, name)
        for stem, files in files_by_stem(folder, name).items()
        if stem.endswith(suffix)
    }
    if not images:
        raise ValueError(
            f"`{name}` must hold images whose names end in {suffix!r}: "
            f"got {os.fspath(folder)!r}, which holds none"
        )
    return images


def check_complete(
    missing: Sequence[str], extra: Sequence[str], argument: str = "pred", kind: str = "prediction"
) -> None:
    """Raises ``ValueError`` if there are names of files without a partner.

    ``missing``: of ground truths without a file of this ``kind``. ``extra``: the reverse.
    """
    problems = [
        f"{counted(missing, 'ground truth')} without a {kind}" if missing else "",
        f"{counted(extra, kind)} without a ground truth" if extra else "",
    ]
    if any(problems):
        raise ValueError(
            f"`{argument}` must hold one {kind} for each ground truth: "
            f"{' and '.join(filter(None, problems))}; to score the others, allow missing files"
        )


def files_by_stem(folder: str | os.PathLike[str], name: str) -> dict[str, list[Path]]:
    """The image files of a folder, by their paths below it without suffixes.

    Of the results of a run, these are the masks and the saliency of images.
    """
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise ValueError(f"`{name}` must be a folder that exists: got {os.fspath(folder)!r}")
    files: dict[str, list[Path]] = {}
    recorded = recorded_files(os.fspath(root)).items()
    others = {file for file, (_, field) in recorded if field in ("overlay", "fiedler", "link")}
    frames = tuple(f"{folder}/" for folder, (_, field) in recorded if field.endswith("_frames"))
    try:
        entries = find_images(root, results=True)
    except ValueError as error:
        raise ValueError(f"`{name}` must be a folder with images: {error}") from error
    for entry in entries:
        if entry.name in others or entry.name.startswith(frames):
            continue
        stem = nfc(entry.path.relative_to(root).with_suffix("").as_posix())
        files.setdefault(stem, []).append(entry.path)
    return {stem: files[stem] for stem in sorted(files)}


def _only(files: Sequence[Path], name: str) -> Path:
    """The one file of a stem; raises ``ValueError`` for several."""
    if len(files) > 1:
        first, second = files[:2]
        raise ValueError(
            f"`{name}` must hold one file of each stem: got {first.name} and {second.name} in "
            f"{first.parent}"
        )
    return files[0]


def _predicted(pred: str | os.PathLike[str], files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files without masks of labels, where the records name predictions beside such masks."""
    recorded = recorded_files(os.fspath(pred))
    masks = {
        PurePosixPath(file).with_suffix("") for file, (of, _) in recorded.items() if of == "labels"
    }
    if all(of == "labels" for of, _ in recorded.values()):
        return files
    left = {stem: alike for stem, alike in files.items() if PurePosixPath(stem) not in masks}
    if len(left) < len(files):
        print(
            f"{os.fspath(pred)} holds masks of labels and predictions: the predictions are scored, "
            "and the suffix '' names the masks",
            file=sys.stderr,
        )
    return left


def _is_suffixed(stem: str, truths: dict[str, Path]) -> bool:
    """True if the stem is that of a ground truth with one of the suffixes."""
    return stem not in truths and any(
        stem.endswith(suffix) and stem.removesuffix(suffix) in truths for suffix in SUFFIXES
    )


def find_suffix(
    files: Collection[str],
    stems: Container[str],
    name: str = "pred",
    order: Sequence[str] = SUFFIXES,
) -> str:
    """Finds out which suffix, "" for none, the stems of files have after those of their partners.

    Args:
        files: The stems of the files.
        stems: The stems of their partners.
        name: Of the argument in an error.
        order: The suffixes. If files have several, the first one counts.

    Raises:
        ValueError: For files with and without a suffix.
    """
    examples: dict[str, str] = {}
    for stem in files:
        if stem in stems:
            examples.setdefault("", stem)
            continue
        for suffix in order:
            if stem.endswith(suffix) and stem.removesuffix(suffix) in stems:
                examples.setdefault(suffix, stem)
    if "" in examples and len(examples) > 1:
        got = " and ".join(repr(stem) for stem in examples.values())
        kinds = "predictions" if name == "pred" else "masks"
        remedy = "name the `suffix` of those to score, '' for none"
        remedy = remedy if name == "pred" else "keep the others in another folder"
        raise ValueError(f"`{name}` must hold {kinds} of one kind: got {got}; {remedy}")
    return next((suffix for suffix in order if suffix in examples), "")
