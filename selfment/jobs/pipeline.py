"""From image files to result files: reading, computing and writing overlap; one record per image.

What is computed and written is a subclass's: :mod:`selfment.jobs.label`,
:mod:`selfment.jobs.predict`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..images.load import ImageEntry, ImageError, load_image
from ..util.files import RealPaths, printable, reason, remove_stale
from ..util.lines import Record
from .identity import identify
from .job import Job
from .records import Records

Result = TypeVar("Result")

_FILE = ("path", "bytes", "mtime_ns", "checksum")  # the record's fields of the image's file


class Pipeline(ABC, Generic[Result]):
    """One run over a folder of results; ``done``, ``skipped`` and ``failed`` count its images."""

    file: ClassVar[str]  #: of the records
    key: ClassVar[str]  #: the record's field that names what is made of an image
    verb: ClassVar[str]  #: what is done to an image
    unit: ClassVar[str] = "image"
    fields: ClassVar[tuple[str, ...]]  #: the record's fields that name files
    about: ClassVar[tuple[str, ...]] = ()  #: the record's fields that say more of these files

    def __init__(
        self,
        out: str | os.PathLike[str],
        settings: Mapping[str, Any],
        wanted: Collection[str],
        batch_size: int,
        shard: tuple[int, int],
    ) -> None:
        """Makes and locks the folder; raises ``ValueError`` where it cannot be written.

        ``settings``: results of others are made again. ``wanted``: the fields of the files that
        this run makes. ``shard``: rank and number of the processes that share the work.
        """
        self.folder = Path(out).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.records = Records(self.folder / self.file, self.key, shard)
        except OSError as error:
            reason = error.strerror or error
            raise ValueError(
                f"`out` must be a folder that can be written: got {os.fspath(out)!r} ({reason})"
            ) from error
        text = json.dumps(settings, sort_keys=True)
        self.settings = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.wanted = frozenset(wanted)
        self.batch_size = batch_size
        self.shard = shard
        self._is_tidy = False
        self._images: set[str] = set()  # of this run, by what the records call them
        self.done = self.skipped = self.failed = 0
        self.reading: deque[tuple[Job, Future[None]]] = deque()
        self.writing: deque[tuple[Job, Future[Record]]] = deque()

    def __call__(self, entries: Sequence[ImageEntry], progress: bool) -> None:
        """Does what is left to do, once; ``progress``: a bar on stderr."""
        try:
            jobs = self._plan(entries)
            if jobs or self.records.changed:
                self._tidy()
            if jobs:
                self._load()
                with tqdm(
                    total=len(jobs), unit=self.unit, disable=not progress, file=sys.stderr
                ) as self.bar:
                    self._run(jobs)
        finally:
            self.records.close(self._finish)

    @abstractmethod
    def _load(self) -> None:
        """Loads the models: their errors are the run's, not the first image's."""

    @abstractmethod
    def _prepare(self, job: Job, picture: Image.Image) -> None:
        """Sets the job's ``pixels``, and its ``picture`` if it is needed later; in a thread."""

    @abstractmethod
    def _compute(self, batch: Tensor) -> Sequence[Result]:
        """The results of a batch of pixels."""

    @abstractmethod
    def _save(self, job: Job, result: Result) -> Record:
        """Writes the files of a result and returns what the record says of it; in a thread."""

    @abstractmethod
    def _named(self, name: str) -> dict[str, str]:
        """All files that may be made of an image, by field; the first is ``name``."""

    def _choose(self, job: Job, record: Record) -> None:
        """Chooses names of other files than the first, where they depend on other images' files.

        Called for each image of a run, in their order, in each process. ``record``: of the image.
        """

    def _files(self, name: str) -> list[str]:
        return list(self._named(name).values())

    def _holds(self, record: Record, field: str) -> bool:
        """Whether a file of a result like this run's is as this run would leave it."""
        return True

    def _tidy(self) -> None:
        """Removes what killed processes left; a run that writes nothing need not look for it."""
        if not self._is_tidy and self.shard[1] == 1:  # nobody else writes here
            remove_stale(self.folder)
        self._is_tidy = True

    def _finish(self, records: Iterable[Record]) -> None:
        """Composes files of all records, at the end of a run and in its last process only.

        It may add records once it has gone through ``records``.
        """
        del records

    def _name(self, entry: ImageEntry) -> str:
        return entry.mask_name

    def _tagged(self, name: str, tag: str) -> str:
        """Another name for an image's file."""
        stem, dot, suffix = name.rpartition(".")
        return f"{stem}-{tag}{dot}{suffix}"

    def _plan(self, entries: Sequence[ImageEntry]) -> list[Job]:
        """The jobs that are left to do in this process; names are given to all, alike in each."""
        rank, world = self.shard
        real = RealPaths()
        folder = os.fspath(self.folder)
        sources = set()
        for entry in entries:
            path = os.fspath(entry.path)
            sources.add(real(path))
            if os.path.islink(path):
                sources.add(os.path.realpath(path))
        jobs, twins = [], []
        for index, (job, tag) in enumerate(identify(entries, self.records, real)):
            image = job.image
            entry = entries[index]
            record = self.records.get(image)
            name = record.get(self.key) or self._name(entry)
            for output in self._files(name):
                if real(os.path.join(folder, output)) in sources:
                    raise ValueError(
                        f"`out` must not hold the inputs: {output} would replace an input image "
                        f"in {self.folder}"
                    )
            if self._taken(name, image):
                name = self._tagged(name, tag)
                self.records.claim(name, image)
            if job.twin is not None and not record:
                twins.append(f"{job.twin} is {name}")
            job.name = name
            self._images.add(image)
            self._choose(job, record)
            if index % world != rank:
                continue
            if self._is_done(job, record):
                self.skipped += 1
                self._keep_place(job, record)
            else:
                jobs.append(job)
        if rank == 0:
            self._tell()
        if twins and rank == 0:
            more = f" and {len(twins) - 3:,} more" if len(twins) > 3 else ""
            sentence = f"other images have the same names in {folder}: {', '.join(twins[:3])}{more}"
            print(printable(sentence), file=sys.stderr)
        return jobs

    def _tell(self) -> None:
        """Says on stderr what is unusual about the names of the files."""

    def _keep_place(self, job: Job, record: Record) -> None:
        """Lets the record of an image that was found again say where it lies now."""
        place = {"path": job.path, "mtime_ns": job.mtime_ns}
        if any(record.get(name) != value for name, value in place.items()):
            self.records.add({**record, **place})

    def _taken(self, name: str, image: str) -> bool:
        """Whether another image owns the file, or one lies there that no run has recorded."""
        known = self.records.owns(name, image)
        folder = os.fspath(self.folder)
        return self.records.claim(name, image) != image or (
            not known
            and any(os.path.exists(os.path.join(folder, file)) for file in self._files(name))
        )

    def _is_done(self, job: Job, record: Record) -> bool:
        try:
            if not self._speaks_of(record, job):
                return False
            for field in self.wanted:
                file = record.get(field)
                if not file or not self._holds(record, field):
                    return False
                # A power failure can leave an empty file at a name that had just been given.
                size = os.path.getsize(os.path.join(self.folder, file))
                if not size and not self._may_be_empty(record, file):
                    return False
        except OSError:
            return False
        return True

    def _may_be_empty(self, record: Record, file: str) -> bool:
        """Whether a result file without contents can be whole."""
        return False

    def _speaks_of(self, record: Record, job: Job) -> bool:
        """Whether a record is of this run's settings and of the image as it is."""
        mine = record.get("error") is None and record.get("settings") == self.settings
        return mine and job.is_of(record)

    def _last(self, job: Job) -> Record:
        """What is known of the files that the image has: their names, settings, bytes and time.

        An error does not change them. Settings are None of files that may be of several results, or
        of one whose record is damaged.
        """
        record = self.records.get(job.image)
        if not record:
            files = self._named(job.name).items()
            return {field: file for field, file in files if self.records.mentions(job.image, file)}
        if record.get("error") is not None:
            last: Record = record.get("last") or {}
            return last
        known = ("settings", *_FILE, *self.fields, *self.about)
        return {name: record[name] for name in known if record.get(name) is not None}

    def _run(self, jobs: Sequence[Job]) -> None:
        """Does all jobs: files are read and written in threads, meanwhile this one computes."""
        size = self.batch_size
        batches: dict[torch.Size, list[Job]] = {}  # of one shape each
        with ThreadPoolExecutor(min(8, max(2, torch.get_num_threads()))) as self.pool:
            try:
                for job, future in self._prefetch(jobs, 2 * size):
                    try:
                        future.result()
                    except Exception as error:
                        self._fail(job, error)
                        continue
                    assert job.pixels is not None
                    batches.setdefault(job.pixels.shape, []).append(job)
                    fullest = max(batches, key=lambda shape: len(batches[shape]))
                    waiting = sum(map(len, batches.values()))
                    # Of images with many shapes only so many wait for others of their shape.
                    if len(batches[fullest]) == size or waiting == 2 * size:
                        self._batch(batches.pop(fullest))
                for batch in batches.values():
                    self._batch(batch)
            finally:
                # After an interrupt: read no more, but write and record what has been computed.
                for _, future in self.reading:
                    future.cancel()
                self._collect(0)

    def _alone(self, job: Job, work: Callable[[Job], Record]) -> None:
        """Does one job that is not an image of a batch; ``work`` returns its record's fields."""
        start = time.perf_counter()
        try:
            job.stat()
            job.digest()
            self._begin(job)
            fields = work(job)
            fields = {**self._others(job), **fields}
        except Exception as error:
            self._fail(job, error)
            return
        job.seconds = time.perf_counter() - start
        self._succeed(job, fields)

    def _prefetch(self, jobs: Sequence[Job], ahead: int) -> Iterator[tuple[Job, Future[None]]]:
        for job in jobs:
            self.reading.append((job, self.pool.submit(self._read, job)))
            if len(self.reading) > ahead:
                yield self.reading.popleft()
        while self.reading:
            yield self.reading.popleft()

    def _read(self, job: Job) -> None:
        start = time.perf_counter()
        if os.path.isfile(job.path):
            job.stat()
        picture, job.notes = load_image(job.path)
        job.digest()
        job.size = picture.size
        self._prepare(job, picture)
        job.seconds += time.perf_counter() - start

    def _batch(self, batch: list[Job]) -> None:
        start = time.perf_counter()
        try:
            results = self._compute(
                torch.stack([job.pixels for job in batch if job.pixels is not None])
            )
        except Exception as error:
            # The other images of the batch must not pay for one: each again, by itself.
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                for job in batch:
                    self._batch([job])
            return
        seconds = (time.perf_counter() - start) / len(batch)
        for job, result in zip(batch, results, strict=True):
            job.seconds += seconds
            job.pixels = None
            try:
                self._begin(job)
            except ValueError as error:
                self._fail(job, error)
                continue
            self.writing.append((job, self.pool.submit(self._write, job, result)))
        self._collect(2 * self.batch_size)

    def _begin(self, job: Job) -> None:
        # From here on its file may be there, or be the new one: the record must name it, and an old
        # one must not vouch for it.
        job.last = self._last(job)
        new = self._made(job.name)
        for name, file in new.items():
            strange = job.last and job.last.get(name) != file
            if strange and os.path.lexists(os.path.join(self.folder, file)):
                raise ValueError(
                    f"`out` must hold no {file} of another program where a result is to be"
                )
        last = {**job.last, **new}
        if not self._speaks_of(job.last, job):
            last["settings"] = None
        if not all(self._holds(job.last, field) for field in new):
            last.update(dict.fromkeys(self.about))
        error = "the run was interrupted"
        self.records.add({**self._record(job), self.key: job.name, "error": error, "last": last})

    def _made(self, name: str) -> dict[str, str]:
        """The record's fields of the files that this run makes of an image, with the files."""
        return {field: file for field, file in self._named(name).items() if field in self.wanted}

    def _others(self, job: Job) -> Record:
        """The fields of the files that this run does not make, but that hold its very result.

        Removes those of another result, but no file that the image's own record does not name.
        """
        same = self._speaks_of(job.last, job)
        kept: Record = {}
        for field, file in self._named(job.name).items():
            path = self.folder / file
            if field in self.wanted or job.last.get(field) != file:
                continue
            if path.is_file() or path.is_symlink():
                if same and self._holds(job.last, field):
                    kept[field] = file
                else:
                    path.unlink()
        return kept

    def _write(self, job: Job, result: Result) -> Record:
        start = time.perf_counter()
        fields = self._save(job, result)
        fields = {**self._others(job), **fields}
        job.picture = None
        job.seconds += time.perf_counter() - start
        return fields

    def _record(self, job: Job) -> Record:
        return {
            "image": job.image,
            **({} if job.twin is None else {"twin": job.twin}),
            self.key: None,
            **dict.fromkeys((*self.fields, *self.about)),
            "error": None,
            "notes": list(job.notes),
            "settings": self.settings,
            **{name: getattr(job, name) for name in _FILE},
        }

    def _collect(self, most: int) -> None:
        """Records what has been written, until at most ``most`` files are still being written."""
        while len(self.writing) > most or (self.writing and self.writing[0][1].done()):
            job, future = self.writing.popleft()
            try:
                fields = future.result()
            except Exception as error:
                self._fail(job, error)
                continue
            self._succeed(job, fields)

    def _succeed(self, job: Job, fields: Record) -> None:
        seconds = round(job.seconds, 4)
        self.records.add({**self._record(job), **fields, self.key: job.name, "seconds": seconds})
        self.done += 1
        self.bar.update()

    def _fail(self, job: Job, error: Exception) -> None:
        # An image error is a sentence, which may have a line break in the image's name.
        sentence = str(error) if isinstance(error, ImageError) else reason(error)
        if job.path not in sentence:
            sentence = f"cannot {self.verb} {job.path}: {sentence}"
        # A file of an earlier run stays, and stays this image's.
        kept = self.records.get(job.image).get(self.key)
        there = kept and any(os.path.exists(self.folder / file) for file in self._files(kept))
        name = kept if there else None
        last = self._last(job)
        self.records.add({**self._record(job), self.key: name, "error": sentence, "last": last})
        self.failed += 1
        tqdm.write(printable(sentence), file=sys.stderr)
        self.bar.update()
