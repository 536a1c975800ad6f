"""One threshold beside another, without ground truth: a page to choose tau by eye.

A threshold on similarities that suits one backbone may connect all patches of another. The page
shows each photograph with its mask at each threshold, and a table of how much the masks agree.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from ..core import options as params
from ..core.label import PseudoLabels
from ..evaluation.tables import Cell, Table
from ..images.draw import tint
from ..images.load import ImageEntry, ImageError, load_image
from ..images.thumbnails import SIDE, data_url
from ..methods import Selfment
from ..models.labeler import PseudoLabeler
from ..util.files import output_folder, printable, reason, write_atomically
from ..util.html import page
from ..util.words import count_of

PAGE = "taus.html"
_CSS = Path(__file__).with_name("taus.css")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Labelled:
    """A photograph with its label at each threshold."""

    entry: ImageEntry
    picture: Image.Image  # a thumbnail
    labels: Mapping[str, PseudoLabels]  # on the CPU, without a batch axis


@dataclass(frozen=True)
class TauComparison:
    """Compares the masks of several thresholds for the same images."""

    taus: Sequence[str]  #: the thresholds as they were written
    images: int  #: images that were labelled at each of them
    foreground: Sequence[float]  #: mean share of the patches, for each threshold
    without_object: Sequence[int]  #: images whose mask is empty or the whole image
    confidence: Sequence[float]  #: mean confidence
    agreement: npt.NDArray[np.float64]  #: (k, k), mean IoU of the masks of two thresholds
    failed: int  #: images that could not be labelled

    @property
    def table(self) -> Table:
        """A row for each threshold."""
        headings = ["tau", "foreground", "no object", "confidence"]
        rows: list[list[Cell]] = [
            [tau, share, count, confidence, *map(float, agreement)]
            for tau, share, count, confidence, agreement in zip(
                *(self.taus, self.foreground, self.without_object, self.confidence),
                self.agreement,
                strict=True,
            )
        ]
        images = count_of(self.images, "image")
        title = f"{images}; the last columns are the IoU with the masks of another tau"
        return Table(title, [*headings, *(f"with {tau}" for tau in self.taus)], rows)


def compare_taus(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    taus: Sequence[float | str],
    backbone: str | None = None,
    size: int | None = None,
    *,
    method: Selfment | None = None,
    progress: bool = True,
    **options: Any,
) -> TauComparison:
    """Labels a few images at each threshold, and writes the page ``out/taus.html``.

    The backbone runs once for each image. An image that cannot be read or labelled is reported on
    stderr and left out.

    Args:
        images: from :func:`selfment.images.find_images`; all thumbnails are kept in memory.
        out: the folder for the page; it is made if it is missing.
        taus: two thresholds or more; see :func:`selfment.affinity`.
        backbone: see :class:`selfment.PseudoLabeler`.
        size: see there.
        method: the other options of the cut and of IPO; None for their defaults.
        progress: show a bar on stderr.
        options: others of :class:`selfment.PseudoLabeler`.

    Raises:
        ValueError: a wrong argument, or no image could be labelled.
        selfment.backbones.WeightsError: the backbone cannot be loaded.
    """
    names = [str(tau) for tau in taus]
    distinct = len(names) >= 2 and len(set(names)) == len(names)
    params.require("tau", ",".join(names), "two different thresholds at least", distinct)
    base = Selfment() if method is None else method
    labelers = {
        name: PseudoLabeler(
            backbone, size, method=replace(base, cut=replace(base.cut, tau=tau)), **options
        )
        for name, tau in zip(names, taus, strict=True)
    }
    first = labelers[names[0]]
    if progress and first.note:
        print(first.note, file=sys.stderr)
    file = output_folder("out", out) / PAGE
    _ = first.backbone
    bar = tqdm(images, unit="image", disable=not progress, file=sys.stderr)
    attempts = [_label_or_report(entry, labelers) for entry in bar]
    labelled = [image for image in attempts if image is not None]
    params.require("images", len(images), "images of which one can be labelled", len(labelled) > 0)
    comparison = _summary(names, labelled, failed=len(attempts) - len(labelled))
    title = f"Thresholds of {first.recorded_name}, {first.size} pixels"
    content = page(title, _body(title, comparison, labelled), assets=[_CSS])
    write_atomically(file, lambda stream: stream.write(content), durable=True)
    return comparison


def _label_or_report(entry: ImageEntry, labelers: Mapping[str, PseudoLabeler]) -> _Labelled | None:
    """Labels one image; reports why it cannot be labelled, and then returns None."""
    try:
        return _label(entry, labelers)
    except Exception as error:  # the backbone may be the user's
        sentence = str(error) if isinstance(error, ImageError) else reason(error)
        tqdm.write(printable(f"cannot label {entry.path}: {sentence}"), file=sys.stderr)
        return None


def _label(entry: ImageEntry, labelers: Mapping[str, PseudoLabeler]) -> _Labelled:
    """Labels one image at each threshold; the backbone of the first labeler runs once."""
    first = next(iter(labelers.values()))
    picture = load_image(entry.path)[0]
    pixels = first.preprocess(picture)[None]
    features = first.backbone(pixels)
    grid = first.backbone.grid(*pixels.shape[-2:])
    labels = {}
    for name, labeler in labelers.items():
        labeler.share(first)
        batch = labeler.label_features(features, grid)
        assert isinstance(batch, PseudoLabels)
        labels[name] = PseudoLabels(**{field: value[0] for field, value in vars(batch).items()})
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return _Labelled(entry, picture, labels)


def _summary(names: Sequence[str], labelled: Sequence[_Labelled], failed: int) -> TauComparison:
    masks = [{name: image.labels[name].mask.numpy() for name in names} for image in labelled]
    agreement = np.array(
        [[np.mean([_iou(of[one], of[other]) for of in masks]) for other in names] for one in names]
    )
    confidences = [[float(image.labels[name].confidence) for image in labelled] for name in names]
    return TauComparison(
        taus=names,
        images=len(labelled),
        foreground=[float(np.mean([of[name].mean() for of in masks])) for name in names],
        without_object=[sum(of[name].mean() in (0, 1) for of in masks) for name in names],
        confidence=[float(np.mean(values)) for values in confidences],
        agreement=agreement,
        failed=failed,
    )


def _iou(one: Bools, other: Bools) -> float:
    """Returns the intersection over union; 1 if both masks are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def _body(title: str, comparison: TauComparison, labelled: Sequence[_Labelled]) -> str:
    table = comparison.table
    headings = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return (
        f"<h1>{escape(title)}</h1>\n<p>{escape(table.title)}. Choose the threshold whose masks "
        "cover whole objects and nothing else; where neighbouring thresholds agree, the choice "
        "matters little. The confidence is no criterion: it rises with tau, because a sparser "
        "graph is cheaper to cut.</p>\n"
        f"<table><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>\n"
        + "\n".join(_figures(image) for image in labelled)
    )


def _cell(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else escape(str(cell))


def _figures(image: _Labelled) -> str:
    figures = [_figure(image.picture, "image")]
    for name, label in image.labels.items():
        share, confidence = label.mask.float().mean().item(), label.confidence.item()
        tau = f"auto: {label.tau.item():.2f}" if name == params.AUTO else name
        caption = f"tau {tau}; foreground {100 * share:.0f} %, confidence {confidence:.2f}"
        figures.append(_figure(tint(image.picture, label.mask), caption))
    return f'<h2>{escape(str(image.entry.name))}</h2><div class="row">{"".join(figures)}</div>'


def _figure(picture: Image.Image, caption: str) -> str:
    return (
        f'<figure><img src="{data_url(picture)}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
