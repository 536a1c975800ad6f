"""Comparisons as text: for a terminal, JSON, CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

from ..evaluation.tables import latex, markdown, numbers, title, values

if TYPE_CHECKING:
    from ..evaluation.scores import Report
    from .compare import Comparison

_VARIANT = ["method", "initial split"]


def variant_name(variant: tuple[str, str]) -> str:
    """A method, with its initial split where that is not the normalised cut."""
    method, init = variant
    return method if init == "ncut" else f"{method}-{init}"


def comparison_text(comparison: Comparison) -> str:
    """See :meth:`selfment.experiments.compare.Comparison.to_text`."""
    names, rows = _compared(comparison)
    lines = [[*_VARIANT, *names], *rows]
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i < len(_VARIANT) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, wide, strict=True))
        )
        for line in lines
    ]
    notes = [f"note: {note}" for note in comparison.notes]
    return "\n".join([_over(comparison), *text, *notes]) + "\n"


def comparison_json(comparison: Comparison) -> str:
    """See :meth:`selfment.experiments.compare.Comparison.to_json`."""
    content = {
        "protocol": _first(comparison).protocol,
        "rows": [
            {
                "method": method,
                "init": init if method == "selfment" else None,
                "images": len(report.images),
                "scores": numbers(report.scores),
            }
            for (method, init), report in comparison.reports.items()
        ],
        "notes": comparison.notes,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def comparison_csv(comparison: Comparison) -> str:
    """See :meth:`selfment.experiments.compare.Comparison.to_csv`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names, rows = _compared(comparison)
    writer.writerow(["protocol", *_VARIANT, "images", *names])
    for row, report in zip(rows, comparison.reports.values(), strict=True):
        variant, scores = row[: len(_VARIANT)], map(repr, report.scores.values())
        writer.writerow([report.protocol, *variant, len(report.images), *scores])
    return file.getvalue()


def comparison_markdown(comparison: Comparison) -> str:
    """See :meth:`selfment.experiments.compare.Comparison.to_markdown`."""
    return markdown(_over(comparison), _VARIANT, *_compared(comparison))


def comparison_latex(comparison: Comparison) -> str:
    """See :meth:`selfment.experiments.compare.Comparison.to_latex`."""
    return latex(_over(comparison), _VARIANT, *_compared(comparison))


def _first(comparison: Comparison) -> Report:
    return next(iter(comparison.reports.values()))


def _over(comparison: Comparison) -> str:
    return title(_first(comparison))


def _compared(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """The names of the scores, and the cells of each row."""
    rows = [
        [method, init if method == "selfment" else "", *values(report)]
        for (method, init), report in comparison.reports.items()
    ]
    return list(_first(comparison).scores), rows
