"""Labels and predictions of a folder, counted."""

from __future__ import annotations

from functools import cache
from pathlib import Path

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
