"""Published data sets: where the images and masks of a download lie, and whether any is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..images.suffixes import image_suffixes, suffix_of
from ..util.words import count_of

_SHOWN = 3  # names in a sentence on files that are missing
_JPEG = (".jpg", ".jpeg")
_BESIDE = "beside one of the same name in a lossless format"


_Split = Callable[[Sequence[Path]], tuple[Sequence[Path], Sequence[Path]]]


@dataclass(frozen=True)
class Known:
    """The size and the folders of a published data set."""

    count: int  #: of the images, each with a mask
    #: Folders of images and masks, relative to the folder of all data sets; the official one first.
    layouts: tuple[tuple[str, str], ...]
    prefix: str = ""  #: of the names of the data set's files, where others lie among them
    shared: bool = False  #: whether the folder of masks holds masks of other images, too


@dataclass(frozen=True)
class ImagePair:
    """An image and its mask, files of the same stem."""

    stem: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class DataSet:
    """The files of a data set on this disk."""

    name: str
    count: int | None  #: of images in the whole data set; None for a folder of one's own
    images_folder: Path  #: that holds the images, or should
    masks_folder: Path  #: that holds the masks, or should
    images: tuple[Path, ...] = ()  #: in the order of their stems
    pairs: tuple[ImagePair, ...] = ()  #: in the order of their stems
    without_mask: tuple[str, ...] = ()  #: names of images
    without_image: tuple[
        str, ...
    ] = ()  #: names of masks; none where masks of other data sets lie among them
    ambiguous: tuple[str, ...] = ()  #: names of files with the stem of another file
    stray: tuple[str, ...] = ()  #: names of JPEG masks that have a lossless twin
    there: bool = True  #: whether the folder of images or the folder of masks exists

    @property
    def problems(self) -> list[str]:
        """The reasons why the data set is not whole, one phrase each."""
        problems = self.image_problems
        if self.there and not self.masks_folder.is_dir():
            problems.append(f"no masks, which belong in {self.masks_folder}")
        elif self.without_mask:
            problems.append(_phrase(self.without_mask, "image", "without a mask"))
        if self.count is None and self.without_image:
            problems.append(_phrase(self.without_image, "mask", "without an image"))
        return problems

    @property
    def image_problems(self) -> list[str]:
        """The :attr:`problems` that matter to a user of the images alone."""
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
            problems.append(_phrase(self.ambiguous, "file", "with the stem of another"))
        return problems

    @property
    def notes(self) -> list[str]:
        """Oddities that do no harm, one phrase each."""
        notes = []
        if self.stray:
            notes.append(stray_note(self.stray))
        if self.count is not None and self.without_image:
            notes.append(_phrase(self.without_image, "mask", "without an image"))
        return notes

    @property
    def whole(self) -> bool:
        """True if there is no problem."""
        return not self.problems


def _layouts(
    name: str, folders: Sequence[tuple[str, str]], bases: Iterable[str] = ()
) -> tuple[tuple[str, str], ...]:
    """All combinations of folders; an archive is often unpacked into a folder of its own name."""
    layouts: dict[tuple[str, str], None] = {}
    for base in (*bases, name, f"TestDataset/{name}"):
        nested = f"{base}/{base.rpartition('/')[2]}"
        for parent, (images, masks) in product((base, nested), (*folders, *_USUAL)):
            layouts[os.path.join(parent, images), os.path.join(parent, masks)] = None
    return tuple(layouts)


# Case does not matter in these names.
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

    If several layouts exist, the result is one that is whole, or else the one with the most pairs.
    Folder names match in any case, and links are followed. Files match by their stems; folders are
    not searched recursively. The result says which files are missing. Raises ``ValueError`` for an
    unknown name and for a ``root`` that is no folder.
    """
    if name not in KNOWN:
        raise ValueError(f"`name` must be one of {', '.join(KNOWN)}: got {name!r}")
    return _find(name, _Tree(root))


def find_folder(folder: str | os.PathLike[str], name: str | None = None) -> DataSet:
    """One's own data set: ``folder/images`` and ``folder/masks``, matched by their stems.

    ``name``: the name of the folder by default. Raises ``ValueError`` if ``folder`` is no folder.
    """
    tree = _Tree(folder)
    images, masks = map(tree.find, _OWN)
    name = name or os.path.basename(os.path.abspath(tree.root))
    if images is None and masks is None:
        return DataSet(name, None, tree.root / _OWN[0], tree.root / _OWN[1], there=False)
    return _read(name, None, images or tree.root / _OWN[0], masks or tree.root / _OWN[1])


def find_masks(folder: str | os.PathLike[str]) -> DataSet | None:
    """The published data set whose masks lie in ``folder``, by the layouts of :data:`KNOWN`.

    None if the folder belongs to no known data set, or if images of the data set are missing.
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
                data_set = _read(name, known, images, masks)
                if len(data_set.images) == known.count:
                    return data_set
    return None


def split_stray(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Splits masks of one stem into those that count and JPEG masks that have a lossless twin.

    DUTS-TR is published with three such JPEG masks.
    """
    lossless = [file for file in files if file.suffix.lower() not in _JPEG]
    if not lossless:
        return list(files), []
    return lossless, [file for file in files if file.suffix.lower() in _JPEG]


def stray_note(names: Sequence[str]) -> str:
    """A phrase on the masks that :func:`split_stray` does not count."""
    return _phrase(names, "mask", f"in JPEG {_BESIDE}, not used")


def check(root: str | os.PathLike[str]) -> list[DataSet]:
    """All known data sets, also those that are missing in ``root``, and one's own data sets there.

    One's own are ``root`` itself and the folders in it that hold ``images`` and ``masks`` and
    belong to no known data set. Raises ``ValueError`` if ``root`` is no folder.
    """
    tree = _Tree(root)
    data_sets = [_find(name, tree) for name in KNOWN]
    used = {os.path.realpath(one.images_folder) for one in data_sets if one.there}
    for folder in (tree.root, *(tree.root / name for name in tree.names(tree.root))):
        try:
            own = find_folder(folder)
        except PermissionError:  # as a file system's own "lost+found"
            continue
        folders = own.images_folder, own.masks_folder
        if all(map(Path.is_dir, folders)) and os.path.realpath(folders[0]) not in used:
            data_sets.append(own)
    return data_sets


def describe(sets: Sequence[DataSet], root: str | os.PathLike[str]) -> list[str]:
    """A line for each data set of :func:`check`; paths are relative to ``root``."""
    width = max(len(one.name) for one in sets)
    lines = []
    for one in sets:
        images, masks = (
            os.path.relpath(folder, root) for folder in (one.images_folder, one.masks_folder)
        )
        if not one.there:
            state = f"missing: {one.count:,} images belong in {images}, their masks in {masks}"
        elif one.whole:
            pairs = count_of(len(one.pairs), "pair")
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
        """The folder at a path below the root; a name in the same case goes before another case."""
        folder = self.root
        for part in Path(relative).parts:
            names = self.names(folder)
            same = [name for name in names if name.lower() == part.lower()]
            if not same:
                return None
            folder = folder / (part if part in same else same[0])
        return folder


def _find(name: str, tree: _Tree) -> DataSet:
    known = KNOWN[name]
    best: DataSet | None = None
    for layout in known.layouts:
        images, masks = map(tree.find, layout)
        if images is None and masks is None:
            continue
        folders = images or tree.root / layout[0], masks or tree.root / layout[1]
        data_set = _read(name, known, *folders)
        if data_set.whole:
            return data_set
        if best is None or len(data_set.pairs) > len(best.pairs):
            best = data_set
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
        pairs=tuple(ImagePair(s, of_images[s], of_masks[s]) for s in stems if s in of_masks),
        without_mask=tuple(of_images[s].name for s in stems if s not in of_masks),
        without_image=() if known and known.shared else tuple(of_masks[s].name for s in lonely),
        ambiguous=(*twin_images, *twin_masks),
        stray=tuple(stray),
    )


def _files(
    folder: Path, prefix: str, split: _Split | None = None
) -> tuple[dict[str, Path], list[str], list[str]]:
    """The images in a folder by their stems, then names: of their twins, and of uncounted files.

    A twin has the stem of an earlier file. ``split`` says which files of one stem count.
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
    by_stem: dict[str, list[Path]] = {}
    for name in names:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(folder / name)
    images: dict[str, Path] = {}
    twins: list[str] = []
    uncounted: list[str] = []
    for stem, files in by_stem.items():
        counted, rest = split(files) if split else (files, [])
        images[stem] = counted[0]
        twins += [file.name for file in counted[1:]]
        uncounted += [file.name for file in rest]
    return images, twins, uncounted


def _phrase(names: Sequence[str], noun: str, rest: str) -> str:
    """A phrase such as "2 images without a mask: a.jpg, b.jpg"."""
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{len(names):,} {noun}{'s' if len(names) > 1 else ''} {rest}: {shown}{more}"
