"""From paths, PIL images and uint8 arrays to 8-bit RGB, and from inputs to a list of files."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ._files import check_file, reason

ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]

#: File name endings, in lower case, that folders and globs are searched for.
SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_DEPTHS = (8, 10, 12, 14, 16)
_MAX_SAMPLE_VALUE = 281  # the number of the TIFF tag
_LEAST_WHITE = 16.0  # a float image whose largest value is less is not one of 0..255
_LEAST_COLOUR = 16  # of the upper 8 of 16 bits: 12 bits leave 15, 10 bits 3
_ROUNDING = 1e-6

# Plug-ins of Pillow by the files that need them: the module that registers it, and its package.
_PLUGINS = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}

#: Changes whenever the same file would give other pixels to a backbone; part of all settings.
DECODING = 2
_BOX = 1 << 20  # pixels that are converted at a time, in up to 32 MiB


class ImageError(ValueError):
    """An image that cannot be read: one sentence with its name and the reason."""


@dataclass(frozen=True)
class ImageEntry:
    """One image of a set."""

    path: Path  #: the file, absolute
    mask_name: str  #: relative output path of its mask, ``/`` between the parts, unique in the set


def find_images(
    inputs: Iterable[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
) -> list[ImageEntry]:
    """The images that files, folders (recursive) and globs name, each once, in order.

    Names are relative to the common parent of all inputs, where a folder is its own parent: one
    folder gives names relative to it. Folders and globs yield the files that end in one of
    ``suffixes`` (in lower case), hidden ones left out; a file that is named is taken as it is. The
    mask of ``sub/a.jpg`` is ``sub/a.png``; images that would share a mask keep their suffix,
    ``a.jpg.png``. ``out``: a folder of results, left out where it lies in a folder that is
    searched. Raises ``ValueError`` for a missing path, an empty folder, a glob without a match, and
    an ``out`` that is itself searched.
    """
    roots: list[str] = []
    paths: dict[str, None] = {}
    skip = None if out is None else os.path.realpath(out)
    for value in inputs:
        root, files = _expand(os.fspath(value), skip, suffixes)
        roots += root
        paths |= dict.fromkeys(files)
    if not paths:
        raise ValueError("`inputs` must name at least one image: got none")
    base = os.path.commonpath(roots)
    names = _mask_names([os.path.relpath(path, base).replace(os.sep, "/") for path in paths])
    return [ImageEntry(Path(path), name) for path, name in zip(paths, names, strict=True)]


def sample_images() -> list[ImageEntry]:
    """The colour photographs inside the scikit-image package; nothing is downloaded.

    Raises ``ValueError`` when the installed scikit-image does not hold them.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
    found = [folder / name for name in SAMPLES if spec and (folder / name).is_file()]
    if not found:
        raise ValueError(
            f"the sample photographs need scikit-image, which is {'empty' if spec else 'missing'} "
            "here: pip install scikit-image"
        )
    return find_images(found)


def load_image(image: ImageLike) -> tuple[Image.Image, list[str]]:
    """An 8-bit RGB image, upright after its EXIF rotation, and notes on what was changed.

    ``image``: a path, a PIL image or a uint8 array (H, W), (H, W, 3) or (H, W, 4). Transparency is
    composited on white; an animation gives its first frame. A single channel of more than 8 bits
    is scaled so that white is, in this order: what a TIFF file says in MaxSampleValue; 1, for
    floats from 0 to 1; the largest number of 8, 10, 12, 14 or 16 bits, of the fewest that hold all
    values; otherwise the largest value, with the smallest as black. A note tells unless it is 1 or
    16 bits. The bytes say what format a file has, not its name, and what follows the image in it is
    ignored. Refused are files of more than 178,956,970 pixels, twice
    ``PIL.Image.MAX_IMAGE_PIXELS``, which one may set, pipes, sockets and devices, and PostScript.
    Raises :class:`ImageError`, and ``TypeError`` for anything else.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image), []
    if isinstance(image, Image.Image):
        return _decode(image, "the image")
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            f"`image` must be a path, a PIL image or a uint8 array: got {type(image).__name__}"
        )
    name = os.fspath(image)
    try:
        with open_image(name) as opened:
            return _decode(opened, name)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise ImageError(f"cannot read {name}: {_reason(error)}") from error


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Pillow's image of a file, whose pixels are not yet read. Raises whatever Pillow raises.

    Also ``OSError`` for what is no file, and for PostScript, which Pillow would have run.
    """
    check_file(path)
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        _load_plugin(path)
        image = Image.open(path)
    if image.format == "EPS":
        image.close()
        raise OSError("PostScript is a program, which is not run")
    return image


def _load_plugin(path: str | os.PathLike[str]) -> None:
    """Registers the plug-in of Pillow for a file's ending, where there is one to be had."""
    module, package = _PLUGINS.get(Path(path).suffix.lower(), (None, None))
    if module is None:
        return
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise OSError(f"Pillow reads such files with a plug-in: pip install {package}") from error
    if hasattr(plugin, "register_heif_opener"):  # the others register when they are imported
        plugin.register_heif_opener()


def _expand(value: str, skip: str | None, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders that names are relative to, and the files, of one input; all absolute."""
    if os.path.isfile(value):
        path = os.path.abspath(value)
        return [os.path.dirname(path)], [path]
    if os.path.isdir(value):
        folder = os.path.abspath(value)
        files = _walk(folder, skip, suffixes)
        if not files:
            raise ValueError(f"the folder {value!r} holds no image")
        return [folder], files
    if not glob.has_magic(value):
        if os.path.exists(value):
            raise ValueError(f"neither a file nor a folder: {value!r}")
        raise ValueError(f"no such file or folder: {value!r}")
    base = os.path.abspath(value)
    while glob.has_magic(base):
        base = os.path.dirname(base)
    _check_searched(base, skip)
    roots, files = [], []
    for path in sorted({os.path.abspath(match) for match in _matches(value)}):
        if skip is not None and _inside(os.path.realpath(path), skip):
            continue
        if os.path.isdir(path):
            inside = _walk(path, skip, suffixes)
            files += inside
            roots += [path] if inside else []
        elif Path(path).suffix.lower() in suffixes and os.path.isfile(path):
            files.append(path)
            roots.append(os.path.dirname(path))
    if not files:
        raise ValueError(f"no image matches {value!r}")
    return roots, files


def _matches(pattern: str) -> Iterator[str]:
    """What a glob matches; ``**`` does not follow links, which may lead in circles."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    place = parts.index("**")
    rest = parts[place + 1 :]
    for root in glob.iglob(os.sep.join([*parts[:place], ""]) if place else os.curdir + os.sep):
        if not rest:  # folders are searched whole
            yield root
            continue
        for parent, folders, _ in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matches(os.path.join(glob.escape(parent), *rest))


def _walk(folder: str, skip: str | None, suffixes: Sequence[str]) -> list[str]:
    _check_searched(folder, skip)
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) != skip
        )
        found += [
            os.path.join(parent, name)
            for name in sorted(files)
            if not name.startswith(".")
            and os.path.splitext(name)[1].lower() in suffixes
            and os.path.isfile(os.path.join(parent, name))
        ]
    return found


def _check_searched(folder: str, skip: str | None) -> None:
    if os.path.realpath(folder) == skip:
        raise ValueError(f"`out` must not be a folder that is searched for images: got {skip!r}")


def _inside(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _mask_names(names: Sequence[str]) -> list[str]:
    """A unique ``.png`` path for each of the unique relative ``names``."""
    masks = [f"{os.path.splitext(name)[0]}.png" for name in names]
    # A suffix that is kept may meet another image's short name, "a.jpg.gif": repeat until it ends.
    while True:
        counts = Counter(masks)
        unique = [
            mask if counts[mask] == 1 else f"{name}.png"
            for mask, name in zip(masks, names, strict=True)
        ]
        if unique == masks:
            return masks
        masks = unique


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
        cut = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
        if cut and image.mode not in _DEEP_MODES:  # Pillow has no colours of 16 bits
            extrema: Any = image.getextrema()
            most = max(high for _, high in extrema)
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
    """The image rotated as its EXIF data says; adds to the notes where there is anything to say."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        rotated = ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a picture is worth more than its broken metadata
        notes.append("unreadable EXIF data ignored")
        return image
    if turned:
        notes.append("rotated as its EXIF data says")
    return rotated


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return _by_boxes(image, _to_8bit(image, notes))
    if image.has_transparency_data:
        notes.append("transparency composited on white")
        return _by_boxes(image, _on_white)
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _boxes(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of up to ``_BOX`` pixels, side by side, that make up an image of the size."""
    width, height = size
    across = max(1, min(width, _BOX))
    down = _BOX // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _by_boxes(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The RGB image of what ``convert`` makes of each box: its memory is that of a box."""
    made = Image.new("RGB", image.size)
    for box in _boxes(image.size):
        made.paste(convert(image.crop(box)).convert("RGB"), box)
    return made


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _to_8bit(image: Image.Image, notes: list[str]) -> Callable[[Image.Image], Image.Image]:
    """How the single channel of an image of more than 8 bits, or of a box of it, becomes 0..255."""
    extremes = [
        (values.min(), values.max())
        for values in (_finite(image.crop(box)) for box in _boxes(image.size))
    ]
    low, high = float(min(extremes)[0]), float(max(most for _, most in extremes))
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
    """The value that is white in a channel of more than 8 bits, and a note unless it is the usual.

    The first that applies:

    - The largest value that a TIFF file says it may hold (MaxSampleValue), if it holds none larger.
    - 1 for floats from 0 to 1.
    - The largest number of 8, 10, 12, 14 or 16 bits, of the fewest that hold all values: cameras,
      scanners and microscopes store fewer bits in 16, and programs 8 in 32. Floats count if one of
      them is 16 or more.
    - None: white is the largest value and black the smallest.
    """
    stated = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE)
    stated = stated[0] if isinstance(stated, tuple) else stated
    if low >= 0 and stated and high <= float(stated):
        return float(stated), f"white is {stated}, as the file says"
    real = image.mode == "F"
    if real and low >= 0 and high <= 1 + _ROUNDING:
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
