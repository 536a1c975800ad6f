"""Reads saliency maps and ground truth from files.

These are not photographs: a value is a probability, the 0 or 1 of a mask, or the number of an
object, and is never brightened. The values in a file of ground truth decide what they mean:

- **Palettes** (VOC, DAVIS): if all colours in use are grey, they are grey levels. Otherwise the
  indices are numbers of objects, and 0 is the background. 255 beside other numbers is VOC's border
  of unknown pixels, and counts as background.
- **Two values**, 0 and any other: a mask.
- **More values**, of which one is at least half of white (nine tenths in 16 bits): grey levels, as
  in an antialiased mask. Files of more bits with the largest value 255 are read as 8 bits.
- **More values below a quarter of white**, or other integers of more than 8 bits: numbers of
  objects. It is ambiguous whether 1023, 4095 or 16383 is white or a number.
- **Colours**: a map of coloured objects on black, except in JPEG, whose losses hide what is black.
  Bright colours that differ from grey by no more than JPEG's losses are grey.
- **Transparency**: the mask, if all colours are the same; ignored, if it agrees with the colours.

Everything else is ambiguous, and refused. There is a note on every file that is not plain black and
white.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .load import ImageError, _reason, open_image, upright

Levels = npt.NDArray[np.uint8]

ROUNDING = 1e-6  #: values may leave [0, 1] by so much, by interpolation

_VOID = 255  # VOC's border, which belongs to no class
_NEARLY_GREY = 24  # largest difference of the channels of a grey image in JPEG
_WHITES = {1023: 10, 4095: 12, 16383: 14}  # the largest number of a depth -> the depth in bits
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class _UnclearError(ValueError):
    """The content of the file is ambiguous."""


def read_saliency(path: str | os.PathLike[str]) -> tuple[Levels, list[str]]:
    """Reads a saliency map or predicted mask: levels (H, W) uint8, 255 for 1, and notes.

    8-bit files are not changed; colours become their luminance, and transparency counts only if all
    colours are the same. White is 65,535 for integers of more bits, with a note if no value exceeds
    255, and 1 for floats. In a palette with colours, 0 is the background and any other number the
    foreground. Raises :class:`selfment.images.ImageError`.
    """
    return _read(path, _saliency)


def read_truth(path: str | os.PathLike[str]) -> tuple[Levels, list[str]]:
    """Reads ground truth: levels (H, W) uint8, 255 for foreground, and notes.

    Raises :class:`selfment.images.ImageError`, also for an ambiguous file.
    """
    return _read(path, _truth)


def truth_of(image: Image.Image | Levels) -> tuple[Levels, list[str]]:
    """As :func:`read_truth`, for Pillow's image or one channel (H, W) uint8.

    Raises ``ValueError`` if it is ambiguous.
    """
    notes: list[str] = []
    if isinstance(image, Image.Image):
        return _truth(upright(image, notes), notes), notes
    return _levels(image, 255, notes), notes


def saliency_of(picture: Image.Image) -> tuple[Levels, list[str]]:
    """As :func:`read_saliency`, for Pillow's image; raises ``ValueError``."""
    notes: list[str] = []
    return _saliency(upright(picture, notes), notes), notes


def _read(
    path: str | os.PathLike[str], decode: Callable[[Image.Image, list[str]], Levels]
) -> tuple[Levels, list[str]]:
    notes: list[str] = []
    try:
        with open_image(path) as opened:
            opened.load()
            return decode(upright(opened, notes), notes), notes
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise ImageError(f"cannot read {os.fspath(path)}: {_reason(error)}") from error


def _saliency(picture: Image.Image, notes: list[str]) -> Levels:
    if picture.mode == "P" and not _grey_palette(picture):
        notes.append("prediction of numbered objects, any number but 0 counts as foreground")
        return _binary(np.asarray(picture) > 0)
    if picture.mode not in _DEEP:
        opaque = _opaque(picture)
        alpha = _alpha(picture)
        if alpha is not None and _is_plain(opaque):
            notes.append("prediction in the transparency, its colours are all the same")
            return alpha
        return np.array(opaque.convert("L"), dtype=np.uint8)
    values: npt.NDArray[Any] = np.asarray(picture)
    white = 1.0 if picture.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= white + (1e-6 if white == 1 else 0)):
        raise _UnclearError(
            f"a saliency map of mode {picture.mode} must hold values from 0 to {white:.9g}: "
            f"got values from {low:.9g} to {high:.9g}"
        )
    if white > 1 and 0 < high <= 255:
        notes.append(f"prediction of values up to {high:.9g} of {white:.9g}, taken as it is")
    levels: Levels = np.rint(np.minimum(values / white, 1) * 255).astype(np.uint8)
    return levels


def _truth(picture: Image.Image, notes: list[str]) -> Levels:
    opaque = _opaque(picture)
    alpha = _alpha(picture)
    if alpha is None:
        return _colours(opaque, notes)
    if _is_plain(opaque):
        notes.append("ground truth in the transparency, its colours are all the same")
        return _levels(alpha, 255, notes)
    inner: list[str] = []
    levels = _colours(opaque, inner)
    if not np.array_equal(levels > 127, alpha > 127):
        raise _UnclearError(
            "its colours and its transparency are different masks: save the one that counts alone"
        )
    notes.extend(inner)
    return levels


def _colours(picture: Image.Image, notes: list[str]) -> Levels:
    """Decodes ground truth without transparency."""
    if picture.mode in _DEEP:
        white = 1 if picture.mode == "F" else 65535
        return _levels(np.asarray(picture), white, notes)
    if picture.mode == "P" and not _grey_palette(picture):
        return _numbers(np.asarray(picture), notes)
    if picture.mode in ("1", "L", "P"):
        return _levels(np.asarray(picture.convert("L")), 255, notes)
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    differ = (pixels.max(axis=2) - pixels.min(axis=2)).max()
    if differ == 0 or (differ <= _NEARLY_GREY and pixels.max() > 127):
        return _levels(np.asarray(picture.convert("L")), 255, notes)
    if picture.format == "JPEG":
        raise _UnclearError(
            "it has colours and the losses of JPEG, so that no background can be told: "
            "save the foreground as 255 in a PNG file"
        )
    black = (pixels == 0).all(axis=2)
    if not black.any():
        raise _UnclearError("it has colours and nothing black, so that no background can be told")
    notes.append("ground truth of coloured objects, any colour but black counts as foreground")
    return _binary(~black)


def _levels(values: npt.NDArray[Any], white: int, notes: list[str]) -> Levels:
    """Decodes one channel of ground truth, whose largest possible value is ``white``."""
    distinct = _distinct(values)
    largest = distinct[-1]
    if not (distinct[0] >= 0 and np.isfinite(largest)):
        raise _UnclearError(f"it holds values from {distinct[0]:.9g} to {largest:.9g}")
    objects = distinct[distinct > 0]
    if len(objects) <= 1:
        if len(objects) and objects[0] != white:
            notes.append(f"ground truth of 0 and {objects[0]:.9g}, scaled to 0 and 255")
        return _binary(values > 0)
    whole = bool((distinct == np.rint(distinct)).all())
    if white != 255 and whole and largest == 255:
        return _levels(values.astype(np.uint8), 255, notes)
    if white == 65535 and largest in _WHITES:
        raise _UnclearError(
            f"its largest value is {largest:g}, which can be white in {_WHITES[int(largest)]} "
            "bits or the number of an object: save the foreground as 255 in 8 bits"
        )
    # Combined numbers of class and object, such as 24,001, may exceed half of 65,535.
    least = 0.9 * white if white == 65535 else white / 2
    if least <= largest <= white and not _is_numbered(objects, white):
        return np.rint(values / white * 255).astype(np.uint8)
    if white != 255 or largest == _VOID or largest < 64:
        if not whole:
            raise _UnclearError(
                f"its floats lie between 0 and {largest:.9g}, which are neither levels of 1 nor "
                "numbers of objects"
            )
        if largest == _VOID and (objects < 64).sum() == len(objects) - 1:
            raise _UnclearError(
                f"its values are 0 to {objects[-2]:g} and 255, which can be the numbers of classes "
                "with VOC's border, or grey levels: save the foreground as 255"
            )
        return _numbers(values, notes)
    raise _UnclearError(
        f"its largest value is {largest:.9g} of 255, which is neither white nor the number of an "
        "object: save the foreground as 255"
    )


def _is_numbered(objects: npt.NDArray[Any], white: int) -> bool:
    """Returns whether the 255 may be VOC's border beside the numbers of classes."""
    return white == 255 and objects[-1] == _VOID and objects[-2] < 64


def _numbers(values: npt.NDArray[Any], notes: list[str]) -> Levels:
    """Decodes the numbers of objects, with a note."""
    numbers = _distinct(values)
    objects = numbers[numbers > 0]
    void = len(objects) > 1 and objects[-1] == _VOID
    if len(objects):
        last = objects[-2] if void else objects[-1]
        notes.append(
            f"ground truth of objects with numbers up to {last:.9g}, any but 0 counts as foreground"
        )
    if void:
        notes.append("pixels with the number 255, which belong to no class, count as background")
        return _binary((values > 0) & (values != _VOID))
    return _binary(values > 0)


def _alpha(picture: Image.Image) -> Levels | None:
    """Returns the alpha channel, 255 where the picture is opaque; None if it is everywhere."""
    if not picture.has_transparency_data:
        return None
    alpha: Levels = np.asarray(picture.convert("RGBA"))[..., 3]
    return None if alpha.min() == 255 else alpha


def _is_plain(picture: Image.Image) -> bool:
    """Returns whether all pixels have the same colour."""
    pixels = np.asarray(picture.convert("RGB"))
    return bool((pixels == pixels[0, 0]).all())


def _opaque(picture: Image.Image) -> Image.Image:
    """Returns the picture without its transparency."""
    if picture.mode in ("LA", "La"):
        return picture.getchannel(0)
    if picture.mode in ("RGBA", "RGBa", "PA"):
        return picture.convert("RGBA").convert("RGB")
    return picture


def _grey_palette(picture: Image.Image) -> bool:
    """Returns whether all colours that a palette image uses are grey."""
    used = _distinct(np.asarray(picture))
    palette = np.zeros((256, 3), np.int16)
    entries = np.array(picture.getpalette("RGB") or [], np.int16).reshape(-1, 3)
    palette[: len(entries)] = entries
    colours = palette[used]
    return bool((colours == colours[:, :1]).all())


def _distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the distinct values, in ascending order."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    return np.unique(values)


def _binary(mask: npt.NDArray[np.bool_]) -> Levels:
    return np.where(mask, np.uint8(255), np.uint8(0))
