"""Loads files, PIL images and uint8 arrays as 8-bit RGB, and lists the images of inputs."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..util.files import check_file, reason
from .search import Search, mask_names
from .suffixes import VIDEO_SUFFIXES, image_suffixes, is_taken, missing_reader, register_plug_ins

#: A path, the content of a file, a PIL image, or a uint8 array (H, W), (H, W, 3) or (H, W, 4).
ImageLike = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]

SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_DEPTHS = (8, 10, 12, 14, 16)
_MAX_SAMPLE_VALUE = 281  # the number of the TIFF tag
_LEAST_WHITE = 16.0  # a float image whose largest value is less does not have the range 0..255
_LEAST_COLOUR = 17  # in the upper 8 of 16 bits: 12-bit colours reach 15, or 16 rounded, 10-bit 3
_ROUNDING = 1e-6

#: The version of the decoding: changes whenever a file is decoded to other pixels. In all settings.
DECODING = 2
_BOX = 1 << 20  # pixels that are converted at a time, with up to 32 MiB


class ImageError(ValueError):
    """An image cannot be read: one sentence with its name and the reason."""


@dataclass(frozen=True)
class ImageEntry:
    """One image of a set."""

    path: Path  #: the file, absolute
    mask_name: str  #: relative output path of its mask, with ``/``, unique in the set
    #: the image's relative path, with ``/``, unique in the set; records identify the image by it,
    #: wherever the set is. By default the file's name, in the same folder as the mask.
    name: str = ""
    features: Path | None = None  #: the file with its patch features, if they exist, absolute

    def __post_init__(self) -> None:
        if not self.name:
            name = PurePosixPath(self.mask_name).with_name(Path(self.path).name)
            object.__setattr__(self, "name", str(name))


class ImageEntries(list[ImageEntry]):
    """The images of a search, and the folders that could not be searched."""

    def __init__(self, entries: Iterable[ImageEntry] = (), unlisted: Iterable[str] = ()) -> None:
        super().__init__(entries)
        self.unlisted = tuple(unlisted)  #: folders that may not be listed


def find_images(
    inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    suffixes: Collection[str] | None = None,
    results: bool = False,
) -> ImageEntries:
    """Lists the images in files, folders (recursively) and globs, each image once, in order.

    Names are relative to the common parent of all inputs, where a folder counts as its own parent:
    the names in a single folder are relative to it. In folders and globs, files match by their
    suffix, and hidden ones are left out; a file that is itself an input needs no suffix. The mask
    of ``sub/a.jpg`` is ``sub/a.png``; images that would share a mask keep their suffix,
    ``a.jpg.png``.

    The number of files left out is printed on stderr, by suffix and reason, and so is the name of a
    folder that may not be listed, which is also in ``unlisted`` of the result.

    Args:
        inputs: one input, or several.
        out: a folder of results, which is left out if it is in a searched folder.
        suffixes: file name endings, in lower case; by default those that Pillow and its installed
            plug-ins can decode.
        results: also list the results of earlier runs. By default, folders with the records of a
            run are left out. In a folder that is itself an input, or above one, the files that its
            records name are left out.

    Raises:
        ValueError: a missing path, an empty folder, a glob without a match, or an ``out`` that is
            itself searched.
    """
    search = Search(image_suffixes() if suffixes is None else suffixes, out, results)
    for value in [inputs] if isinstance(inputs, str | os.PathLike) else inputs:
        search.add(os.fspath(value))
    if not search.files:
        raise ValueError("`inputs` must name at least one image: got none")
    if not results:
        search.report()
    base = os.path.commonpath(search.roots)
    names = [os.path.relpath(path, base).replace(os.sep, "/") for path in search.files]
    entries = zip(search.files, mask_names(names), names, strict=True)
    return ImageEntries(
        (ImageEntry(Path(path), mask, name) for path, mask, name in entries), search.unlisted
    )


def sample_images() -> ImageEntries:
    """Lists the colour photographs inside the scikit-image package; nothing is downloaded.

    Raises ``ValueError`` if the installed scikit-image does not contain them.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
    samples = [folder / name for name in SAMPLES if spec and (folder / name).is_file()]
    if not samples:
        raise ValueError(
            f"the sample photographs need scikit-image, which is {'empty' if spec else 'missing'} "
            'here: pip install "selfment[samples]"'
        )
    return find_images(samples)


def load_image(
    image: ImageLike, *, least_side: int = 0, name: str = "the image"
) -> tuple[Image.Image, list[str]]:
    """Loads an image as 8-bit RGB, rotated as its EXIF data says; also returns notes on changes.

    Transparency is composited on white, and only the first frame of an animation is read. A single
    channel of more than 8 bits is scaled. White is the first of these that applies: the
    MaxSampleValue of a TIFF file; 1, for floats from 0 to 1; the largest number of 8, 10, 12, 14 or
    16 bits, for the least depth that all values fit; otherwise the largest value, and black is then
    the smallest. There is a note unless white is 1 or of 16 bits.

    The format is that of the bytes, whatever the file's name, and bytes after the image are
    ignored. Images of more than 178,956,970 pixels (twice ``PIL.Image.MAX_IMAGE_PIXELS``, which can
    be set), pipes, sockets, devices and PostScript are refused.

    Args:
        image: a path, the content of a file, a PIL image or a uint8 array (H, W), (H, W, 3) or
            (H, W, 4).
        least_side: if not 0, a JPEG file may be decoded smaller, by a power of 2 up to 8, which is
            much faster; no side becomes smaller than this.
        name: what errors call the content of a file or a PIL image.

    Raises:
        ImageError: the image cannot be read.
        TypeError: an argument of another type.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image), []
    if isinstance(image, Image.Image):
        return _decode(image, name)
    if not isinstance(image, str | os.PathLike | bytes):
        raise TypeError(
            "`image` must be a path, the content of a file, a PIL image or a uint8 array: "
            f"got {type(image).__name__}"
        )
    name = name if isinstance(image, bytes) else os.fspath(image)
    try:
        with open_image(image, name) as opened:
            if least_side:
                opened.draft(None, (least_side, least_side))
            return _decode(opened, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        why = _reason(error)
        if not isinstance(image, bytes) and os.path.isfile(name) and is_taken(name, VIDEO_SUFFIXES):
            why = "it is a video, which `selfment label` and `selfment predict` take"
        raise ImageError(f"cannot read {name}: {why}") from error


def size_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns (width, height) of an image file, upright, from its head alone if that suffices.

    Raises :class:`ImageError`.
    """
    try:
        with open_image(path) as opened:
            width, height = opened.size
            turned = False
            with suppress(Exception):  # broken metadata count for nothing, as in :func:`upright`
                turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise ImageError(f"cannot read {os.fspath(path)}: {_reason(error)}") from error
    return (height, width) if turned else (width, height)


def open_image(file: str | os.PathLike[str] | bytes, name: str = "") -> Image.Image:
    """Opens a file or its content as Pillow's image, without reading its pixels.

    ``name``: of the file whose content it is. Raises whatever Pillow raises, and ``OSError`` for
    pipes, sockets and devices, and for PostScript, which Pillow would run.
    """
    if not isinstance(file, bytes):
        check_file(file)
    register_plug_ins()
    try:
        image = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except UnidentifiedImageError:
        missing = missing_reader(name if isinstance(file, bytes) else file)
        if missing is None:
            raise
        raise OSError(missing) from None
    if image.format == "EPS":
        image.close()
        raise OSError("PostScript is a program, which is not run")
    return image


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            "an image array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4): "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.size == 0:
        raise ImageError(f"an image array must not be empty: got shape {array.shape}")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), [])


def _decode(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    notes = []
    if 0 in image.size:
        width, height = image.size
        raise ImageError(f"cannot read {name}: it has no pixels, its size is {width} x {height}")
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            frame = "first frame" if image.tell() == 0 else f"frame {image.tell() + 1}"
            notes.append(f"{frame} of {frames}")
        cut = any(map(_is_cut, getattr(image, "tile", ())))
        image.load()
        if cut and image.mode not in _DEEP_MODES:  # Pillow has no 16-bit colours
            extrema: Any = image.getextrema()
            # Transparency, the last channel of some modes, is not a colour.
            colours = [extrema] if isinstance(extrema[0], int) else extrema
            most = max(high for _, high in colours[: len(colours) - image.mode.endswith("A")])
            if most < _LEAST_COLOUR:
                raise ValueError(
                    "its 16-bit colours use the lower bits alone, which Pillow cuts off: the upper "
                    f"8 bits go up to {most}; save it with 8 bits a channel"
                )
            notes.append(
                f"16-bit colours read as their upper 8 bits, of which the largest is {most}"
            )
        return _to_rgb(upright(image, notes), notes), notes
    except Exception as error:
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


def upright(image: Image.Image, notes: list[str]) -> Image.Image:
    """Rotates an image as its EXIF data says, and adds a note if it did."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        rotated = ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a picture is worth more than its broken metadata
        notes.append("unreadable EXIF data ignored")
        return image
    if turned:
        notes.append("rotated as its EXIF data says")
    return rotated


def _is_cut(tile: Any) -> bool:
    """Returns whether Pillow reduces one of an image's ``tile`` entries from 16 bits to 8."""
    codec, arguments = tile[0], tile[3]
    if codec in ("ppm", "ppm_plain") and isinstance(arguments, tuple):
        return any(isinstance(white, int) and white > 255 for white in arguments)
    return ";16" in str(arguments)


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Converts an image of any mode to RGB, and adds notes on what was changed."""
    if image.mode in _DEEP_MODES:
        return _by_boxes(image, _to_8bit(image, notes))
    if image.has_transparency_data:
        notes.append("transparency composited on white")
        return _by_boxes(image, _on_white)
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _boxes(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes of up to ``_BOX`` pixels that cover an image of the given size."""
    width, height = size
    across = max(1, min(width, _BOX))
    down = _BOX // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _by_boxes(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts an image to RGB box by box, so that ``convert`` needs memory for one box only."""
    converted = Image.new("RGB", image.size)
    for box in _boxes(image.size):
        converted.paste(convert(image.crop(box)).convert("RGB"), box)
    return converted


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _to_8bit(image: Image.Image, notes: list[str]) -> Callable[[Image.Image], Image.Image]:
    """Returns a function that scales boxes of a single channel of more than 8 bits to 0..255."""
    extremes = [
        (values.min(), values.max())
        for values in (_finite(image.crop(box)) for box in _boxes(image.size))
    ]
    low, high = float(min(extremes)[0]), float(max(most for _, most in extremes))
    if any(not np.isfinite(np.asarray(image.crop(box))).all() for box in _boxes(image.size)):
        notes.append("values that are not finite read as 0")
    white, note = _full_scale(image, low, high)
    if note:
        notes.append(note)
    if white is None:
        scale = 255 / (high - low) if high > low else 0.0
    else:
        low, scale = 0.0, 255 / white

    def convert(box: Image.Image) -> Image.Image:
        values = _finite(box)
        values -= low
        values *= scale
        np.minimum(values, 255, out=values)
        return Image.fromarray(np.rint(values, out=values).astype(np.uint8))

    return convert


def _full_scale(image: Image.Image, low: float, high: float) -> tuple[float | None, str | None]:
    """Returns the white value of a channel of more than 8 bits, and a note unless it is usual.

    It is the first of these that applies:

    - the MaxSampleValue of a TIFF file, if no value is larger;
    - 1, for floats from 0 to 1 of which one is at least 1 / 16;
    - the largest number of 8, 10, 12, 14 or 16 bits, for the least depth that all values fit:
      cameras, scanners and microscopes store fewer bits in 16, and programs 8 in 32; for floats
      only if one is at least 16;
    - None: white is the largest value and black the smallest.
    """
    stated = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if low >= 0 and stated and high <= float(stated):
        return float(stated), f"white is {stated}, as the file says"
    real = image.mode == "F"
    if real and low >= 0 and (high == 0 or 1 / _LEAST_WHITE <= high <= 1 + _ROUNDING):
        return 1.0, None
    bits = next((bits for bits in _DEPTHS if high < 1 << bits), None)
    if low < 0 or bits is None or (real and high < _LEAST_WHITE):
        return None, f"scaled from [{low:g}, {high:g}]"
    usual = bits == 16 and not real
    return float((1 << bits) - 1), None if usual else f"values up to {high:g} read as {bits} bits"


def _finite(image: Image.Image) -> npt.NDArray[np.float64]:
    values = np.asarray(image).astype(np.float64)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _reason(error: Exception) -> str:
    """Explains in a few words why an image cannot be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return (
            "it has too many pixels to be taken for a photograph, "
            f"more than {most:,} (decompression bomb)"
        )
    return reason(error)
