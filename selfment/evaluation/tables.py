"""Reports as text: for a terminal, JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .scores import Report

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
        "scores": numbers(report.scores),
        "images": [
            {"name": image.name, "scores": numbers(image.scores), "notes": image.notes}
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
    return markdown(title(report), [], list(report.scores), [values(report)])


def to_latex(report: Report) -> str:
    """See :meth:`selfment.evaluation.Report.to_latex`."""
    return latex(title(report), [], list(report.scores), [values(report)])


def values(report: Report) -> list[str]:
    """The scores, each with four decimals."""
    return [number(value) for value in report.scores.values()]


def markdown(over: str, texts: list[str], names: list[str], rows: list[list[str]]) -> str:
    """A table with columns of text and then of numbers."""
    line = ["---"] * len(texts) + ["---:"] * len(names)
    lines = [f"| {' | '.join(cells)} |" for cells in ([*texts, *names], line, *rows)]
    return "\n".join([f"Scores: {over}", "", *lines]) + "\n"


def latex(over: str, texts: list[str], names: list[str], rows: list[list[str]]) -> str:
    """A table with columns of text and then of numbers."""
    head = " & ".join([*texts, *names]).replace("_", r"\_")
    lines = [
        f"% {over}",
        rf"\begin{{tabular}}{{{'l' * len(texts)}{'r' * len(names)}}}",
        r"\hline",
        rf"{head} \\",
        r"\hline",
        *(rf"{' & '.join(row)} \\" for row in rows),
        r"\hline",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def numbers(scores: dict[str, float]) -> dict[str, float | None]:
    """The scores as JSON takes them: None for what is not a number."""
    return {key: None if math.isnan(value) else value for key, value in scores.items()}
