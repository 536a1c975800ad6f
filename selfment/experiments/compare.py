"""The paper's comparison of methods, and its ablation of the initial split, over one folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core import options as params
from ..evaluation.folders import evaluate, without_image
from ..evaluation.pairs import by_stem, check_complete
from ..evaluation.report import Report, numbers
from ..evaluation.tables import Cell, Table
from ..images.load import ImageEntry
from ..images.maps import read_truth
from ..jobs.label import label_images
from ..methods import METHODS, Method, MultiObject, as_method
from ..models.labeler import PseudoLabeler
from ..util.files import atomic_file, nfc, output_folder, output_path
from ..util.words import count_of

_VARIANT = ("method", "initial split")  # headings

#: The files of a comparison, by format.
FILES = {
    "text": "comparison.txt",
    "json": "comparison.json",
    "csv": "comparison.csv",
    "markdown": "comparison.md",
    "latex": "comparison.tex",
}


@dataclass(frozen=True)
class Comparison:
    """The scores of methods, and of initial splits, on the same images, in the paper's protocol."""

    reports: dict[str, Report]  #: by the methods' names
    notes: list[str] = field(default_factory=list)  #: what was left out

    @property
    def table(self) -> Table:
        """A row for each method: the scores, under the protocol."""
        rows: list[list[Cell]] = [
            [*cells(name), *report.scores.values()] for name, report in self.reports.items()
        ]
        report = self._first
        return Table(report.title, [*_VARIANT, *report.scores], rows, self.notes)

    def to_text(self) -> str:
        """A table for a terminal, under a line with the protocol, and the notes."""
        return self.table.to_text()

    def to_json(self) -> str:
        """A JSON object: protocol, notes, and the scores of each row."""
        content = {
            "protocol": self._first.protocol,
            "rows": [
                {
                    "method": cells(name)[0],
                    "init": cells(name)[1] or None,
                    "images": len(report.images),
                    "scores": numbers(report.scores),
                }
                for name, report in self.reports.items()
            ],
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A row for each method, with all digits, under a header."""
        rows: list[list[Cell]] = [
            [report.protocol, *cells(name), len(report.images), *report.scores.values()]
            for name, report in self.reports.items()
        ]
        headings = ["protocol", *_VARIANT, "images", *self._first.scores]
        return Table("", headings, rows).to_csv()

    def to_markdown(self) -> str:
        """A Markdown table, under a line with the protocol."""
        return self.table.to_markdown()

    def to_latex(self) -> str:
        """A LaTeX ``tabular``, under a comment with the protocol."""
        return self.table.to_latex()

    def save(self, folder: Path) -> None:
        """Writes the table into :data:`FILES` in the folder."""
        for form, file in FILES.items():
            content = str(getattr(self, f"to_{form}")()).encode()
            with atomic_file(folder / file, durable=True) as stream:
                stream.write(content)

    @property
    def _first(self) -> Report:
        return next(iter(self.reports.values()))


def cells(name: str) -> tuple[str, str]:
    """Returns the first two cells of a row: the method, and its initial split if it has one."""
    method, _, init = name.partition("-")
    return method, init or ("ncut" if method == "selfment" else "")


def compare(
    images: Sequence[ImageEntry],
    gt: str | os.PathLike[str],
    out: str | os.PathLike[str],
    backbone: str | None = None,
    size: int | None = None,
    *,
    methods: Sequence[Method | str] = tuple(METHODS),
    leave_out: bool = False,
    gt_suffix: str = "",
    allow_missing: bool = False,
    workers: int = 1,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Labels the images by each method, and scores the masks against those in the folder ``gt``.

    The ground truth is read before anything is labelled. The backbone is loaded once, and runs once
    for each method.

    Args:
        images: from :func:`selfment.images.find_images`.
        gt: the folder of the ground truth.
        out: the folder for the table in :data:`FILES`, and for a folder of masks for each method,
            as :func:`label_images` writes and continues it.
        backbone: see :class:`selfment.PseudoLabeler`.
        size: see there.
        methods: see :mod:`selfment.methods`; each makes one mask of each image.
        leave_out: leave out, with a note, methods that the backbone does not suit; else an error.
        gt_suffix: see :func:`selfment.evaluate`.
        allow_missing: see there.
        workers: see there.
        progress: show the methods' names and bars on stderr.
        options: others of :class:`selfment.PseudoLabeler`.

    Raises ``ValueError`` for wrong arguments, for images that cannot be labelled, and for an
    ``out`` with masks of other images, and whatever labelling and evaluation raise.
    """
    folder = output_path("out", out)
    truths = Path(os.path.abspath(gt))
    apart = truths != folder and truths not in folder.parents
    params.require("out", os.fspath(out), "no folder of ground truths, which `gt` is", apart)
    first = PseudoLabeler(backbone, size, **options)
    if progress and first.note:
        print(first.note, file=sys.stderr)
    labelers: dict[str, PseudoLabeler] = {}
    left_out = []
    for method in _chosen(methods):
        if leave_out and method.cls_token and not first.backbone.attends:
            left_out.append(f"{method.needs}, left out")
            continue
        labelers[method.name] = PseudoLabeler(backbone, size, method=method, **options)
        labelers[method.name].share(first)
    _ = first.torch_device  # an error of the device comes first
    _check_truths(images, gt, gt_suffix, allow_missing)
    output_folder("out", out)
    reports = {}
    for name, labeler in labelers.items():
        reports[name] = _score(
            labeler, images, gt, gt_suffix, folder / name, allow_missing, workers, progress
        )
    comparison = Comparison(reports, left_out)
    comparison.save(folder)
    return comparison


def _chosen(methods: Sequence[Method | str]) -> list[Method]:
    """Returns the methods to compare, each once; raises ``ValueError``."""
    chosen: dict[str, Method] = {}
    for method in map(as_method, methods):
        if isinstance(method, MultiObject):
            raise ValueError(f"`methods` must make one mask of each image: got {method.name!r}")
        if chosen.setdefault(method.name, method) != method:
            raise ValueError(f"`methods` must have different names: got {method.name!r} twice")
    params.require("methods", methods, "one method at least", len(chosen) > 0)
    return list(chosen.values())


def _check_truths(
    images: Sequence[ImageEntry], gt: str | os.PathLike[str], gt_suffix: str, allow_missing: bool
) -> None:
    """Raises ``ValueError`` if the images could not be scored once they are labelled."""
    truths = by_stem(gt, "gt", gt_suffix)
    stems = [nfc(entry.mask_name.removesuffix(".png")) for entry in images]
    if not allow_missing:
        missing = sorted(truths.keys() - set(stems))
        missing = sorted(set(missing) - set(without_image(gt, missing)))
        extra = [stem for stem in stems if stem not in truths]
        check_complete(missing, extra, "images", "photograph")
    for stem in stems:
        if stem in truths:
            read_truth(truths[stem])


def _score(
    labeler: PseudoLabeler,
    images: Sequence[ImageEntry],
    gt: str | os.PathLike[str],
    gt_suffix: str,
    folder: Path,
    allow_missing: bool,
    workers: int,
    progress: bool,
) -> Report:
    """Labels the images that are not labelled yet, and scores the folder."""
    if progress:
        print(folder.name, file=sys.stderr)
    summary = label_images(images, folder, labeler, progress=progress)
    if summary.failed:
        raise ValueError(
            f"all images must be labelled to be compared: {summary.failed} of {len(images)} "
            f"failed, see {folder}/labels.jsonl"
        )
    report = evaluate(
        folder,
        gt,
        protocol="paper",
        workers=workers,
        allow_missing=allow_missing,
        suffix="",
        gt_suffix=gt_suffix,
        progress=progress,
    )
    masks = len(report.images) + len(report.extra) + len(report.failed)
    if masks != len(images):
        raise ValueError(
            f"`out` must hold the masks of these images alone: got {count_of(masks, 'mask')} in "
            f"{folder} for {count_of(len(images), 'image')}"
        )
    if report.failed:
        raise ValueError(f"all masks must be scored to be compared: {report.failed[0]}")
    return report
