"""The scores of saliency maps against masks, one after another, under a protocol.

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

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core import options as params
from ..core.torch_state import SETTINGS
from ..images.maps import saliency_of, truth_of
from ..util.extras import load_extra
from .metrics import Curves, accuracy, as_map, f_curves, iou, tokencut_curves
from .report import ImageScores, Report
from .tables import counted

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
# The scores that are read off the mean curve: which curve, its row, and how.
_FROM_CURVE: dict[str, tuple[str, int, Callable[[Array], Any]]] = {
    "maxEm": ("em", 0, np.max),
    "meanEm": ("em", 0, np.mean),
    "maxFm": ("pysod", 2, np.max),
    "meanFm": ("pysod", 2, np.mean),
    "maxF_tokencut": ("tokencut", 2, np.max),
}


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
        self._wanted = wanted_scores(protocol, metrics)
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
        scored = score(saliency, truth, self._wanted, [*notes, *more])
        return self.add(str(len(self._images)) if name is None else name, scored)

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

    def add(
        self, name: str, scored: Scored, prediction: Path | None = None, truth: Path | None = None
    ) -> ImageScores:
        """Adds what :func:`score` has found for the files ``prediction`` and ``truth``."""
        image = ImageScores(name, scored.scores, scored.notes, prediction, truth)
        self._images.append(image)
        for key, curve in scored.curves.items():
            # In the images' order, as the library's mean over them is.
            self._sums[key] = self._sums[key] + curve if key in self._sums else curve
        return image


def wanted_scores(protocol: str, metrics: Sequence[str] | None) -> tuple[str, ...]:
    """The names of a protocol's scores, or those of them in ``metrics``.

    Raises ``ValueError`` for others, and ``ImportError`` where a library is missing.
    """
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
class Scored:
    """One pair's scores; its curves, (3, T) precision, recall and F, or (1, T) the E-measure."""

    scores: dict[str, float]
    curves: dict[str, Array]
    notes: list[str]


def score(saliency: Array, truth: Array, wanted: tuple[str, ...], notes: Sequence[str]) -> Scored:
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
    return Scored({key: scores[key] for key in wanted}, curves, notes)


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
        f"{note}: {counted([i.name for i in images if note in i.notes], 'image')}"
        for note in counts
    ]
