"""Data sets as they are downloaded: where their images and masks lie, and whether all are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..images.suffixes import image_suffixes, suffix_of

_SHOWN = 3  # names in a sentence on files that are missing
_JPEG = (".jpg", ".jpeg")
_BESIDE = "beside one of the same name without its losses"


_Split = Callable[[Sequence[Path]], tuple[Sequence[Path], Sequence[Path]]]


@dataclass(frozen=True)
class Known:
    """What is known of a published data set."""

    count: int  #: of its images, each with a mask
    #: Folders of images and masks, relative to the folder of all data sets; the official one first.
    layouts: tuple[tuple[str, str], ...]
    prefix: str = ""  #: of the names of the files that belong to it
    shared: bool = False  #: whether the masks of other images lie among its own


@dataclass(frozen=True)
class Pair:
    """An image and its mask, files of the same stem."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class DataSet:
    """What was found of a data set."""

    name: str
    count: int | None  #: of images that it must have; None for a folder of one's own
    images_folder: Path  #: where the images are, or belong
    masks_folder: Path  #: where the masks are, or belong
    images: tuple[Path, ...] = ()  #: in the order of their stems
    pairs: tuple[Pair, ...] = ()  #: in the order of their stems
    without_mask: tuple[str, ...] = ()  #: names of images
    without_image: tuple[str, ...] = ()  #: names of masks, less those of other data sets
    ambiguous: tuple[str, ...] = ()  #: names of files that share their stem with another's
    stray: tuple[str, ...] = ()  #: names of masks in JPEG that are there without loss as well
    there: bool = True  #: whether any of its folders is

    @property
    def problems(self) -> list[str]:
        """What keeps the data set from being whole, one phrase each; empty if nothing does."""
        problems = self.image_problems
        if self.there and not self.masks_folder.is_dir():
            problems.append(f"no masks, which belong in {self.masks_folder}")
        elif self.without_mask:
            problems.append(_named(self.without_mask, "image", "without a mask"))
        if self.count is None and self.without_image:
            problems.append(_named(self.without_image, "mask", "without an image"))
        return problems

    @property
    def image_problems(self) -> list[str]:
        """Those of :attr:`problems` that matter where masks do not."""
        problems = []
        if not self.there:
            return [
                f"missing: its images belong in {self.images_folder}, its masks in "
                f"{self.masks_folder}"
            ]
        if not self.images_folder.is_dir():
            problems.append(f"no images, which belong in {self.images_folder}")
        elif self.count is not None and len(self.images) != self.count:
            problems.append(f"{len(self.images):,} of {self.count:,} images")
        elif not self.images:
            problems.append(f"no image in {self.images_folder}")
        if self.ambiguous:
            problems.append(_named(self.ambiguous, "file", "with the stem of another"))
        return problems

    @property
    def notes(self) -> list[str]:
        """What is odd and yet harmless, one phrase each."""
        notes = []
        if self.stray:
            notes.append(stray_note(self.stray))
        if self.count is not None and self.without_image:
            notes.append(_named(self.without_image, "mask", "without an image"))
        return notes

    @property
    def whole(self) -> bool:
        """Whether all is there that must be."""
        return not self.problems


def _layouts(
    name: str, folders: Sequence[tuple[str, str]], bases: Iterable[str] = ()
) -> tuple[tuple[str, str], ...]:
    """All combinations; archives are often unpacked into a folder of their own name."""
    found: dict[tuple[str, str], None] = {}
    for base in (*bases, name, f"TestDataset/{name}"):
        nested = f"{base}/{base.rpartition('/')[2]}"
        for parent, (images, masks) in product((base, nested), (*folders, *_USUAL)):
            found[os.path.join(parent, images), os.path.join(parent, masks)] = None
    return tuple(found)


# Upper and lower case are alike in all of these.
_USUAL = (
    *(("Imgs", "GT"), ("images", "masks"), ("Image", "Mask"), ("images", "gt"), ("Image", "GT")),
    *(("img", "gt"), ("images", "gts"), ("imgs", "masks")),
)
_OMRON = (
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ("DUT-OMRON-image/DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ("DUT-OMRON-image/DUT-OMRON-image", "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG"),
)
_PASCAL = (("Imgs", "Gt"), ("datasets/imgs/pascal", "datasets/masks/pascal"))
_CAMO = ("CAMO-V.1.0-CVIU2019", "CAMO-V.1.0-CVIU2019/CAMO-V.1.0-CVIU2019")

#: The published data sets by name.
KNOWN: dict[str, Known] = {
    "ECSSD": Known(1000, _layouts("ECSSD", [("images", "ground_truth_mask")])),
    "DUTS-TE": Known(
        5019,
        _layouts(
            "DUTS-TE", [("DUTS-TE-Image", "DUTS-TE-Mask")], ["DUTS-TE", "DUTS/DUTS-TE", "DUTS/Test"]
        ),
    ),
    "DUTS-TR": Known(
        10553,
        _layouts(
            "DUTS-TR",
            [("DUTS-TR-Image", "DUTS-TR-Mask")],
            ["DUTS-TR", "DUTS/DUTS-TR", "DUTS/Train"],
        ),
    ),
    "HKU-IS": Known(4447, _layouts("HKU-IS", [("imgs", "gt")])),
    "PASCAL-S": Known(
        850,
        (*_layouts("PASCAL-S", _PASCAL, ["PASCAL-S", "pascals", "salObj"]), _PASCAL[1]),
    ),
    "DUT-OMRON": Known(
        5168,
        (*_layouts("DUT-OMRON", _OMRON, ["DUT-OMRON", "DUTOMRON", "DUT_OMRON"]), *_OMRON),
    ),
    "CHAMELEON": Known(76, _layouts("CHAMELEON", [("Imgs", "GT")])),
    "CAMO": Known(250, _layouts("CAMO", [("Images/Test", "GT")], _CAMO), shared=True),
    "COD10K": Known(
        2026,
        _layouts(
            "COD10K",
            [("Image", "GT_Object")],
            ["COD10K-v3/Test", "COD10K-v3/COD10K-v3/Test", "COD10K/Test", "COD10K/COD10K-v3/Test"],
        ),
        prefix="COD10K-CAM",
    ),
    "NC4K": Known(4121, _layouts("NC4K", [("Imgs", "GT")])),
}

_OWN = ("images", "masks")


def find_set(name: str, root: str | os.PathLike[str]) -> DataSet:
    """The data set ``name`` of :data:`KNOWN` in ``root``, the folder of all data sets.

    Of several layouts that are there, one that is whole, or else the one with the most pairs.
    Folder names match in any case; links are followed; files match by their stems, and a folder is
    not searched recursively. What is missing is in the result. Raises ``ValueError`` for an unknown
    name and a ``root`` that is no folder.
    """
    if name not in KNOWN:
        raise ValueError(f"`name` must be one of {', '.join(KNOWN)}: got {name!r}")
    return _find(name, _Tree(root))


def find_folder(folder: str | os.PathLike[str], name: str | None = None) -> DataSet:
    """One's own data set: ``folder/images`` and ``folder/masks``, of the same stems.

    ``name``: the folder's by default. Raises ``ValueError`` where ``folder`` is none.
    """
    tree = _Tree(folder)
    images, masks = map(tree.find, _OWN)
    name = name or os.path.basename(os.path.abspath(tree.root))
    if images is None and masks is None:
        return DataSet(name, None, tree.root / _OWN[0], tree.root / _OWN[1], there=False)
    return _read(name, None, images or tree.root / _OWN[0], masks or tree.root / _OWN[1])


def find_masks(folder: str | os.PathLike[str]) -> DataSet | None:
    """The published data set whose masks lie in ``folder``, by the layouts of :data:`KNOWN`.

    None where the folder is that of no data set, or not all of its images lie where they belong.
    """
    masks = Path(os.path.abspath(folder))
    parts = [part.lower() for part in masks.parts]
    for name, known in KNOWN.items():
        for layout in known.layouts:
            below = [part.lower() for part in Path(layout[1]).parts]
            if parts[-len(below) :] != below:
                continue
            try:
                images = _Tree(masks.parents[len(below) - 1]).find(layout[0])
            except PermissionError:  # a folder above may be searched by its owner alone
                continue
            if images is not None:
                found = _read(name, known, images, masks)
                if len(found.images) == known.count:
                    return found
    return None


def split_stray(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Of masks of one stem those that count, and those in JPEG beside one without its losses.

    DUTS-TR is published with three of the latter.
    """
    lossless = [file for file in files if file.suffix.lower() not in _JPEG]
    if not lossless:
        return list(files), []
    return lossless, [file for file in files if file.suffix.lower() in _JPEG]


def stray_note(names: Sequence[str]) -> str:
    """A phrase on masks that :func:`split_stray` has put aside."""
    return _named(names, "mask", f"in JPEG {_BESIDE}, not used")


def check(root: str | os.PathLike[str]) -> list[DataSet]:
    """All known data sets, and those of one's own, in ``root``; what is missing as well.

    One's own are ``root`` itself and the folders in it that hold ``images`` and ``masks`` and are
    of no known data set. Raises ``ValueError`` where ``root`` is no folder.
    """
    tree = _Tree(root)
    found = [_find(name, tree) for name in KNOWN]
    used = {os.path.realpath(one.images_folder) for one in found if one.there}
    for folder in (tree.root, *(tree.root / name for name in tree.names(tree.root))):
        try:
            own = find_folder(folder)
        except PermissionError:  # as a file system's own "lost+found"
            continue
        folders = own.images_folder, own.masks_folder
        if all(map(Path.is_dir, folders)) and os.path.realpath(folders[0]) not in used:
            found.append(own)
    return found


def describe(sets: Sequence[DataSet], root: str | os.PathLike[str]) -> list[str]:
    """Lines for people on what :func:`check` found; paths are relative to ``root``."""
    width = max(len(one.name) for one in sets)
    lines = []
    for one in sets:
        images, masks = (
            os.path.relpath(folder, root) for folder in (one.images_folder, one.masks_folder)
        )
        if not one.there:
            state = f"missing: {one.count:,} images belong in {images}, their masks in {masks}"
        elif one.whole:
            pairs = "1 pair" if len(one.pairs) == 1 else f"{len(one.pairs):,} pairs"
            state = f"ok: {pairs} in {images} and {masks}"
        else:
            problems = "; ".join(one.problems).replace(os.path.join(Path(root), ""), "")
            state = f"NOT WHOLE: {problems}; looked in {images} and {masks}"
        notes = f" (note: {'; '.join(one.notes)})" if one.there and one.notes else ""
        lines.append(f"{one.name:<{width}}  {state}{notes}")
    return lines


class _Tree:
    """Finds folders by their names in any case; each folder is listed once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"`root` must be a folder of data sets: got {os.fspath(root)!r}")
        self._names: dict[Path, list[str]] = {}

    def names(self, folder: Path) -> list[str]:
        """The names of the folders in ``folder``, in order, hidden ones left out."""
        if folder not in self._names:
            with os.scandir(folder) as entries:
                names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
            self._names[folder] = sorted(names)
        return self._names[folder]

    def find(self, relative: str) -> Path | None:
        """The folder at a path below the root, by its exact name rather than by another case."""
        folder = self.root
        for part in Path(relative).parts:
            names = self.names(folder)
            alike = [name for name in names if name.lower() == part.lower()]
            if not alike:
                return None
            folder = folder / (part if part in alike else alike[0])
        return folder


def _find(name: str, tree: _Tree) -> DataSet:
    known = KNOWN[name]
    best: DataSet | None = None
    for layout in known.layouts:
        images, masks = map(tree.find, layout)
        if images is None and masks is None:
            continue
        folders = images or tree.root / layout[0], masks or tree.root / layout[1]
        found = _read(name, known, *folders)
        if found.whole:
            return found
        if best is None or len(found.pairs) > len(best.pairs):
            best = found
    if best is not None:
        return best
    images, masks = (tree.root / folder for folder in known.layouts[0])
    return DataSet(name, known.count, images, masks, there=False)


def _read(name: str, known: Known | None, images: Path, masks: Path) -> DataSet:
    prefix = known.prefix if known else ""
    of_images, twin_images, _ = _files(images, prefix)
    of_masks, twin_masks, stray = _files(masks, prefix, split_stray)
    stems = sorted(of_images)
    lonely = sorted(of_masks.keys() - of_images.keys())
    return DataSet(
        name,
        known.count if known else None,
        images,
        masks,
        images=tuple(of_images[stem] for stem in stems),
        pairs=tuple(Pair(s, of_images[s], of_masks[s]) for s in stems if s in of_masks),
        without_mask=tuple(of_images[s].name for s in stems if s not in of_masks),
        without_image=() if known and known.shared else tuple(of_masks[s].name for s in lonely),
        ambiguous=(*twin_images, *twin_masks),
        stray=tuple(stray),
    )


def _files(
    folder: Path, prefix: str, split: _Split | None = None
) -> tuple[dict[str, Path], list[str], list[str]]:
    """The images in a folder by their stems, the names of those whose stem is taken, and of others.

    ``split`` says which files of one stem count; the others are those.
    """
    if not folder.is_dir():
        return {}, [], []
    suffixes = image_suffixes()
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.startswith(prefix)
            and not entry.name.startswith(".")
            and suffix_of(entry.name) in suffixes
            and entry.is_file()
        )
    alike: dict[str, list[Path]] = {}
    for name in names:
        alike.setdefault(os.path.splitext(name)[0], []).append(folder / name)
    found: dict[str, Path] = {}
    twins: list[str] = []
    others: list[str] = []
    for stem, files in alike.items():
        counted, aside = split(files) if split else (files, [])
        found[stem] = counted[0]
        twins += [file.name for file in counted[1:]]
        others += [file.name for file in aside]
    return found, twins, others


def _named(names: Sequence[str], noun: str, rest: str) -> str:
    """A phrase such as "2 images without a mask: a.jpg, b.jpg"."""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{len(names):,} {noun}{'s' if len(names) > 1 else ''} {rest}: {shown}{more}"
