"""Labels and predictions of a folder, counted."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from helpers.heads import a_head
from selfment import CutOptions, PseudoLabeler, Segmenter
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.jobs.predict import find_inputs, predict_images
from selfment.methods import Selfment


@cache
def segmenter_of(seed: int) -> Segmenter:
    return Segmenter(a_head(seed), "classic", 64, batch_size=2)


def predict(inputs, out: Path, *, head: int = 0, **options) -> tuple[int, int, int]:
    entries = find_inputs([inputs], out=out)
    done = predict_images(entries, out, segmenter_of(head), progress=False, **options)
    return done.predicted, done.skipped, done.failed


def label(inputs, out: Path, *, tau: float = 0.2, **options) -> tuple[int, int, int]:
    labeler = PseudoLabeler(size=96, method=Selfment(CutOptions(tau=tau)), batch_size=2)
    entries = find_images([inputs], out=out)
    done = label_images(entries, out, labeler, progress=False, **options)
    return done.labelled, done.skipped, done.failed


def results(out: Path) -> dict[str, Any]:
    """All files under a folder of results: records without their times, others as bytes."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        found[str(path.relative_to(out))] = path.read_bytes()
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [{k: row[k] for k in row.keys() - {"time", "seconds", "crc32"}} for row in rows]
            found[str(path.relative_to(out))] = sorted(kept, key=lambda row: row["image"])
    return found
