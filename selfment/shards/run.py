"""Runs over shards: labels or saliency of all images of tar files, tables and folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from ..core import options as params
from ..jobs import coco
from ..jobs.cluster import RayOptions, Remains, run_units
from ..jobs.label_job import LabelJob
from ..jobs.predict import PredictionJob
from ..jobs.spec import JobSpec
from ..models.labeler import PseudoLabeler
from ..models.segmenter import Segmenter
from ..util import distributed
from ..util.words import count_of
from .outputs import Outputs
from .progress import Progress, Turn, turns
from .rows import Unit
from .sources import Sources
from .stores import open_store
from .unit_output import UnitOutput
from .unit_record import LOCK
from .units import find_inputs
from .worker import ShardJob, ShardWorker, UnitSummary

_AnyPath = str | os.PathLike[str]  #: a path or a URL

_OUTPUT_KINDS = {"tar": "tar", "parquet": "parquet", "arrow": "parquet", "files": "files"}


@dataclass
class ShardSummary:
    """Counts the images that this process did, found done and failed to do, and damaged shards."""

    out: str  #: the output folder, as it may be shown
    done: int = 0
    skipped: int = 0
    failed: int = 0
    damaged: int = 0

    def describe(self, done: str) -> str:
        """The counts as a sentence; ``done``: the verb for images that this run did."""
        counts = f"{self.done} {done}, {self.skipped} already done, {self.failed} failed"
        if self.damaged:
            counts += (
                ", 1 damaged shard" if self.damaged == 1 else f", {self.damaged} damaged shards"
            )
        return f"{counts}; see {self.out}"


def label_shards(
    inputs: _AnyPath | Iterable[_AnyPath],
    out: _AnyPath,
    labeler: PseudoLabeler,
    *,
    to: str | None = None,
    column: str | None = None,
    key: str | None = None,
    overlays: bool = False,
    formats: Sequence[str] = ("png",),
    refine: str | None = None,
    fill_holes: bool = False,
    largest_component: bool = False,
    ray: RayOptions | None = None,
    progress: bool = True,
) -> ShardSummary:
    """Labels all images of shards; nothing is unpacked, and a run continues where it stopped.

    Args:
        inputs: tar, Parquet and Arrow files, and folders of them or of images, as paths, globs or
            URLs.
        out: the output folder, a path or a URL.
        labeler: labels the images.
        to: how results are stored: "tar", "parquet" or "files", see
            :mod:`selfment.shards.formats`; None for the kind of the inputs.
        column: the column of a table that has the images, or the ending of their members in a tar
            file, such as "jpg"; None for the only one that can be.
        key: the column of a table that has the images' names; None for their paths, or the numbers
            of the rows.
        overlays: as :func:`selfment.jobs.label.label_images` takes it.
        formats: see there.
        refine: see there.
        fill_holes: see there.
        largest_component: see there.
        ray: the processes of Ray that share the shards; by default this one does all, or those of
            ``torchrun`` share them.
        progress: show a bar on stderr.

    Raises:
        ValueError: a wrong argument, no input, or an output folder that cannot be written.
        ImportError: a library is missing.
        OSError: the output folder can no longer be written.
    """
    steps = {"method": refine, "fill_holes": fill_holes, "largest_component": largest_component}
    spec = LabelJob(labeler, overlays, formats, steps)
    if "coco" in spec.formats:
        coco.load_coco_masks()
    return _run(_Plan("label", spec, inputs, out, to, column, key), ray, progress)


def predict_shards(
    inputs: _AnyPath | Iterable[_AnyPath],
    out: _AnyPath,
    segmenter: Segmenter,
    *,
    to: str | None = None,
    column: str | None = None,
    key: str | None = None,
    overlays: bool = False,
    binary: float | None = None,
    ray: RayOptions | None = None,
    progress: bool = True,
) -> ShardSummary:
    """Writes the saliency of all images of shards, as :func:`label_shards` writes masks.

    Args:
        inputs: see there.
        out: see there.
        segmenter: computes the saliency.
        to: see there.
        column: see there.
        key: see there.
        overlays: as :func:`selfment.jobs.predict.predict_images` takes it.
        binary: see there.
        ray: see there.
        progress: show a bar on stderr.

    Raises:
        ValueError: as there.
        ImportError: as there.
        OSError: as there.
    """
    spec = PredictionJob(segmenter, overlays, binary)
    return _run(_Plan("predict", spec, inputs, out, to, column, key), ray, progress)


@dataclass
class _Plan:
    """Finds out what there is to do; a call is for the first process of a run."""

    command: str
    spec: JobSpec[Any]
    inputs: _AnyPath | Iterable[_AnyPath]
    out: _AnyPath
    to: str | None
    column: str | None
    key: str | None
    outputs: Outputs | None = None  #: once it has been called
    units: Sequence[Unit] = ()  #: all of the run
    sources: Sources | None = None
    stack: ExitStack = field(default_factory=ExitStack)  #: closed at the end of the run

    def __call__(self) -> tuple[ShardJob, list[Turn]]:
        """Returns what workers need, and the units that are left; prints what is done again."""
        for name, value in {"column": self.column, "key": self.key}.items():
            params.require(name, value, "a name, or left alone", value != "")
        store = open_store("out", self.out)
        store.check_writable("out")
        self.stack.enter_context(store.locked(LOCK))
        inputs = find_inputs(self.inputs, store)
        to = self.to or _common_format(inputs.kinds)
        out, sources = os.fspath(self.out), inputs.sources
        job = ShardJob(self.command, self.spec, out, to, sources, self.column, self.key)
        self.sources = inputs.sources
        self.outputs = Outputs(store)
        self.units = inputs.units(self.outputs.recorded_units())
        left = self.outputs.plan(self.units, job.form(), inputs.sources)
        if self.outputs.outdated:
            shards = count_of(self.outputs.outdated, "shard")
            sentence = f"the settings have changed: {shards} to {self.spec.verb} again"
            print(sentence, file=sys.stderr)
        if self.outputs.retried:
            print(_retried(self.outputs.retried, self.outputs.reread), file=sys.stderr)
        return job, turns(left, len(self.units))

    def finish(self) -> None:
        """Removes results that are of no use, after a run that has done all units."""
        if self.outputs is not None and self.sources is not None:
            self.outputs.finish(self.units, self.sources)


def _retried(count: int, reread: int) -> str:
    """Returns a sentence on the shards of which failed rows are tried again."""
    shards = count_of(count, "shard")
    sentence = f"images that failed in {shards} are tried again"
    if not reread:
        return sentence
    verb = "is" if reread == 1 else "are"
    return f"{sentence}; {reread:,} of these {verb} read from the beginning"


def _common_format(kinds: Collection[str]) -> str:
    """The format of outputs for inputs of one kind; raises ``ValueError`` for several kinds."""
    formats = {_OUTPUT_KINDS[kind] for kind in kinds}
    if len(formats) > 1:
        raise ValueError(
            f"`to` must be given for inputs of several kinds: got {', '.join(sorted(kinds))}"
        )
    return formats.pop()


def _run(plan: _Plan, ray: RayOptions | None, progress: bool) -> ShardSummary:
    with plan.stack:
        return _run_planned(plan, ray, progress)


def _run_planned(plan: _Plan, ray: RayOptions | None, progress: bool) -> ShardSummary:
    job, left = distributed.shared(plan)
    summary = ShardSummary(job.store().text)
    if plan.outputs is not None:
        summary.skipped = plan.outputs.skipped
    for result in _results(job, left, ray, progress):
        summary.done += result.done
        summary.skipped += result.skipped
        summary.failed += result.failed
        summary.damaged += result.damaged
    distributed.any_failed(0)  # all processes have ended their work
    plan.finish()
    return summary


def _results(
    job: ShardJob, left: Iterator[Turn], ray: RayOptions | None, progress: bool
) -> Iterator[UnitSummary]:
    """Does the units, here or on Ray, and yields what became of each."""
    first = next(left, None)
    if first is None:  # models are not loaded for nothing
        return
    left = chain([first], left)
    with closing(Progress(first, job.spec.unit, progress)) as bar:
        if ray is None:
            yield from map(ShardWorker(job, bar), left)
            return
        store, form = job.store(), job.form()

        def inspect(turn: Turn) -> Remains:
            done = len(UnitOutput(store, form, turn.unit).done)
            file = turn.unit.files[0].uri
            return Remains(done, f"a row of {file} after the first {done:,}")

        with closing(run_units(job, left, ray, inspect)) as results:
            for result in results:
                bar.add(result.turn, result.done + result.failed)
                yield result
