"""The file name suffixes that a search accepts, and the reasons why it leaves out other files."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

from PIL import Image, ImageFile

#: Suffixes of videos, in lower case.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)

# Plug-ins of Pillow: module -> the function that registers it, the project, and its suffixes.
_PLUG_INS = {
    "pillow_heif": ("register_heif_opener", "pillow-heif", (".heic", ".heif", ".hif")),
    "pillow_jxl": (None, "pillow-jxl-plugin", (".jxl",)),
}
_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf"),
    *(".srw", ".x3f"),
)
# Pillow does not run PostScript here, and reads only the heads of MPEG videos.
_NOT_READ = ("EPS", "MPEG")
_TRANSPORT = (".m2ts", ".mts", ".ts")  # the last two are also those of TypeScript
_PACKETS = ((0, 188), (4, 192))  # offset of the first packet, and length of a packet, in bytes
_SYNC = 0x47


@cache
def register_plug_ins() -> None:
    """Registers the installed plug-ins of Pillow, so that it can read their formats."""
    Image.init()
    for module, (register, _, _) in _PLUG_INS.items():
        if find_spec(module) is None:
            continue
        try:
            plug_in = importlib.import_module(module)
            if register is not None:
                getattr(plug_in, register)()
        except Exception:  # a broken plug-in must not stop users who do not need it
            continue


def image_suffixes() -> frozenset[str]:
    """Returns the suffixes, in lower case, of the files that Pillow and its plug-ins can decode."""
    register_plug_ins()
    return frozenset(
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NOT_READ and not _is_stub(Image.OPEN[name][0])
    )


def is_taken(path: str, suffixes: Iterable[str]) -> bool:
    """Returns whether a file has one of the suffixes, and its content does not contradict it."""
    suffix = suffix_of(path)
    return suffix in suffixes and (suffix not in _TRANSPORT or _is_transport_stream(path))


def is_video(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file has the suffix of a video."""
    return suffix_of(path) in VIDEO_SUFFIXES


def suffix_of(path: str | os.PathLike[str]) -> str:
    """Returns the suffix of a file's name, in lower case."""
    return os.path.splitext(path)[1].lower()


def left_out(paths: Iterable[str], suffixes: Iterable[str]) -> str | None:
    """Returns a sentence on the files that a search left out, by suffix and reason, or None."""
    counts = Counter(map(suffix_of, paths))
    if not counts:
        return None
    total = sum(counts.values())
    kinds_by_reason: dict[str, list[str]] = {}
    others = Counter[str]()
    for suffix, count in sorted(counts.items()):
        why = _reason(suffix, suffixes)
        if why is None:
            others[suffix or "without a suffix"] += count
        else:
            kinds_by_reason.setdefault(why, []).append(f"{count:,} {suffix}")
    parts = [f"{' and '.join(kinds)} ({why})" for why, kinds in kinds_by_reason.items()]
    if others:
        kinds = [kind for kind, _ in others.most_common(4)]
        kinds += ["..."] if len(others) > 4 else []
        parts.append(f"{others.total():,} of no kind that is read ({', '.join(kinds)})")
    files = "file was" if total == 1 else "files were"
    return f"{total:,} {files} left out: {', '.join(parts)}"


def missing_reader(path: str | os.PathLike[str]) -> str | None:
    """Returns what a file of this name or suffix needs to be read; None if nothing is known."""
    suffix = suffix_of("x" + os.path.basename(path))
    for _, project, read in _PLUG_INS.values():
        if suffix in read:
            return f"no reader is installed: pip install {project}"
    if suffix in _RAW:
        return "raw data of a camera, to be developed first, as to TIFF"
    return None


def _reason(suffix: str, suffixes: Iterable[str]) -> str | None:
    """Returns why a file with the suffix of a picture was left out; None for other suffixes."""
    if suffix in suffixes:
        return "not an MPEG stream"
    missing = missing_reader(suffix)
    if missing is not None:
        return missing
    if suffix in VIDEO_SUFFIXES and suffix not in (".ts", ".mts"):
        return "a video, which selfment label and selfment predict take, but not with --to or URLs"
    if suffix in (".npy", ".npz", ".safetensors", ".pt", ".pth"):
        return "not pixels, but maybe patch features, which `selfment label` takes with --grid"
    if suffix in (".tar", ".tgz", ".parquet", ".arrow"):
        return (
            "a shard, which `selfment label` and `selfment predict` take without images beside it"
        )
    if suffix in image_suffixes():
        return "an image, not a file of features"
    if suffix in (".eps", ".ps"):
        return "PostScript is a program, which is not run"
    return None


def _is_stub(factory: object) -> bool:
    """Returns whether Pillow only recognises a format, and needs another program to decode it."""
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


def _is_transport_stream(path: str) -> bool:
    """Returns whether a file begins with two packets of an MPEG transport stream."""
    try:
        with open(path, "rb") as file:
            head = file.read(_PACKETS[-1][0] + _PACKETS[-1][1] + 1)
    except OSError:
        return True  # the error is reported when the file is opened
    return any(
        len(head) > start + step and head[start] == head[start + step] == _SYNC
        for start, step in _PACKETS
    )
