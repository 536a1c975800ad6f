"""The scores of a data set, and the files that hold them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core import options as params
from ..util.files import output_file, write_atomically
from .metrics import Curves
from .tables import Cell, Table, counted

#: The formats of :meth:`Report.save`.
FORMATS = ("json", "csv", "markdown", "latex")

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

    @property
    def title(self) -> str:
        """The protocol and the number of images."""
        count = len(self.images)
        return f"protocol {self.protocol}, {count} image{'s' if count != 1 else ''}"

    @property
    def remarks(self) -> list[str]:
        """The notes, and sentences that say how many files were left out."""
        remarks = list(self.notes)
        for names, left_out in (
            (self.missing, "ground truth without a prediction"),
            (self.extra, "prediction without a ground truth"),
        ):
            if names:
                remarks.append(f"{left_out}, left out: {counted(names, 'file')}")
        if self.failed:
            remarks.append(f"pairs that cannot be read, left out: {len(self.failed)}")
        return remarks

    def to_text(self) -> str:
        """A table for a terminal: a line for each score, its value and meaning; the remarks."""
        rows = [(key, value, MEANINGS[key]) for key, value in self.scores.items()]
        return Table(self.title, ("score", "value", "meaning"), rows, self.remarks).to_text()

    def to_json(self) -> str:
        """A JSON object with all fields but the curves; a score that is not a number is null."""
        content = {
            "protocol": self.protocol,
            "scores": numbers(self.scores),
            "images": [
                {"name": image.name, "scores": numbers(image.scores), "notes": image.notes}
                for image in self.images
            ],
            "missing": self.missing,
            "extra": self.extra,
            "failed": self.failed,
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A row for the data set and a row for each image, under a header."""
        rows: list[list[Cell]] = [[self.protocol, "data set", "", *self.scores.values()]]
        for image in self.images:
            scores = (image.scores[key] for key in self.scores)
            rows.append([self.protocol, "image", image.name, *scores])
        return Table("", ["protocol", "row", "name", *self.scores], rows).to_csv()

    def to_markdown(self) -> str:
        """A Markdown table of the data set's scores, under a line with the protocol."""
        return self._table().to_markdown()

    def to_latex(self) -> str:
        """A LaTeX ``tabular`` of the data set's scores, under a comment with the protocol."""
        return self._table().to_latex()

    def save(self, path: str | os.PathLike[str], format: str) -> None:
        """Writes the report to the file ``path``, whole or not at all.

        ``format``: one of :data:`FORMATS`. Raises ``ValueError`` for another one and ``OSError``
        where the file cannot be written.
        """
        params.choice("format", format, FORMATS)
        # The name of a file may hold bytes that are no text.
        content = str(getattr(self, f"to_{format}")()).encode("utf-8", "replace")
        write_atomically(output_file("path", path), lambda file: file.write(content), durable=True)

    def _table(self) -> Table:
        """One row: the scores of the data set."""
        return Table(self.title, list(self.scores), [list(self.scores.values())])


def numbers(scores: Mapping[str, float]) -> dict[str, float | None]:
    """The scores as JSON can hold them: None for a score that is not a number."""
    return {key: None if math.isnan(value) else value for key, value in scores.items()}
