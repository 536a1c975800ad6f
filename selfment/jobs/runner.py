"""Runs a job: reading, computing and writing overlap; one record per image."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Protocol

import torch
from tqdm import tqdm

from ..images.load import ImageEntry
from ..util.files import printable
from ..util.lines import Record
from .folder import OutputFolder
from .spec import Contents, ImageSpec, JobSpec, Result
from .task import Task

_MOST_THREADS = 8


def run_job(
    spec: JobSpec[Any],
    folder: OutputFolder,
    entries: Sequence[ImageEntry],
    progress: bool,
    compose: Callable[[Iterable[Record]], object] = list,
) -> None:
    """Does what is left to do of a job, and closes the records of the folder.

    ``progress``: a bar on stderr. ``compose``: called with all records at the end, in the last
    process only, see :meth:`selfment.jobs.records.Records.close`.
    """
    try:
        tasks = folder.plan(entries)
        if folder.outdated:
            many = "s" if folder.outdated > 1 else ""
            again = f"{folder.outdated} {spec.unit}{many} to {spec.verb} again"
            tqdm.write(f"the settings have changed: {again}", file=sys.stderr)
        if folder.changed:
            _print_changed(folder.changed, spec)
        if tasks or folder.records.changed:
            folder.remove_abandoned_files()
        if tasks:
            spec.load(tasks)
            bar = tqdm(total=len(tasks), unit=spec.unit, disable=not progress, file=sys.stderr)
            with bar:
                Runner(spec, folder, bar).run(t for t in tasks if spec.unbatched(t) is None)
                for task in tasks:
                    if (process := spec.unbatched(task)) is not None:
                        _run_unbatched(folder, task, process)
                        bar.update()
    finally:
        folder.records.close(compose)


def _print_changed(files: Sequence[str], spec: JobSpec[Any]) -> None:
    """Prints on stderr that files keep changes that somebody has made."""
    again = f"to {spec.verb} the {spec.unit}"
    sentence = f"{files[0]} was changed by hand, and is kept; remove it {again} again"
    if len(files) > 1:
        sentence = (
            f"{len(files):,} files were changed by hand, and are kept (the first: {files[0]}); "
            f"remove them {again}s again"
        )
    tqdm.write(printable(sentence), file=sys.stderr)


def _run_unbatched(
    folder: OutputFolder, task: Task, process: Callable[[Task, Mapping[str, Path]], Record]
) -> None:
    start = time.perf_counter()
    try:
        task.read_stat()
        task.compute_checksum()
        folder.start(task)
        fields = process(task, folder.new_files(task))
        fields = {**folder.remove_stale_files(task), **fields}
    except Exception as error:
        report_failure(folder, task, error)
    else:
        task.seconds = time.perf_counter() - start
        folder.finish(task, fields)


def report_failure(sink: Sink, task: Task, error: Exception) -> None:
    """Records a task that failed, and prints the sentence on stderr."""
    tqdm.write(printable(sink.fail(task, error)), file=sys.stderr)


class Sink(Protocol):
    """Takes the results, as :class:`selfment.jobs.folder.OutputFolder` does.

    :meth:`write` is called in threads, the other methods in the thread that runs the job.
    """

    def start(self, task: Task) -> None:
        """Called before anything of an image is written; ``ValueError`` fails the image."""

    def write(self, task: Task, contents: Contents) -> Record:
        """Writes the files of an image; returns the fields of its record that only this knows."""

    def finish(self, task: Task, fields: Record) -> None:
        """Records an image that is done; ``fields``: further fields of the record."""

    def fail(self, task: Task, error: Exception) -> str:
        """Records an image that could not be done; returns what went wrong as a sentence."""


class Bar(Protocol):
    """Shows the progress of a runner, as a bar of tqdm does."""

    def update(self) -> object:
        """Counts an image that is done or has failed."""


class Runner(Generic[Result]):
    """Does the tasks of images: threads read and write while the calling thread computes.

    A task that fails is reported on stderr and recorded, and the others go on. After an interrupt
    no more is read, but what has been computed is written and recorded.
    """

    def __init__(self, spec: ImageSpec[Result], sink: Sink, bar: Bar) -> None:
        self._spec = spec
        self._sink = sink
        self._bar = bar
        self._reading: deque[tuple[Task, Future[None]]] = deque()
        #: batches, the functions that wait for their results, and the seconds spent so far
        self._computing: deque[tuple[list[Task], Callable[[], Sequence[Result]], float]] = deque()
        self._writing: deque[tuple[Task, Future[Record]]] = deque()

    def run(self, tasks: Iterable[Task]) -> None:
        """Does the tasks in batches, and takes no more of them than are being worked on."""
        size = self._spec.batch_size
        batches: dict[torch.Size, list[Task]] = {}  # by the shape of their pixels
        with ThreadPoolExecutor(min(_MOST_THREADS, max(2, torch.get_num_threads()))) as self._pool:
            try:
                for task, reading in self._read_ahead(tasks, 2 * size):
                    try:
                        reading.result()
                    except Exception as error:
                        self._fail(task, error)
                        continue
                    assert task.pixels is not None
                    batches.setdefault(task.pixels.shape, []).append(task)
                    fullest = max(batches, key=lambda shape: len(batches[shape]))
                    waiting = sum(map(len, batches.values()))
                    # Bounds the memory if the images have many shapes.
                    if len(batches[fullest]) == size or waiting == 2 * size:
                        self._compute(batches.pop(fullest))
                for batch in batches.values():
                    self._compute(batch)
                self._collect(0)
                self._record_written(0)
            finally:  # after an interrupt or an error, what has been computed is still recorded
                for _, reading in self._reading:
                    reading.cancel()
                self._pool.shutdown()
                if self._writing and not self._writing[-1][1].done():
                    self._writing.pop()  # the interrupt came before it was submitted
                self._record_written(0)

    def _read_ahead(self, tasks: Iterable[Task], ahead: int) -> Iterator[tuple[Task, Future[None]]]:
        """Each task with its reading, while up to ``ahead`` more are being read."""
        for task in tasks:
            self._reading.append((task, self._pool.submit(self._read, task)))
            if len(self._reading) > ahead:
                yield self._reading.popleft()
        while self._reading:
            yield self._reading.popleft()

    def _read(self, task: Task) -> None:
        start = time.perf_counter()
        if task.data is not None or os.path.isfile(task.path):
            task.read_stat()
        self._spec.prepare(task)
        task.compute_checksum()
        task.data = None
        task.seconds += time.perf_counter() - start

    def _compute(self, batch: list[Task]) -> None:
        """Starts to compute a batch, and to write the results of those that need not wait."""
        start = time.perf_counter()
        try:
            waiting = self._start(batch)
        except Exception as error:
            self._compute_alone(batch, error)
            return
        self._computing.append((batch, waiting, time.perf_counter() - start))
        self._collect(self._spec.batches_ahead)

    def _start(self, batch: Sequence[Task]) -> Callable[[], Sequence[Result]]:
        pixels = [task.pixels for task in batch if task.pixels is not None]
        return self._spec.start(torch.stack(pixels))

    def _collect(self, most: int) -> None:
        """Waits for the results of batches until at most ``most`` are being computed."""
        while len(self._computing) > most:
            batch, waiting, seconds = self._computing.popleft()
            start = time.perf_counter()
            try:
                results = waiting()
            except Exception as error:
                self._compute_alone(batch, error)
                continue
            self._write_later(batch, results, seconds + time.perf_counter() - start)

    def _compute_alone(self, batch: Sequence[Task], error: Exception) -> None:
        """Computes each image of a failed batch alone: one may have failed for all."""
        if len(batch) == 1:
            self._fail(batch[0], error)
            return
        for task in batch:
            start = time.perf_counter()
            try:
                results = self._start([task])()
            except Exception as own:
                self._fail(task, own)
            else:
                self._write_later([task], results, time.perf_counter() - start)

    def _write_later(
        self, batch: Sequence[Task], results: Sequence[Result], seconds: float
    ) -> None:
        """Starts to write the results of a batch that took so many seconds."""
        for task, result in zip(batch, results, strict=True):
            task.seconds += seconds / len(batch)
            task.pixels = None
            try:
                self._sink.start(task)
            except ValueError as error:
                self._fail(task, error)
                continue
            # It is in the queue first, so that an interrupt loses no record of a written file.
            writing: Future[Record] = Future()
            self._writing.append((task, writing))
            self._pool.submit(self._write, task, result, writing)
        self._record_written(2 * self._spec.batch_size)

    def _write(self, task: Task, result: Result, writing: Future[Record]) -> None:
        start = time.perf_counter()
        try:
            contents, fields = self._spec.draw(task, result)
            kept = self._sink.write(task, contents)
            task.picture = None
            task.seconds += time.perf_counter() - start
            writing.set_result({**kept, **fields})
        except BaseException as error:
            writing.set_exception(error)

    def _record_written(self, most: int) -> None:
        """Records what has been written; waits until at most ``most`` images are being written."""
        while len(self._writing) > most or (self._writing and self._writing[0][1].done()):
            task, writing = self._writing[0]
            try:
                fields = writing.result()
            except Exception as error:
                self._fail(task, error)
            else:
                self._finish(task, fields)
            self._writing.popleft()

    def _finish(self, task: Task, fields: Record) -> None:
        self._sink.finish(task, fields)
        self._bar.update()

    def _fail(self, task: Task, error: Exception) -> None:
        report_failure(self._sink, task, error)
        self._bar.update()
