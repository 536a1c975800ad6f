"""Files of patch features as inputs of :func:`selfment.jobs.label.label_images`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from PIL import Image
from torch import Tensor

from ..backbones.files import SUFFIXES, FeatureFiles
from ..images.load import ImageEntries, ImageEntry, find_images
from ..util.distributed import world
from ..util.files import nfc, printable
from .task import Task


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


def check_images(entries: Iterable[ImageEntry], **wanted: Any) -> None:
    """Raises ``ValueError`` if there are features without an image, and arguments that need it.

    ``wanted``: the arguments by name; they need the image unless they are false.
    """
    alone = next((entry for entry in entries if entry.features is None), None)
    name = next((name for name, value in wanted.items() if value), None)
    if alone is not None and name is not None:
        raise ValueError(
            f"`{name}` must come with the images of the features, --images FOLDER: got "
            f"{alone.path.name} alone"
        )


def read_features(task: Task, files: FeatureFiles) -> tuple[Tensor, Image.Image]:
    """Reads the features (d, h, w) of a task, and its image, which is black if there is none.

    A black image has the size of the grid. Raises ``ValueError``.
    """
    if task.features is not None:
        return files.read(task.features), task.read_picture()
    h, w = files.shape
    task.size = w, h
    return files.read(task.path), Image.new("RGB", task.size)
