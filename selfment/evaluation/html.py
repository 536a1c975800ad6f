"""A report as one HTML file that opens without a network: scores, curves, pictures, all images."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core import options as params
from ..images.load import ImageError, load_image
from ..images.maps import read_saliency, read_truth
from ..util.files import write_atomically
from .pairs import by_stem
from .report import MEANINGS, ImageScores, Report
from .tables import number

_SIDE = 200  # pixels, of a picture's longer side at most
_BINS = 20  # of a histogram
_COLOURS = {"paper": "#0b6bcb", "pysod": "#c4320a", "tokencut": "#2e7d32"}
_NAMES = {"paper": "paper", "pysod": "PySODMetrics", "tokencut": "TokenCut"}
_WIDTH, _HEIGHT, _LEFT, _BELOW = 380, 280, 44, 40  # of a plot and its margins, in pixels


def write_html(
    report: Report,
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    gallery: int = 8,
) -> None:
    """Writes ``report`` to the HTML file ``path``, whole or not at all.

    The page holds the scores, the curves, a histogram of each score, the ``gallery`` worst and the
    ``gallery`` best images by the first score with ground truth and prediction, and a table of all
    images that a click on a heading sorts. ``images``: a folder with photographs; a photograph of
    the same path and stem is shown beside its prediction. Pictures are at most 200 pixels wide and
    high, and are left out for scores of arrays. Raises ``ValueError`` for a ``gallery`` < 0, and
    for ``images`` without an image or with two of one stem.
    """
    text = to_html(report, images=images, gallery=gallery)
    # A file's name may hold bytes that are no text.
    content = text.encode("utf-8", "replace")
    write_atomically(Path(path), lambda file: file.write(content), durable=True)


def to_html(
    report: Report, *, images: str | os.PathLike[str] | None = None, gallery: int = 8
) -> str:
    """The text of the file that :func:`write_html` writes."""
    whole = isinstance(gallery, int)
    params.require("gallery", gallery, "an integer >= 0", whole and gallery >= 0)
    photographs = {} if images is None else by_stem(images, "images")
    heading = escape(report.title)
    notes = [*report.remarks, *report.failed]
    parts = [
        f"<h1>Evaluation</h1><p>{heading[0].upper()}{heading[1:]}</p>",
        _scores(report),
        "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        _curves(report),
        _histograms(report),
        _gallery(report, photographs, gallery),
        _table(report),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Evaluation: {heading}</title><style>{_asset('report.css')}</style></head>\n"
        f"<body>\n{body}\n<script>\n{_asset('report.js')}</script>\n</body></html>\n"
    )


def _asset(name: str) -> str:
    """The text of a file beside this module."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


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
        colour = _COLOURS[key]
        parts.append(
            f'<polyline points="{points}" stroke="{colour}" class="line"/>'
            f'<text x="{label}" y="32" fill="{colour}">{_NAMES[key]}</text>'
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


def _gallery(report: Report, photographs: Mapping[str, Path], count: int) -> str:
    key = next(iter(report.scores))
    shown = [image for image in report.images if image.prediction is not None]
    shown = [image for image in shown if not math.isnan(image.scores[key])]
    if not shown or not count:
        return ""
    sign = -1 if key == "MAE" else 1
    shown.sort(key=lambda image: sign * image.scores[key])
    count = min(count, (len(shown) + 1) // 2)
    best = shown[count:][-count:][::-1]
    parts = [f"<h2>Worst by {key}</h2>{_pictures(shown[:count], key, photographs)}"]
    if best:
        parts.append(f"<h2>Best by {key}</h2>{_pictures(best, key, photographs)}")
    return "".join(parts)


def _pictures(chosen: Sequence[ImageScores], key: str, photographs: Mapping[str, Path]) -> str:
    figures = []
    for image in chosen:
        sources = [("image", photographs.get(image.name))]
        sources += [("ground truth", image.truth), ("prediction", image.prediction)]
        pictures = "".join(_picture(what, path) for what, path in sources if path is not None)
        caption = f"{escape(image.name)} <b>{number(image.scores[key])}</b>"
        figures.append(f"<figure><div>{pictures}</div><figcaption>{caption}</figcaption></figure>")
    return f'<div class="row">{"".join(figures)}</div>'


def _picture(what: str, path: Path) -> str:
    try:
        if what == "image":
            picture = load_image(path)[0]
        else:
            read = read_truth if what == "ground truth" else read_saliency
            picture = Image.fromarray(read(path)[0])
    except ImageError:  # the file has changed since it was scored, or is no image
        return f'<span class="none">{what} cannot be read</span>'
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="{what}" title="{what}">'


def _table(report: Report) -> str:
    keys = ["name", *report.scores]
    headings = "".join(f"<th><button>{key}</button></th>" for key in keys)
    rows = "\n".join(
        f"<tr><td>{escape(image.name)}</td>"
        + "".join(f"<td>{number(image.scores[key])}</td>" for key in report.scores)
        + "</tr>"
        for image in report.images
    )
    return (
        "<h2>All images</h2><p>A click on a heading sorts.</p>"
        f'<div class="wide"><table id="images"><thead><tr>{headings}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
