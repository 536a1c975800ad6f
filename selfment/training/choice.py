"""The choice of the images that a head is trained on, and what became of the others."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core import options as params
from ..evaluation.tables import counted
from ..images.load import ImageEntry
from ..util.files import nfc
from .masks import MaskFolder

_SHOWN = 3  # at most so many names in an error


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts the images of a training, and those that are left out, by reason."""

    images: int  #: that were trained on
    failed: int = 0  #: that could not be read or labelled
    empty: int = 0  #: trained on with a label without any foreground, though not rejected
    rejected: int = 0  #: that the labeler rejected, and that were trained on as background
    dropped: int = 0  #: that the labeler rejected, and that were left out
    unlabelled: int = 0  #: without a mask in the folder of labels
    unchosen: int = 0  #: that ``only`` does not name
    surplus: int = 0  #: that ``max_images`` left out

    def sentences(self) -> list[str]:
        """Lines on the images that were left out or have no foreground; none if all are usual."""
        left_out = {
            "rejected": self.dropped,
            "without a label": self.unlabelled,
            "not named by --only": self.unchosen,
            "more than --max-images": self.surplus,
        }
        background = {"rejected by the labeler": self.rejected, "with an empty label": self.empty}
        lines = {"images left out": left_out, "images trained on as all background": background}
        return [
            f"{title}: {', '.join(f'{count:,} {kind}' for kind, count in counts.items() if count)}"
            for title, counts in lines.items()
            if any(counts.values())
        ]


@dataclass(frozen=True)
class Choice:
    """The images to train on, before any is read."""

    images: list[ImageEntry]
    masks: list[Path] | None  #: of the images, if there is a folder of them
    unlabelled: list[str]  #: the names of images without a mask
    unchosen: int  #: images that ``only`` does not name
    surplus: int  #: images that ``max_images`` left out


def choose(
    images: Sequence[ImageEntry],
    only: Collection[str] | None,
    folder: MaskFolder | None,
    most: int,
    seed: int,
    rejected_last: bool = False,
) -> Choice:
    """Chooses from ``images``, in their order, those that have a name in ``only`` and a mask.

    Args:
        images: all images.
        only: names; None stands for all.
        folder: the masks, if they exist already.
        most: of more images, ``seed`` chooses so many.
        seed: of the random numbers.
        rejected_last: choose images that the records of the folder call rejected only where
            others do not suffice, as rejected ones will be left out.

    Raises:
        ValueError: a name in ``only`` that no image has, no image is left, or chosen images have
            equal names.
    """
    named = list(images) if only is None else _named(images, only, folder)
    masks = [] if folder is None else folder.masks(named)
    labelled, unlabelled = [], []
    for index, entry in enumerate(named):
        if folder is None or masks[index] is not None:
            labelled.append(index)
        else:
            unlabelled.append(entry.name)
    if not labelled and folder is not None:
        raise ValueError(
            f"`labels` must hold a mask of an image: {folder.path} has none for "
            f"{counted(unlabelled, 'image')}"
        )
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(len(labelled), generator=generator, device="cpu").tolist()
    if rejected_last and folder is not None:
        rejected = [bool(folder.record(named[index]).get("rejected")) for index in labelled]
        order.sort(key=lambda place: rejected[place])  # a stable sort
    chosen = [labelled[place] for place in sorted(order[:most])]
    entries = [named[index] for index in chosen]
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("`images` must have a `name` each: got the same more than once")
    return Choice(
        entries,
        None if folder is None else [mask for i in chosen if (mask := masks[i]) is not None],
        unlabelled=unlabelled,
        unchosen=len(images) - len(named),
        surplus=len(labelled) - len(chosen),
    )


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """The names of images in a UTF-8 text file, one on each line.

    Empty lines count for nothing, nor do lines that begin with ``#``. Raises ``ValueError`` if the
    file cannot be read or names no image.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(
            f"`only` must be a text file of names: got {os.fspath(path)!r} ({reason})"
        ) from error
    # Not splitlines(), which also splits at characters that names of files may have.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    names = [line for line in lines if line and not line.startswith("#")]
    rule = "a text file that names an image at least"
    params.require("only", os.fspath(path), rule, bool(names))
    return names


def _named(
    images: Sequence[ImageEntry], only: Collection[str], folder: MaskFolder | None
) -> list[ImageEntry]:
    """The images with a name in ``only``: their own, or the one in the records of the folder."""
    params.require("only", only, "names of images", len(only) > 0 and not isinstance(only, str))
    wanted = set(map(nfc, only))
    named, known = [], set()
    for entry in images:
        recorded = folder.record(entry).get("image") if folder else None
        names = {nfc(name) for name in (entry.name, recorded) if name} & wanted
        if names:
            named.append(entry)
            known |= names
    if unknown := [name for name in only if nfc(name) not in known]:
        others = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        raise ValueError(
            "`only` must hold names of images relative to the folder that is searched, as "
            f"{images[0].name!r}: no image is named "
            f"{', '.join(map(repr, unknown[:_SHOWN]))}{others}"
        )
    return named
