"""A report as text: for a terminal, JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .evaluation import Report

_NAMED = 5  # files that a sentence lists at most

#: What each score is, in a few words.
MEANINGS = {
    "F_max": "paper: mean of the images' largest F, beta^2 = 0.09, 255 thresholds",
    "IoU": "intersection over union at 0.5",
    "Acc": "pixels that agree at 0.5",
    "Sm": "PySODMetrics: S-measure, alpha = 0.5",
    "wFm": "PySODMetrics: weighted F, beta^2 = 1",
    "MAE": "PySODMetrics: mean absolute error, smaller is better",
    "maxEm": "PySODMetrics: E-measure, maximum of the mean curve",
    "meanEm": "PySODMetrics: E-measure, mean of the mean curve",
    "adpEm": "PySODMetrics: E-measure at twice the mean saliency",
    "maxFm": "PySODMetrics: F, beta^2 = 0.3, maximum of the mean curve",
    "meanFm": "PySODMetrics: F, beta^2 = 0.3, mean of the mean curve",
    "adpFm": "PySODMetrics: F, beta^2 = 0.3, at twice the mean saliency",
    "maxF_tokencut": "TokenCut: F, beta^2 = 0.3, maximum of the mean curve",
}


def title(report: Report) -> str:
    """The protocol and the number of images."""
    count = len(report.images)
    return f"protocol {report.protocol}, {count} image{'s' if count != 1 else ''}"


def remarks(report: Report) -> list[str]:
    """The notes, and how many files were left out."""
    found = list(report.notes)
    for names, what in (
        (report.missing, "ground truth without a prediction, left out"),
        (report.extra, "prediction without a ground truth, left out"),
    ):
        if names:
            found.append(f"{what}: {counted(names, 'file')}")
    if report.failed:
        found.append(f"pairs that cannot be read, left out: {len(report.failed)}")
    return found


def counted(names: Sequence[str], unit: str) -> str:
    """How many there are, and the first of them."""
    listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names)} {unit}{'s' if len(names) > 1 else ''} ({listed})"


def number(score: float) -> str:
    """Four decimals."""
    return f"{score:.4f}"


def to_text(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_text`."""
    wide = max(map(len, report.scores))
    rows = [f"{key:<{wide}}  {number(v):>6}  {MEANINGS[key]}" for key, v in report.scores.items()]
    notes = [f"note: {remark}" for remark in remarks(report)]
    return "\n".join([title(report), *rows, *notes]) + "\n"


def to_json(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_json`."""
    content = {
        "protocol": report.protocol,
        "scores": _numbers(report.scores),
        "images": [
            {"name": image.name, "scores": _numbers(image.scores), "notes": image.notes}
            for image in report.images
        ],
        "missing": report.missing,
        "extra": report.extra,
        "failed": report.failed,
        "notes": report.notes,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_csv(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_csv`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["protocol", "row", "name", *report.scores])
    writer.writerow([report.protocol, "data set", "", *map(repr, report.scores.values())])
    for image in report.images:
        scores = (repr(image.scores[key]) for key in report.scores)
        writer.writerow([report.protocol, "image", image.name, *scores])
    return file.getvalue()


def to_markdown(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_markdown`."""
    names, line = (" | ".join(cells) for cells in (report.scores, ["---:"] * len(report.scores)))
    values = " | ".join(map(number, report.scores.values()))
    return f"Scores: {title(report)}\n\n| {names} |\n| {line} |\n| {values} |\n"


def to_latex(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_latex`."""
    names = " & ".join(key.replace("_", r"\_") for key in report.scores)
    values = " & ".join(map(number, report.scores.values()))
    lines = [
        f"% {title(report)}",
        rf"\begin{{tabular}}{{{'r' * len(report.scores)}}}",
        r"\hline",
        rf"{names} \\",
        r"\hline",
        rf"{values} \\",
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _numbers(scores: dict[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in scores.items()}
