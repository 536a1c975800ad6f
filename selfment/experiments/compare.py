"""The paper's comparison of methods, and its ablation of the initial split, over one folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..evaluation.folders import evaluate, without_image
from ..evaluation.pairs import by_stem, check_complete, nfc
from ..evaluation.report import Report, numbers
from ..evaluation.tables import Cell, Table
from ..images.load import ImageEntry
from ..images.maps import read_truth
from ..jobs.label import label_images
from ..methods import INITS, METHODS, OPTIONS, needs
from ..models.labeler import PseudoLabeler
from ..util.files import atomic_file

Variant = tuple[str, str]  # method and initial split
_VARIANT = ("method", "initial split")  # headings

#: The files of a comparison, by what they hold.
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

    reports: dict[Variant, Report]  #: by method and initial split; "ncut" for other methods
    notes: list[str] = field(default_factory=list)  #: what was left out

    @property
    def table(self) -> Table:
        """A row for each method: the scores, under the protocol."""
        rows: list[list[Cell]] = [
            [*cells(v), *report.scores.values()] for v, report in self.reports.items()
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
                    "method": method,
                    "init": init if method == "selfment" else None,
                    "images": len(report.images),
                    "scores": numbers(report.scores),
                }
                for (method, init), report in self.reports.items()
            ],
            "notes": self.notes,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A row for each method, with all digits, under a header."""
        rows: list[list[Cell]] = [
            [report.protocol, *cells(variant), len(report.images), *report.scores.values()]
            for variant, report in self.reports.items()
        ]
        headings = ["protocol", *_VARIANT, "images", *self._first.scores]
        return Table("", headings, rows).to_csv()

    def to_markdown(self) -> str:
        """A Markdown table, under a line with the protocol."""
        return self.table.to_markdown()

    def to_latex(self) -> str:
        """A LaTeX ``tabular``, under a comment with the protocol."""
        return self.table.to_latex()

    @property
    def _first(self) -> Report:
        return next(iter(self.reports.values()))


def cells(variant: Variant) -> tuple[str, str]:
    """The first two cells of a row: the method, and the initial split where it has one."""
    method, init = variant
    return method, init if method == "selfment" else ""


def variant_name(variant: Variant) -> str:
    """The method, with its initial split where that is not the normalised cut."""
    method, init = variant
    return method if init == "ncut" else f"{method}-{init}"


def compare(
    images: Sequence[ImageEntry],
    gt: str | os.PathLike[str],
    out: str | os.PathLike[str],
    backbone: str | None = None,
    size: int = 768,
    *,
    methods: Sequence[str] | None = None,
    inits: Sequence[str] | None = None,
    gt_suffix: str = "",
    allow_missing: bool = False,
    workers: int = 1,
    progress: bool = True,
    **options: Any,
) -> Comparison:
    """Labels the images by each method, and scores the masks against those in the folder ``gt``.

    ``images``: from :func:`selfment.images.find_images`. ``methods`` and ``inits``: see
    :mod:`selfment.methods`; the splits are those of ``"selfment"``. Without either all that the
    backbone allows are compared. ``options``: of :class:`selfment.PseudoLabeler`; those that only
    one method or split takes do not reach the others, and ``objects`` is none of them.
    ``gt_suffix``, ``allow_missing`` and ``workers``: of :func:`selfment.evaluate`. The ground truth
    is looked for, and read, before anything is labelled.

    ``out`` gets a folder of masks for each row of the table, as :func:`label_images` writes it and
    goes on with it, and the table in :data:`FILES`. The backbone is loaded once and runs once for
    each row. Raises ``ValueError`` for wrong arguments, for images that cannot be labelled, and for
    an ``out`` that holds masks of other images, and whatever labelling and evaluation raise.
    """
    if options.get("objects") is not None:
        raise ValueError(
            "`objects` must be left alone: a comparison scores one mask of each image: got "
            f"{options['objects']!r}"
        )
    folder = Path(os.path.abspath(out))
    chosen = [(method, "ncut") for method in methods or ()]
    chosen += [("selfment", init) for init in inits or ()]
    whole = methods is None and inits is None
    if whole:
        chosen = [*(("selfment", i) for i in INITS), *((method, "ncut") for method in METHODS)]
    if not chosen:
        raise ValueError("`methods` or `inits` must name one at least: got none")
    first = PseudoLabeler(backbone, size, **{k: options[k] for k in options if k != "backbones"})
    if progress and first.note:
        print(first.note, file=sys.stderr)
    labelers: dict[Variant, PseudoLabeler] = {}
    left_out = []
    for method, init in dict.fromkeys(chosen):
        need = needs(method, init)
        if whole and need and not first.backbone.attends:
            left_out.append(f"{need}, left out")
            continue
        foreign = {"selfment": {"backbones"}, "selfmask": {*OPTIONS}}
        left = foreign.get(method, {"backbones", *OPTIONS})
        if init != "ncut":
            left = left | {"min_confidence"}
        own = {name: value for name, value in options.items() if name not in left}
        labeler = PseudoLabeler(backbone, size, method=method, init=init, **own)
        labeler.share(first)
        labelers[method, init] = labeler
    _ = first.torch_device  # what is wrong with it is said first
    _check_truths(images, gt, gt_suffix, allow_missing)
    reports = {}
    for variant, labeler in labelers.items():
        name = variant_name(variant)
        if progress:
            print(name, file=sys.stderr)
        reports[variant] = _score(
            labeler, images, gt, gt_suffix, folder / name, allow_missing, workers, progress
        )
    comparison = Comparison(reports, left_out)
    for kind, file in FILES.items():
        content = str(getattr(comparison, f"to_{kind}")()).encode()
        with atomic_file(folder / file, durable=True) as stream:
            stream.write(content)
    return comparison


def _check_truths(
    images: Sequence[ImageEntry], gt: str | os.PathLike[str], gt_suffix: str, allow_missing: bool
) -> None:
    """Raises ``ValueError`` where the images could not be scored once they are labelled."""
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
    """Labels what is left to label, and scores the folder."""
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
            f"`out` must hold the masks of these images alone: got {masks} masks in {folder} for "
            f"{len(images)} images"
        )
    if report.failed:
        raise ValueError(f"all masks must be scored to be compared: {report.failed[0]}")
    return report
