"""A job in processes that Ray starts, each of which is a rank of the job as under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from ..images.load import ImageEntry
from ..util.files import RealPaths
from .cluster import RayOptions, Remains, run_units
from .folder import INTERRUPTED
from .names import and_more
from .records import StoredRecords

_BATCHES = 6  # that are read, computed or written at the same time
_MOST_NAMED = 8  # images in a sentence

Summary = TypeVar("Summary")


@dataclass(frozen=True)
class Ranks(Generic[Summary]):
    """A job on a folder that all nodes see under the same path.

    The processes share the images, continue what earlier runs have left, and merge their records,
    as :func:`selfment.jobs.label.label_images` and :func:`selfment.jobs.predict.predict_images` do
    with ``shard``.
    """

    #: takes ``shard`` and ``progress``: one of the two with all its other arguments
    job: Callable[..., Summary]
    images: Sequence[ImageEntry]
    records: Path  #: the file of the records
    key: str  #: the field of the records that names the main output file
    batch: int  #: images per pass

    def run(self, options: RayOptions) -> list[Summary]:
        """Returns the summary of each rank.

        Raises what the job raises, and what :func:`selfment.jobs.cluster.run_units` does.
        """
        job = partial(_rank_function, self.job, options.workers)
        inspect = partial(self._inspect, options.workers)
        with closing(run_units(job, range(options.workers), options, inspect)) as summaries:
            return list(summaries)

    def _inspect(self, world: int, rank: int) -> Remains:
        """Looks up which images of a rank have results, and which have nothing final."""
        stored = StoredRecords(self.records, self.key, reports_damage=False)
        with suppress(OSError):  # no process has come so far
            stored.read()
        records = {record.get("path"): record for record in stored.all()}
        results, left = set(), []
        paths = map(
            RealPaths(), (os.path.abspath(entry.path) for entry in self.images[rank::world])
        )
        for path in paths:
            record = records.get(path)
            if record is None or record.get("error") == INTERRUPTED:
                left.append(path)
            elif record.get("error") is None:
                results.add((path, record.get("time")))
        possible = left[: _BATCHES * self.batch]
        named = ", ".join(possible[:_MOST_NAMED]) + and_more(len(possible) - _MOST_NAMED)
        return Remains(results, f"one of these images: {named}" if named else "no image")


def _rank_function(job: Callable[..., Summary], world: int) -> Callable[[int], Summary]:
    """Returns the function that does the work of a rank."""
    return lambda rank: job(shard=(rank, world), progress=False)
