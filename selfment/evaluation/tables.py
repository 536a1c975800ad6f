"""A table of scores: for a terminal, as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

_LISTED = 5  # names in a sentence at most

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under headings.

    A column of texts is aligned to the left, a column of numbers to the right.
    """

    title: str  #: one line above the table; "" for none
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()  #: sentences below the table, in the text for a terminal only

    def to_text(self) -> str:
        """The table for a terminal, with the notes; scores have four decimals."""
        notes = [f"note: {note}" for note in self.notes]
        lines = ["  ".join(line).rstrip() for line in self._aligned()]
        return "\n".join([*self._head(), *lines, *notes]) + "\n"

    def to_markdown(self) -> str:
        """The table in Markdown; scores have four decimals."""
        headings, *rows = [f"| {' | '.join(line)} |" for line in self._aligned()]
        rule = "|".join(
            "-" * (len(cell) + 1) + (":" if right else "-")
            for cell, right in zip(self._aligned()[0], self._are_numbers(), strict=True)
        )
        head = [line for title in self._head() for line in (title, "")]
        return "\n".join([*head, headings, f"|{rule}|", *rows]) + "\n"

    def to_latex(self) -> str:
        """A LaTeX ``tabular`` under a comment with the title; scores have four decimals."""
        columns = "".join("r" if right else "l" for right in self._are_numbers())
        heading, *rows = [rf"{' & '.join(line)} \\".replace("_", r"\_") for line in self._texts()]
        head = [f"% {title}" for title in self._head()]
        begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
        lines = [*head, begin, r"\hline", heading, r"\hline", *rows, r"\hline", end]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """The headings and the rows, with all digits of the scores."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.headings)
        for row in self.rows:
            writer.writerow([repr(cell) if isinstance(cell, float) else cell for cell in row])
        return file.getvalue()

    def _head(self) -> list[str]:
        return [self.title] if self.title else []

    def _are_numbers(self) -> list[bool]:
        """Returns for each column whether it has numbers."""
        columns = zip(*self.rows, strict=True)
        return [all(not isinstance(cell, str) for cell in column) for column in columns]

    def _texts(self) -> list[list[str]]:
        """The headings and the rows as texts."""
        rows = [
            [number(cell) if isinstance(cell, float) else str(cell) for cell in row]
            for row in self.rows
        ]
        return [list(self.headings), *rows]

    def _aligned(self) -> list[list[str]]:
        """The headings and the rows as texts, each padded to the width of its column."""
        lines = self._texts()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return [
            [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self._are_numbers(), strict=True)
            ]
            for line in lines
        ]


def number(score: float) -> str:
    """A score with four decimals."""
    return f"{score:.4f}"


def counted(names: Sequence[str], unit: str) -> str:
    """The number of ``names`` and the first of them: ``"2 files (a, b)"``."""
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return f"{len(names)} {unit}{'s' if len(names) > 1 else ''} ({listed})"
