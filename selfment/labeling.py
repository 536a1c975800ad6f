"""The folder job: from image files to mask files, one record per image."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ._records import Record, Records, write_atomically
from .images import ImageEntry, load_image
from .labeler import PseudoLabeler
from .pseudo_labels import PseudoLabels
from .visualize import mask_image, overlay


@dataclass
class Summary:
    """How many images a run labelled, found already done, and could not label."""

    labelled: int = 0
    skipped: int = 0
    failed: int = 0


def label_images(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    labeler: PseudoLabeler,
    *,
    overlays: bool = False,
    progress: bool = True,
) -> Summary:
    """Writes a mask for each image under ``out``, and a line for each in ``out/labels.jsonl``.

    ``images``: from :func:`selfment.images.find_images`. Masks are 8-bit PNG files, 0 or 255, at
    the upright image's own size (nearest neighbour); ``overlays`` adds a JPEG file of
    :func:`selfment.visualize.overlay` under ``out/overlays``. Images that an earlier run labelled
    with the same settings are skipped unless the file has changed since; failed ones are tried
    again. An image keeps the mask name it has in ``labels.jsonl``, and never gets that of another
    image, or of a file that no run has written. What fails is reported on stderr and in
    ``labels.jsonl``, and the run goes on.
    ``progress``: a bar on stderr. Raises ``ValueError`` when ``out`` cannot be written or a mask
    would replace an input, and whatever the backbone raises when it cannot be loaded.
    """
    folder = Path(out).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        records = Records(folder / "labels.jsonl")
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"`out` must be a folder that can be written: got {os.fspath(out)!r} ({reason})"
        ) from error
    run = _Run(folder, labeler, records, overlays)
    try:
        pending = run.plan(images)
        if pending:
            _ = labeler.backbone  # loaded here: its errors are the run's, not the first image's
            hidden = not progress
            with tqdm(total=len(pending), unit="image", disable=hidden, file=sys.stderr) as bar:
                run.label(pending, bar)
    finally:
        records.close()
    return run.summary


@dataclass
class _Job:
    """One image on its way from file to mask."""

    image: str  # the file, absolute
    mask: str  # relative to the output folder
    bytes: int = 0
    mtime_ns: int = 0
    seconds: float = 0.0
    notes: Sequence[str] = ()
    size: tuple[int, int] = (0, 0)  # (W, H), upright
    picture: Image.Image | None = None  # kept for the overlay
    pixels: Tensor | None = None  # what the backbone takes

    def stat(self) -> None:
        stat = os.stat(self.image)
        self.bytes, self.mtime_ns = stat.st_size, stat.st_mtime_ns


class _Run:
    def __init__(
        self, folder: Path, labeler: PseudoLabeler, records: Records, overlays: bool
    ) -> None:
        self.folder = folder
        self.labeler = labeler
        self.records = records
        self.overlays = overlays
        settings = json.dumps(labeler.settings, sort_keys=True)
        self.key = hashlib.sha256(settings.encode()).hexdigest()[:12]
        self.summary = Summary()
        self.reading: deque[tuple[_Job, Future[None]]] = deque()
        self.writing: deque[tuple[_Job, Future[Record]]] = deque()

    def plan(self, images: Sequence[ImageEntry]) -> list[_Job]:
        """The jobs that are left to do, with their mask names."""
        sources = {os.path.realpath(entry.path) for entry in images}
        jobs = []
        for entry in images:
            image = str(entry.path)
            mask = self.records.get(image).get("mask") or entry.mask_name
            for output in (mask, _overlay_name(mask)):
                if os.path.realpath(self.folder / output) in sources:
                    raise ValueError(
                        f"`out` must not hold the inputs: {output} would replace an input image "
                        f"in {self.folder}"
                    )
            if self._taken(mask, image):
                name = PurePosixPath(mask)
                tag = hashlib.sha256(os.fsencode(image)).hexdigest()[:8]
                mask = str(name.with_name(f"{name.stem}-{tag}.png"))
                self.records.claim(mask, image)
            if self._done(image):
                self.summary.skipped += 1
            else:
                jobs.append(_Job(image, mask))
        return jobs

    def _taken(self, mask: str, image: str) -> bool:
        """Whether another image owns the mask, or a file lies there that no run has recorded."""
        known = self.records.owns(mask)
        return self.records.claim(mask, image) != image or (
            not known and (self.folder / mask).exists()
        )

    def label(self, jobs: list[_Job], bar: tqdm[Any]) -> None:
        """Labels all jobs: files are read and written in threads, meanwhile this one labels."""
        self.bar = bar
        size = self.labeler.batch_size
        batch: list[_Job] = []
        with ThreadPoolExecutor(min(8, max(2, torch.get_num_threads()))) as self.pool:
            try:
                for job, future in self._prefetch(jobs, 2 * size):
                    try:
                        future.result()
                    except Exception as error:
                        self._fail(job, error)
                        continue
                    batch.append(job)
                    if len(batch) == size:
                        self._label(batch)
                        batch = []
                if batch:
                    self._label(batch)
            finally:
                # After an interrupt: read no more, but write and record what has been labelled.
                for _, future in self.reading:
                    future.cancel()
                self._collect(0)

    def _done(self, image: str) -> bool:
        record = self.records.get(image)
        if record.get("settings") != self.key or record.get("error") is not None:
            return False
        outputs = [record.get("mask"), *([record.get("overlay")] if self.overlays else [])]
        if not all(output and (self.folder / output).is_file() for output in outputs):
            return False
        try:
            stat = os.stat(image)
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (record.get("bytes"), record.get("mtime_ns"))

    def _prefetch(self, jobs: list[_Job], ahead: int) -> Iterator[tuple[_Job, Future[None]]]:
        for job in jobs:
            self.reading.append((job, self.pool.submit(self._read, job)))
            if len(self.reading) > ahead:
                yield self.reading.popleft()
        while self.reading:
            yield self.reading.popleft()

    def _read(self, job: _Job) -> None:
        start = time.perf_counter()
        if os.path.isfile(job.image):
            job.stat()
        picture, job.notes = load_image(job.image)
        job.size = picture.size
        job.picture = picture if self.overlays else None
        job.pixels = self.labeler.preprocess(picture)
        job.seconds += time.perf_counter() - start

    def _label(self, batch: list[_Job]) -> None:
        start = time.perf_counter()
        try:
            labels = self.labeler.label_batch(
                torch.stack([job.pixels for job in batch if job.pixels is not None])
            )
        except Exception as error:
            # The other images of the batch must not pay for one: each again, by itself.
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                for job in batch:
                    self._label([job])
            return
        seconds = (time.perf_counter() - start) / len(batch)
        for index, job in enumerate(batch):
            job.seconds += seconds
            job.pixels = None
            # From here on its mask may be there, or be the new one: the record must name it, and an
            # old one must not vouch for it.
            previous = self.records.get(job.image) or self._record(job)
            interrupted = {"mask": job.mask, "error": "labelling was interrupted"}
            self.records.add({**previous, **interrupted})
            row = {field.name: getattr(labels, field.name)[index] for field in fields(labels)}
            self.writing.append((job, self.pool.submit(self._write, job, PseudoLabels(**row))))
        self._collect(2 * self.labeler.batch_size)

    def _write(self, job: _Job, labels: PseudoLabels) -> Record:
        start = time.perf_counter()
        mask = mask_image(labels.mask, job.size)
        write_atomically(self.folder / job.mask, lambda file: mask.save(file, "PNG"))
        record = self._record(job)
        if job.picture is not None:
            panels = overlay(job.picture, labels)
            record["overlay"] = _overlay_name(job.mask)
            write_atomically(
                self.folder / record["overlay"], lambda file: panels.save(file, "JPEG", quality=90)
            )
            job.picture = None
        for name in ("eigenvalue", "gap", "residual"):
            value = float(getattr(labels, name))
            record[name] = value if math.isfinite(value) else None
        for name in ("lanczos_iters", "ipo_iters"):
            record[name] = int(getattr(labels, name))
        record["foreground"] = float(labels.mask.float().mean())
        record["seconds"] = round(job.seconds + time.perf_counter() - start, 4)
        record["mask"] = job.mask
        return record

    def _record(self, job: _Job) -> Record:
        return {
            "image": job.image,
            "mask": None,
            "overlay": None,
            "error": None,
            "notes": list(job.notes),
            "settings": self.key,
            "bytes": job.bytes,
            "mtime_ns": job.mtime_ns,
        }

    def _collect(self, most: int) -> None:
        """Records what has been written, until at most ``most`` files are still being written."""
        while len(self.writing) > most or (self.writing and self.writing[0][1].done()):
            job, future = self.writing.popleft()
            try:
                record = future.result()
            except Exception as error:
                self._fail(job, error)
                continue
            self.records.add(record)
            self.summary.labelled += 1
            self.bar.update()

    def _fail(self, job: _Job, error: Exception) -> None:
        text = str(error).strip() or type(error).__name__
        sentence = text.splitlines()[0]
        if job.image not in sentence:
            sentence = f"cannot label {job.image}: {sentence}"
        # A mask of an earlier run stays, and stays this image's.
        kept = self.records.get(job.image).get("mask")
        mask = kept if kept and (self.folder / kept).exists() else None
        self.records.add({**self._record(job), "mask": mask, "error": sentence})
        self.summary.failed += 1
        tqdm.write(sentence, file=sys.stderr)
        self.bar.update()


def _overlay_name(mask: str) -> str:
    """The overlay of a mask; masks are PNG files, so that no overlay can take a mask's place."""
    return str(PurePosixPath("overlays") / PurePosixPath(mask).with_suffix(".jpg"))
