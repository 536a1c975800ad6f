"""Files of patch features as inputs of :func:`selfment.jobs.label.label_images`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from ..backbones.files import SUFFIXES
from ..images.load import ImageEntries, ImageEntry, find_images
from ..util.distributed import world
from ..util.files import nfc, printable


def find_features(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    images: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
) -> ImageEntries:
    """Lists the files of features in files, folders and globs, with the images that they belong to.

    The number of files without their partner is printed on stderr.

    Args:
        inputs: as :func:`selfment.images.find_images` takes them.
        images: a folder of images. The features of ``sub/a.jpg`` are in ``sub/a.npy``, or in
            ``sub/a.jpg.npy``, where images differ in their suffix alone; both paths are relative to
            the folder that is searched. None: there are no images, and the masks have the size of
            the grid.
        out: a folder of results, which is left out of the search.

    Returns:
        An entry for each file of features without ``images``; otherwise one for each image that has
        a file of features. ``unlisted`` also has the files of features whose image is missing.

    Raises:
        ValueError: as ``find_images`` raises; two files of features of one image; and where no
            image has a file of features.
    """
    files = find_images(inputs, out=out, suffixes=SUFFIXES)
    if images is None:
        return files
    pictures = find_images(images, out=out)
    wanted: dict[str, ImageEntry] = {}
    for entry in pictures:
        # A mask has the stem of its image or, where several share it, the whole name of the image.
        wanted[nfc(entry.mask_name.removesuffix(".png"))] = entry
        wanted.setdefault(nfc(entry.name), entry)
    found: dict[str, ImageEntry] = {}
    lonely: list[str] = []
    for file in files:
        image = wanted.get(nfc(str(PurePosixPath(file.name).with_suffix(""))))
        if image is None:
            lonely.append(file.name)
            continue
        if image.name in found:
            raise ValueError(
                f"`inputs` must hold one file of features for each image: got {file.path.name} and "
                f"{os.path.basename(found[image.name].features or '')} for {image.name}"
            )
        found[image.name] = replace(image, features=file.path)
    if not found:
        raise ValueError(
            f"`images` must hold images named after the files of features: got {files[0].name!r} "
            f"and the like for {pictures[0].name!r} and the like"
        )
    kinds = {
        "files of features without an image": lonely,
        "images without features": [e.name for e in pictures if e.name not in found],
    }
    for kind, names in kinds.items():
        if names and world()[0] == 0:
            print(printable(f"{kind}: {len(names):,}, as {names[0]}"), file=sys.stderr)
    return ImageEntries(
        (found[entry.name] for entry in pictures if entry.name in found),
        (*files.unlisted, *pictures.unlisted, *lonely),
    )
