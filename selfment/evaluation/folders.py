"""The scores of a data set: folders of saliency maps against folders of masks, under a protocol.

Three definitions of the F measure are in use and give different numbers on the same files, so that
every report names its protocol:

``paper``
    ``F_max``, ``IoU``, ``Acc`` of Selfment, FOUND and SelfMask: means of the images' scores.
``pysod``
    ``Sm``, ``wFm``, ``MAE``, ``maxEm``, ``meanEm``, ``adpEm``, ``maxFm``, ``meanFm``, ``adpFm``
    from the library PySODMetrics, which computes them. ``max`` and ``mean`` are those of the mean
    of the images' curves.
``tokencut``
    ``maxF_tokencut``, the maximum of the mean of the images' curves, with ``IoU`` and ``Acc``.
``all``
    All of them.

Where a prediction and its ground truth differ in size, ``paper`` and ``tokencut`` resize the ground
truth to the prediction, as the official code does, by Pillow's bilinear filter in 8 bits, and
``pysod`` resizes the prediction to the ground truth, as users of the library do, by OpenCV's. What
files of ground truth mean is said in :mod:`selfment.images.maps`. Foreground of the ground truth is
what exceeds 0.5 (``paper``), 128 of 255 (``pysod``) or 0 (``tokencut``, but for ``IoU`` and
``Acc``).
"""

from __future__ import annotations

import os
import signal
import sys
import unicodedata
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import current_process, get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from ..core import options as params
from ..core.torch_state import SETTINGS
from ..images.load import ImageError, find_images
from ..images.maps import read_saliency, read_truth, saliency_of, truth_of
from ..util.extras import load_extra
from ..util.files import write_atomically
from ..util.results import recorded_files
from . import tables
from .datasets import find_masks, split_stray, stray_note
from .metrics import Curves, accuracy, as_map, f_curves, iou, tokencut_curves

Array = npt.NDArray[Any]

_PAPER = ("F_max", "IoU", "Acc")
_TOKENCUT = ("maxF_tokencut", "IoU", "Acc")
_PYSOD = ("Sm", "wFm", "MAE", "maxEm", "meanEm", "adpEm", "maxFm", "meanFm", "adpFm")
_F, _E = ("maxFm", "meanFm", "adpFm"), ("maxEm", "meanEm", "adpEm")

#: The scores of each protocol, in the order of all outputs.
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "paper": _PAPER,
    "pysod": _PYSOD,
    "tokencut": _TOKENCUT,
    "all": (*_PAPER, *_PYSOD, "maxF_tokencut"),
}
#: What a report is saved as.
FORMATS = ("json", "csv", "markdown", "latex")
#: Of a prediction's name after its ground truth's; the first that a folder holds is taken.
SUFFIXES = ("_saliency", "_mask")

# The scores that are read off the mean curve: which curve, its row, and how.
_FROM_CURVE: dict[str, tuple[str, int, Callable[[Array], Any]]] = {
    "maxEm": ("em", 0, np.max),
    "meanEm": ("em", 0, np.mean),
    "maxFm": ("pysod", 2, np.max),
    "meanFm": ("pysod", 2, np.mean),
    "maxF_tokencut": ("tokencut", 2, np.max),
}
_CHUNK = 4  # pairs that a process takes at a time
_AHEAD = 128  # chunks whose results wait for an earlier one at most


@dataclass
class ImageScores:
    """One image's scores; those read off a curve are of its own curve.

    ``prediction`` and ``truth`` are the files, None where arrays were given.
    """

    name: str
    scores: dict[str, float]
    notes: list[str] = field(default_factory=list)
    prediction: Path | None = None
    truth: Path | None = None


@dataclass
class Report:
    """The scores of a data set and of each of its images.

    ``scores`` and those of each image have the same keys in the same order, see :data:`PROTOCOLS`;
    each in [0, 1], larger is better but for ``MAE``. A score that the library cannot compute is not
    a number, and a note says so.
    """

    protocol: str
    scores: dict[str, float]
    images: list[ImageScores]  #: in the order of their names, or as they were added
    #: Means over the images at thresholds from 0 to 1: ``paper``, ``pysod``, ``tokencut``.
    curves: dict[str, Curves] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  #: ground truths without a prediction
    extra: list[str] = field(default_factory=list)  #: predictions without a ground truth
    failed: list[str] = field(default_factory=list)  #: a sentence for each pair not scored
    notes: list[str] = field(default_factory=list)  #: what is odd about the data, and what was done

    def to_text(self) -> str:
        """A table for a terminal, with the protocol and the notes."""
        return tables.to_text(self)

    def to_json(self) -> str:
        """A JSON object with all fields but the curves; what is not a number is null."""
        return tables.to_json(self)

    def to_csv(self) -> str:
        """A row for the data set and one for each image, under a header."""
        return tables.to_csv(self)

    def to_markdown(self) -> str:
        """A Markdown table of the data set's scores, under a line with the protocol."""
        return tables.to_markdown(self)

    def to_latex(self) -> str:
        """A LaTeX ``tabular`` of the data set's scores, under a comment with the protocol."""
        return tables.to_latex(self)

    def save(self, path: str | os.PathLike[str], format: str) -> None:
        """Writes what ``to_<format>`` gives, whole or not at all; see :data:`FORMATS`.

        Raises ``ValueError`` for another format and ``OSError`` where ``path`` cannot be written.
        """
        params.choice("format", format, FORMATS)
        # A file's name may hold bytes that are no text.
        content = str(getattr(self, f"to_{format}")()).encode("utf-8", "replace")
        write_atomically(Path(path), lambda file: file.write(content), durable=True)


class Evaluator:
    """Accumulates the scores of one image after another, say in a training loop.

    Memory grows by an image's scores alone.
    """

    def __init__(self, protocol: str = "all", *, metrics: Sequence[str] | None = None) -> None:
        """``protocol``: see :data:`PROTOCOLS`; ``metrics``: only these of its scores.

        Raises ``ValueError`` for others.
        """
        params.choice("protocol", protocol, tuple(PROTOCOLS))
        self.protocol = protocol
        self._wanted = _wanted(protocol, metrics)
        self._images: list[ImageScores] = []
        self._sums: dict[str, Array] = {}

    def update(self, pred: Any, gt: Any, name: str | None = None) -> ImageScores:
        """Adds a saliency map ``pred`` and its ground truth ``gt``; returns their scores.

        Both are numpy arrays or torch tensors, (H, W) or (1, H, W), of floats in [0, 1], bool or
        uint8 (255 for 1), or PIL images; the sizes may differ. A uint8 ground truth is read as a
        file of it is: see :mod:`selfment.images.maps`. ``pysod`` takes floats as the 8-bit levels
        that a file of them has. ``name``: the image's in the report, by default its number from 0.
        Raises ``TypeError`` and ``ValueError`` as :mod:`selfment.evaluation.metrics` does.
        """
        saliency, notes = _given(pred, "pred", saliency_of)
        truth, more = _given(gt, "gt", truth_of)
        scored = _score(saliency, truth, self._wanted, [*notes, *more])
        return self._add(str(len(self._images)) if name is None else name, scored)

    def report(self) -> Report:
        """The scores so far; raises ``ValueError`` before the first image."""
        if not self._images:
            raise ValueError("a report needs at least one image: got none")
        images = list(self._images)
        means = {key: total / len(images) for key, total in self._sums.items()}
        scores = {}
        for key in self._wanted:
            if key in _FROM_CURVE:
                curve, row, reduce = _FROM_CURVE[key]
                scores[key] = float(reduce(means[curve][row]))
            else:
                scores[key] = float(np.mean(np.array([image.scores[key] for image in images])))
        # The library's thresholds fall.
        curves = {
            key: Curves(*(mean[:, ::-1] if key == "pysod" else mean))
            for key, mean in means.items()
            if key != "em"
        }
        return Report(self.protocol, scores, images, curves, notes=_summary(images))

    def _add(
        self, name: str, scored: _Scored, prediction: Path | None = None, truth: Path | None = None
    ) -> ImageScores:
        image = ImageScores(name, scored.scores, scored.notes, prediction, truth)
        self._images.append(image)
        for key, curve in scored.curves.items():
            # In the images' order, as the library's mean over them is.
            self._sums[key] = self._sums[key] + curve if key in self._sums else curve
        return image


def evaluate(
    pred: str | os.PathLike[str],
    gt: str | os.PathLike[str],
    *,
    protocol: str = "all",
    metrics: Sequence[str] | None = None,
    workers: int = 1,
    allow_missing: bool = False,
    suffix: str | None = None,
    gt_suffix: str = "",
    progress: bool = True,
) -> Report:
    """Scores the saliency maps in the folder ``pred`` against the masks in the folder ``gt``.

    Both are searched recursively for images of any type. The prediction of ``sub/a.png`` is
    ``sub/a``, ``sub/a_saliency`` or ``sub/a_mask``, with any image suffix. All predictions are of
    one kind: ``suffix`` (``""``, ``"_saliency"``, ``"_mask"`` or another) names it; by default it
    is the only kind in the folder, and ``_saliency`` where there are ``_saliency`` and ``_mask``.
    Files of another kind are left alone. :mod:`selfment.images.maps` says how files are read. The
    PNG files of a labeler with ``objects`` hold numbers of objects, not saliency, and are not to be
    scored. ``gt_suffix``: what follows the names of the ground truths, ``"_mask"`` for
    ``a_mask.png``; files without it are left alone. Names match whichever way Unicode composes
    their letters.

    ``protocol`` and ``metrics``: as in :class:`Evaluator`. ``workers``: processes that share the
    work, this one and others that are started afresh where there is enough to do, so that a script
    that asks for more than one needs the usual ``if __name__ == "__main__"``; the result does not
    depend on their number, to the bit. ``allow_missing``: score what has both files; else a ground
    truth without a prediction, or a prediction without a ground truth, raises ``ValueError``.
    ``progress``: a bar on stderr.

    Published data sets have odd files, which are left out with a note: masks in JPEG beside one of
    the same name in a format without losses, and, where the folders around ``gt`` are those of
    :data:`selfment.evaluation.datasets.KNOWN`, masks without an image.

    A pair that cannot be read or scored is in ``failed``. Raises ``ValueError`` also for folders
    that do not exist or hold no images, two files where one is meant, no pair that matches, and no
    pair that can be read, ``ChildProcessError`` where one of the processes is killed.
    """
    params.number("workers", workers, "an integer >= 1", isinstance(workers, int) and workers >= 1)
    evaluator = Evaluator(protocol, metrics=metrics)
    pairs, missing, extra = match(pred, gt, suffix, gt_suffix)
    lonely = without_image(gt, missing)
    missing = [name for name in missing if name not in lonely]
    if not allow_missing:
        check_complete(missing, extra)
    failed = []
    results = _scored(pairs, evaluator._wanted, workers)
    bar = tqdm(results, total=len(pairs), unit="image", disable=not progress, file=sys.stderr)
    for pair, result in zip(pairs, bar, strict=True):
        if isinstance(result, str):
            failed.append(result)
        else:
            evaluator._add(pair.name, result, pair.prediction, pair.truth)
    if len(failed) == len(pairs):
        raise ValueError(f"no pair of files can be read: {failed[0]}")
    report = evaluator.report()
    report.missing, report.extra, report.failed = missing, extra, failed
    if lonely:
        report.notes.append(
            "ground truth that its data set has no image for, left out: "
            f"{tables.counted(lonely, 'file')}"
        )
    stray = [p.name for files in _files(gt, "gt").values() for p in split_stray(files)[1]]
    if stray:
        report.notes.append(stray_note(stray))
    return report


def without_image(gt: str | os.PathLike[str], missing: Sequence[str]) -> list[str]:
    """Of the ground truths ``missing`` a prediction those that their data set has no image for.

    As the two masks that DUTS-TE has more than images. Of a folder ``gt`` that is not that of a
    published data set, there are none.
    """
    found = find_masks(gt) if missing else None
    if found is None:
        return []
    images = {nfc(os.path.splitext(image.name)[0]) for image in found.images}
    return [name for name in missing if name not in images]


def check_complete(
    missing: Sequence[str], extra: Sequence[str], argument: str = "pred", kind: str = "prediction"
) -> None:
    """Raises ``ValueError`` for ground truths, or files of a ``kind``, that lack the other."""
    found = [
        f"{tables.counted(missing, 'ground truth')} without a {kind}" if missing else "",
        f"{tables.counted(extra, kind)} without a ground truth" if extra else "",
    ]
    if any(found):
        raise ValueError(
            f"`{argument}` must hold one {kind} for each ground truth: "
            f"{' and '.join(filter(None, found))}; to score the others, allow missing files"
        )


@dataclass(frozen=True)
class Pair:
    """A prediction, its ground truth, and the path that they share, without suffixes."""

    name: str
    prediction: Path
    truth: Path


def match(
    pred: str | os.PathLike[str],
    gt: str | os.PathLike[str],
    suffix: str | None = None,
    gt_suffix: str = "",
) -> tuple[list[Pair], list[str], list[str]]:
    """The pairs of two folders, the ground truths without a prediction, and the reverse.

    All in the order of their names; see :func:`evaluate`, of which it has the errors.
    """
    truths = by_stem(gt, "gt", gt_suffix)
    files = _files(pred, "pred")
    if suffix is None:
        suffix = _suffix(_predicted(pred, files), truths)
    chosen = {
        stem[: len(stem) - len(suffix)]: _only(found, "pred")
        for stem, found in files.items()
        if stem.endswith(suffix) and not (suffix == "" and _is_suffixed(stem, truths))
    }
    pairs = [Pair(name, chosen[name], truths[name]) for name in truths if name in chosen]
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
    """The images in a folder by their stems: the path in it, without the ending of the file.

    ``/`` is between the parts, and letters are composed (NFC). Sorted.

    Args:
        folder: where to search.
        name: of the argument, in the errors; of ``"gt"`` masks in JPEG beside others do not count.
        suffix: the end of the stems of those that count, which is taken off.

    Raises:
        ValueError: the folder does not exist, holds no such image, or two of one stem.
    """
    found = {
        stem.removesuffix(suffix): _only(split_stray(files)[0] if name == "gt" else files, name)
        for stem, files in _files(folder, name).items()
        if stem.endswith(suffix)
    }
    if not found:
        raise ValueError(
            f"`{name}` must hold images whose names end in {suffix!r}: "
            f"got {os.fspath(folder)!r}, which holds none"
        )
    return found


def nfc(name: str) -> str:
    """The name with its letters composed: file systems differ in how they keep an umlaut."""
    return unicodedata.normalize("NFC", name)


def _files(folder: str | os.PathLike[str], name: str) -> dict[str, list[Path]]:
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise ValueError(f"`{name}` must be a folder that exists: got {os.fspath(folder)!r}")
    found: dict[str, list[Path]] = {}
    overlays = {
        file for file, (_, field) in recorded_files(os.fspath(root)).items() if field == "overlay"
    }
    for entry in find_images(root, results=True):
        if entry.name in overlays:
            continue
        stem = nfc(entry.path.relative_to(root).with_suffix("").as_posix())
        found.setdefault(stem, []).append(entry.path)
    return {stem: found[stem] for stem in sorted(found)}


def _only(files: Sequence[Path], name: str) -> Path:
    if len(files) > 1:
        first, second = files[:2]
        raise ValueError(
            f"`{name}` must hold one file of each stem: got {first.name} and {second.name} in "
            f"{first.parent}"
        )
    return files[0]


def _predicted(pred: str | os.PathLike[str], files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """The files, without the masks of labels where records say that predictions lie beside them."""
    recorded = recorded_files(os.fspath(pred))
    masks = {
        PurePosixPath(file).with_suffix("") for file, (of, _) in recorded.items() if of == "labels"
    }
    if all(of == "labels" for of, _ in recorded.values()):
        return files
    left = {stem: found for stem, found in files.items() if PurePosixPath(stem) not in masks}
    if len(left) < len(files):
        print(
            f"{os.fspath(pred)} holds masks of labels and predictions: the predictions are scored, "
            "and the suffix '' names the masks",
            file=sys.stderr,
        )
    return left


def _is_suffixed(stem: str, truths: dict[str, Path]) -> bool:
    """Whether a prediction is named after a ground truth, with one of the suffixes."""
    return stem not in truths and any(
        stem.endswith(suffix) and stem.removesuffix(suffix) in truths for suffix in SUFFIXES
    )


def _suffix(files: dict[str, list[Path]], truths: dict[str, Path]) -> str:
    """The kind of the predictions: the suffix of their stems."""
    examples: dict[str, str] = {}
    for stem in files:
        if stem in truths:
            examples.setdefault("", stem)
            continue
        for suffix in SUFFIXES:
            if stem.endswith(suffix) and stem.removesuffix(suffix) in truths:
                examples.setdefault(suffix, stem)
    if "" in examples and len(examples) > 1:
        got = " and ".join(repr(stem) for stem in examples.values())
        raise ValueError(
            f"`pred` must hold predictions of one kind: got {got}; name the `suffix` of those to "
            "score, '' for none"
        )
    return next((suffix for suffix in SUFFIXES if suffix in examples), "")


def _wanted(protocol: str, metrics: Sequence[str] | None) -> tuple[str, ...]:
    names = PROTOCOLS[params.choice("protocol", protocol, tuple(PROTOCOLS))]
    for metric in metrics or ():
        if metric not in names:
            raise ValueError(
                f"`metrics` must be among {', '.join(names)} in protocol {protocol}: got {metric!r}"
            )
    if metrics is not None and not metrics:
        raise ValueError("`metrics` must name at least one score: got none")
    wanted = tuple(name for name in names if metrics is None or name in metrics)
    if not set(_PYSOD).isdisjoint(wanted):
        _load_pysod()  # what is missing is the call's error, not that of each image
    return wanted


@dataclass
class _Scored:
    """One pair's scores; its curves, (3, T) precision, recall and F, or (1, T) the E-measure."""

    scores: dict[str, float]
    curves: dict[str, Array]
    notes: list[str]


def _scored(
    pairs: Sequence[Pair], wanted: tuple[str, ...], workers: int
) -> Iterator[_Scored | str]:
    """The results of all pairs, in their order; a sentence for one that cannot be read."""
    if workers == 1 or len(pairs) < 4 * _CHUNK * workers:
        for pair in pairs:
            yield _score_pair(pair, wanted)
        return
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and script and not os.path.exists(script):
        raise ValueError(
            "`workers` must be 1 in a program that is read from standard input, which other "
            f"processes cannot import: got {workers}"
        )
    if getattr(current_process(), "_inheriting", False):
        # A script without the usual guard runs again in each process that it starts. The first one
        # says so, in a sentence; more than that Python would say from here.
        raise SystemExit(1)
    starts = range(0, len(pairs), _CHUNK)
    chunks = deque(pairs[start : start + _CHUNK] for start in starts)
    ordered: deque[Future[list[_Scored | str]]] = deque()
    # Processes that are forked would inherit the locks of threads that they do not have.
    pool = ProcessPoolExecutor(workers - 1, get_context("spawn"), _start_worker)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each process has a core
    try:
        # They take seconds to start, in which this process works on its own.
        ready = [pool.submit(os.getpid) for _ in range(workers - 1)]
        while chunks or ordered:
            given = sum(not future.done() for future in ordered)
            for _ in range(2 * sum(future.done() for future in ready) - given):
                if chunks:
                    ordered.append(pool.submit(_score_chunk, chunks.popleft(), wanted))
            if ordered and (ordered[0].done() or not chunks or len(ordered) == _AHEAD):
                yield from ordered.popleft().result()
            elif chunks:
                own: Future[list[_Scored | str]] = Future()
                own.set_result(_score_chunk(chunks.popleft(), wanted))
                ordered.append(own)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process of `workers` ended before its time: it ran out of memory, or the script "
            'that started it lacks `if __name__ == "__main__"`'
        ) from error
    finally:
        torch.set_num_threads(threads)
        pool.shutdown(wait=False, cancel_futures=True)  # they end while the caller goes on


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the first process's to handle
    torch.set_num_threads(1)


def _score_chunk(pairs: Sequence[Pair], wanted: tuple[str, ...]) -> list[_Scored | str]:
    return [_score_pair(pair, wanted) for pair in pairs]


def _score_pair(pair: Pair, wanted: tuple[str, ...]) -> _Scored | str:
    try:
        saliency, notes = read_saliency(pair.prediction)
        truth, more = read_truth(pair.truth)
        return _score(saliency, truth, wanted, [*notes, *more])
    except ImageError as error:
        return str(error)
    except Exception as error:  # one pair that the libraries cannot score costs itself alone
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"cannot score {pair.prediction} against {pair.truth}: {reason}"


def _score(saliency: Array, truth: Array, wanted: tuple[str, ...], notes: Sequence[str]) -> _Scored:
    """All scores of a saliency map and a mask, which may differ in size.

    ``notes``: on how they were read.
    """
    notes = [*notes, *_oddities(saliency, truth)]
    scores: dict[str, float] = {}
    curves: dict[str, Array] = {}
    ours = [key for key in wanted if key not in _PYSOD]
    if ours:
        resized = truth
        if truth.shape != saliency.shape:
            notes.append(f"ground truth resized to the prediction for {', '.join(ours)}")
            resized = _resized(truth, saliency.shape)
        if "F_max" in wanted:
            found = f_curves(saliency, resized)
            curves["paper"] = np.stack([found.precision, found.recall, found.f])
            scores["F_max"] = float(found.f.max())
        if "IoU" in wanted:
            scores["IoU"] = iou(saliency, resized)
        if "Acc" in wanted:
            scores["Acc"] = accuracy(saliency, resized)
        if "maxF_tokencut" in wanted:
            found = tokencut_curves(saliency, resized)
            curves["tokencut"] = np.stack([found.precision, found.recall, found.f])
    theirs = [key for key in wanted if key in _PYSOD]
    if theirs:
        if truth.shape != saliency.shape:
            notes.append(f"prediction resized to the ground truth for {', '.join(theirs)}")
        _add_pysod(_bytes(saliency), _bytes(truth), theirs, scores, curves)
    for key in wanted:
        if key in _FROM_CURVE:
            curve, row, reduce = _FROM_CURVE[key]
            scores[key] = float(reduce(curves[curve][row]))
        if np.isnan(scores[key]):
            notes.append(f"{key} is not a number")
    return _Scored({key: scores[key] for key in wanted}, curves, notes)


def _load_pysod() -> Any:
    """PySODMetrics; raises ``ImportError`` where it is missing."""
    return load_extra("py_sod_metrics", "PySODMetrics", "eval", 'a score of the protocol "pysod"')


def _add_pysod(
    saliency: Array,
    truth: Array,
    wanted: Sequence[str],
    scores: dict[str, float],
    curves: dict[str, Array],
) -> None:
    """Adds the library's scores and curves of two uint8 maps."""
    library = _load_pysod()
    import cv2  # PySODMetrics requires it

    if saliency.shape != truth.shape:
        saliency = cv2.resize(saliency, truth.shape[::-1], interpolation=cv2.INTER_LINEAR)

    def results(metric: Any) -> Any:
        metric.step(saliency, truth)
        return metric.get_results()

    # Means over no pixels are not numbers, whatever the caller has made of such errors.
    with SETTINGS.held(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if "Sm" in wanted:
            scores["Sm"] = float(results(library.Smeasure())["sm"])
        if "wFm" in wanted:
            scores["wFm"] = float(results(library.WeightedFmeasure())["wfm"])
        if "MAE" in wanted:
            scores["MAE"] = float(results(library.MAE())["mae"])
        if any(key in wanted for key in _E):
            found = results(library.Emeasure())["em"]
            scores["adpEm"] = float(found["adp"])
            curves["em"] = found["curve"][None]
        if any(key in wanted for key in _F):
            handlers = {
                "p": library.PrecisionHandler(with_dynamic=True, with_adaptive=False),
                "r": library.RecallHandler(with_dynamic=True, with_adaptive=False),
                "f": library.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=0.3),
            }
            found = results(library.FmeasureV2(handlers))
            scores["adpFm"] = float(found["f"]["adaptive"])
            curves["pysod"] = np.stack([found[key]["dynamic"] for key in "prf"])


def _oddities(saliency: Array, truth: Array) -> list[str]:
    """Notes on what is odd about the pair."""
    notes = []
    top = 255 if truth.dtype == np.uint8 else 1
    if np.any((truth != 0) & (truth != top)):
        notes.append("ground truth is not binary, each protocol has its own threshold")
    foreground = 2.0 * truth > top
    border = [foreground[0], foreground[-1], foreground[:, 0], foreground[:, -1]]
    if not foreground.any():
        notes.append("ground truth has no foreground")
    elif foreground.mean() > 0.5 and np.concatenate(border).mean() > 0.5:
        notes.append("ground truth looks inverted, foreground is most of it and of its border")
    if saliency.dtype == np.uint8 and saliency.max() == 1:
        notes.append("prediction of 0 and 1, of 255, taken as it is")
    elif saliency.dtype == np.uint8 and 1 < saliency.max() < 26:
        notes.append("prediction of less than a tenth of white, taken as it is")
    return notes


def _resized(truth: Array, shape: tuple[int, ...]) -> Array:
    """The levels of a mask at another size, by Pillow's bilinear filter, as the official code."""
    height, width = shape
    picture = Image.fromarray(_bytes(truth))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _bytes(values: Array) -> Array:
    """uint8 of a map; floats are rounded to the nearest of 256 levels, as files of them are."""
    if values.dtype == np.uint8:
        return values
    return np.rint(255 * values.astype(np.float32)).astype(np.uint8)


def _given(
    value: Any, name: str, decode: Callable[[Any], tuple[Array, list[str]]]
) -> tuple[Array, list[str]]:
    """A map that the caller gave, and notes; ``decode`` says what Pillow's images mean."""
    if isinstance(value, Image.Image):
        return decode(value)
    values = as_map(value, name)
    # Masks in uint8 arrays are what masks in files are; saliency in them is taken as it is.
    return decode(values) if decode is truth_of and values.dtype == np.uint8 else (values, [])


def _summary(images: Sequence[ImageScores]) -> list[str]:
    """How many images each note is of, and the first of them."""
    counts = Counter(note for image in images for note in image.notes)
    return [
        f"{note}: {tables.counted([i.name for i in images if note in i.notes], 'image')}"
        for note in counts
    ]
