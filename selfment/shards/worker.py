"""The work on one unit: its rows are read, computed and written as a sealed shard."""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..images.load import ImageEntry, ImageError
from ..jobs.runner import Runner, report_failure
from ..jobs.spec import Contents, JobSpec
from ..jobs.task import Task
from ..util.files import printable, reason
from ..util.lines import Record
from .formats import Format, output_format
from .layout import Layout
from .progress import Progress, Turn
from .readers import ShardError, read_unit
from .rows import Row, RowResult, Unit
from .sources import Sources
from .store import Store
from .stores import open_store
from .unit_output import UnitOutput

PART_ROWS = 256  # a killed run loses at most so many finished rows of a unit
_ROWS_AHEAD = 16  # read while others are being decoded
# The fields of a record on the image file, beside those that all layouts have.
_NUMBERS = {"bytes": "int64", "checksum": "string", "settings": "string"}


@dataclass
class UnitSummary:
    """Counts the rows of a unit that were done, had been done before, and failed."""

    turn: Turn
    done: int = 0
    skipped: int = 0
    failed: int = 0
    damaged: int = 0  #: 1 if the unit could not be read to its end


@dataclass(slots=True)
class RowTask(Task):
    """A row of a unit as the task of a runner."""

    key: str = ""


@dataclass(frozen=True)
class ShardJob:
    """Describes what is done to units, and where the results go.

    It can be sent to another process, where a call makes the worker.
    """

    command: str  #: of `selfment`, whose results these are
    spec: JobSpec[Any]
    out: str  #: the path or URL of the output folder
    to: str  #: a name of :data:`selfment.shards.formats.FORMATS`
    sources: Sources  #: the file systems of the inputs
    column: str | None  #: where the images are, see :func:`selfment.shards.readers.read_unit`
    key: str | None  #: the column with their names, see there

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the results depend on besides the inputs, ready for JSON."""
        files = dict(self.spec.file_settings.values())
        return {**self.spec.settings(""), **files, "column": self.column, "key": self.key}

    def store(self) -> Store:
        """The output folder."""
        return open_store("out", self.out)

    def form(self) -> Format:
        """How results are stored; raises ``ImportError`` if that needs a library."""
        numbers = {**_NUMBERS, **self.spec.numbers}
        layout = Layout(self.command, self.spec.endings, numbers, self._paths)
        return output_format(self.to, layout, self.settings)

    def _paths(self, key: str) -> Mapping[str, str]:
        """The names of the files of a row, if each is a file of its own."""
        return self.spec.output_files(self.spec.main_file(ImageEntry(Path(key), f"{key}.png")))

    def __call__(self) -> ShardWorker:
        """Loads the models, and returns the worker."""
        return ShardWorker(self)


class ShardWorker:
    """Does units one after the other."""

    def __init__(self, job: ShardJob, progress: Progress | None = None) -> None:
        """Loads the models; ``progress``: is moved on by each row."""
        self._job = job
        self._progress = progress
        self._store, self._form = job.store(), job.form()
        job.spec.load([])

    def __call__(self, turn: Turn) -> UnitSummary:
        """Does what is left of a unit, and seals its shard; prints on stderr what fails.

        After an interrupt or an error of the output folder, the rows that are done are kept.
        """
        unit = turn.unit
        progress = self._progress or Progress(turn, self._job.spec.unit, show=False)
        progress.begin(turn)
        output = UnitOutput(self._store, self._form, unit, PART_ROWS)
        sink = _UnitSink(self._job.spec, output, self._form.digest)
        rows = _Rows(self._job, unit, frozenset(output.done), output.starts)
        try:
            Runner(self._job.spec, sink, progress).run(_tasks(rows, sink, progress))
        finally:
            output.flush()
        damaged = 0 if rows.error is None else 1
        if not damaged or len(rows.keys) >= max(output.rows, 1):  # otherwise earlier results remain
            output.seal(rows.keys, rows.error, rows.starts)
        progress.end()
        return UnitSummary(turn, sink.done, rows.skipped, sink.failed, damaged)


def _tasks(rows: _Rows, sink: _UnitSink, progress: Progress) -> Iterator[RowTask]:
    """Yields the rows that have an image and are left."""
    for task, error in rows:
        progress.reach(rows.share)
        if error is None:
            yield task
        else:
            report_failure(sink, task, ImageError(error))
            progress.update()


class _Rows:
    """The rows of a unit that are left; afterwards, which there are."""

    def __init__(
        self,
        job: ShardJob,
        unit: Unit,
        done: frozenset[str],
        known: Mapping[str, int | None] | None,
    ) -> None:
        """``done``: keys of rows that need not be read; ``known``: :attr:`UnitOutput.starts`."""
        self._job = job
        self._unit = unit
        self._done = done
        self._known = known
        self.starts: dict[str, int | None] = {}  #: of the rows that were read, by key
        self.keys: list[str] = []  #: of all rows so far, in their order
        self.skipped = 0  #: rows that were done before
        self.share: float | None = None  #: which was read so far, if it is known
        self.error: str | None = None  #: why the unit could not be read to its end

    def __iter__(self) -> Iterator[tuple[RowTask, str | None]]:
        """Yields each row, and why it has no image; prints on stderr why the unit is damaged."""
        job, unit = self._job, self._unit
        columns = {"column": job.column, "key_column": job.key}
        rows = read_unit(unit, job.sources, **columns, skip=self._done, starts=self._known)
        is_shard = unit.kind != "files"
        files = repeat(unit.files[0]) if is_shard else iter(unit.files)
        try:
            for row, file in zip(_read_ahead(rows), files, strict=False):
                self.keys.append(row.key)
                self.share = row.share
                if row.key in self._done:
                    self.skipped += 1
                    continue
                self.starts[row.key] = row.start
                path = f"{file.uri}: {row.name}" if is_shard else file.uri
                yield RowTask(row.name, path, row.data, key=row.key), row.error
        except ShardError as error:
            self.error = str(error)
            tqdm.write(printable(self.error), file=sys.stderr)


def _read_ahead(rows: Generator[Row]) -> Iterator[Row]:
    """Yields rows, while a thread reads the next ones."""
    with closing(rows), ThreadPoolExecutor(1) as pool:
        reading = deque(pool.submit(next, rows, None) for _ in range(_ROWS_AHEAD))
        try:
            while (row := reading.popleft().result()) is not None:
                reading.append(pool.submit(next, rows, None))
                yield row
        finally:
            for future in reading:
                future.cancel()


class _UnitSink:
    """Adds results to a unit's output; a :class:`selfment.jobs.runner.Sink`."""

    def __init__(self, spec: JobSpec[Any], output: UnitOutput, settings: str) -> None:
        """``settings``: their digest."""
        self._spec = spec
        self._output = output
        self._settings = settings
        self.done = self.failed = 0  #: rows

    def start(self, task: Task) -> None:
        """Nothing is written before all files of a row are known."""

    def write(self, task: Task, contents: Contents) -> Record:
        """Keeps the files in memory until :meth:`finish`."""
        del task
        files = {}
        for name, write in contents.items():
            buffer = io.BytesIO()
            write(buffer)
            files[name] = buffer.getvalue()
        return {"files": files}

    def finish(self, task: Task, fields: Record) -> None:
        """Adds the result of a row."""
        files = fields.pop("files")
        self._add(task, fields, files)
        self.done += 1

    def fail(self, task: Task, error: Exception) -> str:
        """Adds a row without files."""
        sentence = str(error) if isinstance(error, ImageError) else reason(error)
        if task.path not in sentence:
            sentence = f"cannot {self._spec.verb} {task.path}: {sentence}"
        self._add(task, {"error": sentence}, {})
        self.failed += 1
        return sentence

    def _add(self, task: Task, fields: Record, files: Mapping[str, bytes]) -> None:
        assert isinstance(task, RowTask)
        width, height = task.size
        record = {
            "image": task.image,
            "width": width or None,
            "height": height or None,
            "notes": list(task.notes),
            "bytes": task.bytes,
            "checksum": task.checksum,
            "settings": self._settings,
            **fields,
        }
        self._output.add(RowResult(task.key, record, files))
