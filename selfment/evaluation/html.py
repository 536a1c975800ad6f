"""A report as one HTML file that opens without a network: scores, curves, pictures, all images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core import options as params
from ..util.files import PAGES, output_file, write_atomically
from ..util.html import page
from .pairs import by_stem
from .pictures import pictures_of, worst_first
from .report import MEANINGS, ImageScores, Report
from .tables import number

#: The most images whose pictures are in a page, unless it is told otherwise.
PICTURES = 200

_BINS = 20  # of a histogram
_NAMES = {"paper": "paper", "pysod": "PySODMetrics", "tokencut": "TokenCut"}
_WIDTH, _HEIGHT, _LEFT, _BELOW = 380, 280, 44, 40  # of a plot and its margins, in pixels


@dataclass(frozen=True)
class Page:
    """A page of scores, and how many images it shows."""

    content: bytes  #: the HTML file
    pictured: int  #: images whose pictures are in it
    left_out: int  #: images whose pictures are not, although they have files

    @property
    def remark(self) -> str:
        """A sentence on the pictures that were left out; empty if there are none."""
        if not self.left_out:
            return ""
        whole = self.pictured + self.left_out
        return (
            f"the page has the pictures of {self.pictured:,} of {whole:,} images, the best and the "
            f"worst; --pictures {whole} shows all"
        )


def write_html(
    report: Report,
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    gallery: int = 8,
    pictures: int = PICTURES,
) -> Page:
    """Writes ``report`` to the HTML file ``path``, whole or not at all; returns the page.

    The page holds the scores, the curves, a histogram of each score, the worst and the best images
    by the first score, and a table of all images that a click on a heading sorts. A row opens the
    photograph, ground truth, prediction, and where they differ at a threshold that can be moved.

    Args:
        report: The scores of a data set.
        path: The file.
        images: A folder with the photographs; each has the path and stem of its ground truth.
        gallery: How many of the worst images, and of the best, are shown above the table.
        pictures: How many images have their pictures in the page, at most 200 pixels wide and high:
            the best of the gallery, then the worst. Images of arrays have none.

    Raises:
        ValueError: ``gallery`` or ``pictures`` is < 0, or ``images`` has no image or two of a stem.
        OSError: The file cannot be written.
    """
    made = make_page(report, images=images, gallery=gallery, pictures=pictures)
    file = output_file("path", path, PAGES)
    write_atomically(file, lambda opened: opened.write(made.content), durable=True)
    return made


def make_page(
    report: Report,
    *,
    images: str | os.PathLike[str] | None = None,
    gallery: int = 8,
    pictures: int = PICTURES,
) -> Page:
    """Returns the page that :func:`write_html` writes."""
    for name, value in (("gallery", gallery), ("pictures", pictures)):
        params.require(name, value, "an integer >= 0", isinstance(value, int) and value >= 0)
    photographs = {} if images is None else by_stem(images, "images")
    places = worst_first(report)
    shown = min(gallery, (len(places) + 1) // 2)
    best = places[shown:][-shown:][::-1] if shown else []
    chosen = {*best, *places[: max(0, pictures - len(best))]} if pictures >= len(best) else set()
    items = [
        {
            "name": image.name,
            "notes": image.notes,
            "pictures": pictures_of(image, photographs.get(image.name)) if k in chosen else None,
        }
        for k, image in enumerate(report.images)
    ]
    made = Page(b"", len(chosen), len(places) - len(chosen))
    heading = escape(report.title)
    notes = [*report.remarks, *report.failed, *filter(None, [made.remark])]
    parts = [
        f"<h1>Evaluation</h1><p>{heading[0].upper()}{heading[1:]}</p>",
        _scores(report),
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        _curves(report),
        _histograms(report),
        _gallery(report, [k for k in places[:shown] if k in chosen], "Worst"),
        _gallery(report, [k for k in best if k in chosen], "Best"),
        _table(report),
        _DIALOG,
    ]
    body = "\n".join(part for part in parts if part)
    assets = [Path(__file__).with_name(name) for name in ("report.css", "report.js")]
    content = page(f"Evaluation: {report.title}", body, data=items, assets=assets)
    return Page(content, made.pictured, made.left_out)


def _scores(report: Report) -> str:
    rows = "".join(
        f"<tr><th>{key}</th><td>{number(score)}</td><td>{escape(MEANINGS[key])}</td></tr>"
        for key, score in report.scores.items()
    )
    return f'<table class="scores"><tbody>{rows}</tbody></table>'


def _curves(report: Report) -> str:
    if not report.curves:
        return ""
    recall = {key: (curve.recall, curve.precision) for key, curve in report.curves.items()}
    threshold = {
        key: (np.linspace(0, 1, len(curve.f)), curve.f) for key, curve in report.curves.items()
    }
    return (
        '<h2>Curves</h2><p>Means over the images.</p><div class="row">'
        f"{_plot('Precision and recall', 'recall', 'precision', recall)}"
        f"{_plot('F measure by threshold', 'threshold', 'F', threshold)}</div>"
    )


def _plot(
    name: str,
    across: str,
    up: str,
    lines: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
) -> str:
    """A plot of curves in the unit square, as SVG."""
    right, top = _WIDTH - 12, 42
    bottom = _HEIGHT - _BELOW
    parts = [f'<text x="{_LEFT}" y="16" class="name">{escape(name)}</text>']
    for tick in range(6):
        x = _LEFT + tick / 5 * (right - _LEFT)
        y = bottom + tick / 5 * (top - bottom)
        parts.append(
            f'<path class="grid" d="M{x:.1f} {top}V{bottom}M{_LEFT} {y:.1f}H{right}"/>'
            f'<text x="{x:.1f}" y="{bottom + 14}" class="middle">{tick / 5:.1f}</text>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" class="end">{tick / 5:.1f}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + right) / 2:.1f}" y="{bottom + 32}" class="middle">{across}</text>'
        f'<text transform="translate(12 {(top + bottom) / 2:.1f}) rotate(-90)" class="middle">'
        f"{up}</text>"
    )
    label = _LEFT
    for key, (xs, ys) in lines.items():
        points = " ".join(
            f"{_LEFT + x * (right - _LEFT):.1f},{bottom + y * (top - bottom):.1f}"
            for x, y in zip(xs, ys, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        )
        parts.append(
            f'<polyline points="{points}" class="line {key}"/>'
            f'<text x="{label}" y="32" class="{key}">{_NAMES[key]}</text>'
        )
        label += 20 + 7 * len(_NAMES[key])
    return _svg(_WIDTH, _HEIGHT, parts)


def _histograms(report: Report) -> str:
    plots = []
    for key in report.scores:
        values = np.array([image.scores[key] for image in report.images])
        counts, _ = np.histogram(values[np.isfinite(values)], bins=_BINS, range=(0, 1))
        tallest = max(int(counts.max()), 1)
        parts = [f'<text x="8" y="14" class="name">{key}</text>']
        for bin_, count in enumerate(counts):
            height = 70 * count / tallest
            parts.append(
                f'<rect x="{8 + 9 * bin_}" y="{92 - height:.1f}" width="8" height="{height:.1f}">'
                f"<title>{bin_ / _BINS:.2f} to {(bin_ + 1) / _BINS:.2f}: {count}</title></rect>"
            )
        parts.append(
            '<path class="axis" d="M8 92.5H188"/><text x="8" y="106">0</text>'
            '<text x="188" y="106" class="end">1</text>'
            f'<text x="188" y="14" class="end">highest: {tallest}</text>'
        )
        plots.append(_svg(196, 112, parts))
    return f'<h2>Histograms</h2><p>Images by score.</p><div class="row">{"".join(plots)}</div>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def _gallery(report: Report, places: Sequence[int], which: str) -> str:
    """Buttons that open images; the script adds the pictures."""
    if not places:
        return ""
    key = next(iter(report.scores))
    figures = "".join(
        f'<button class="figure open" data-row="{k}" aria-haspopup="dialog"><span></span>'
        f"{escape(report.images[k].name)} <b>{number(report.images[k].scores[key])}</b></button>"
        for k in places
    )
    return f'<h2>{which} by {key}</h2><div class="row">{figures}</div>'


def _table(report: Report) -> str:
    keys = ["name", *report.scores]
    headings = "".join(f"<th><button>{key}</button></th>" for key in keys)
    rows = "\n".join(_row(k, image, list(report.scores)) for k, image in enumerate(report.images))
    return (
        "<h2>All images</h2><p>A click on a heading sorts, a click on a row opens the image.</p>"
        f'<div class="wide"><table id="images"><thead><tr>{headings}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _row(place: int, image: ImageScores, keys: Sequence[str]) -> str:
    cells = "".join(f"<td>{number(image.scores[key])}</td>" for key in keys)
    name = f'<button class="open" aria-haspopup="dialog">{escape(image.name)}</button>'
    return f'<tr data-row="{place}"><td>{name}</td>{cells}</tr>'


_DIALOG = """<dialog id="image" aria-labelledby="image-name">
<div class="top"><h2 id="image-name"></h2><span id="place"></span>
<button id="previous">Previous <kbd>←</kbd></button><button id="next">Next <kbd>→</kbd></button>
<form method="dialog"><button>Close <kbd>Esc</kbd></button></form></div>
<p id="image-scores"></p><p id="image-notes" class="note"></p>
<div id="panels" class="row">
<figure><img id="photo" alt="photograph"><figcaption>photograph</figcaption></figure>
<figure><img id="truth" alt="ground truth"><figcaption>ground truth</figcaption></figure>
<figure><img id="prediction" alt="prediction"><figcaption>prediction</figcaption></figure>
<figure><canvas id="overlay" role="img" aria-label="where they differ"></canvas>
<figcaption><i class="found"></i>found <i class="missed"></i>missed <i class="wrong"></i>wrong
</figcaption></figure></div>
<p id="tune"><label>Threshold <input type="range" id="threshold" min="0" max="255" value="127">
</label> <output id="at"></output></p></dialog>"""
