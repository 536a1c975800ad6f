"""The output folder: its records, and the state of each image.

An image is ``new`` until it has a record. From then on its latest record tells the state::

    new ----> started     start()   names the files that are about to be written
    started -> done       finish()  names the files and the settings of the result
    started -> failed     fail()    has the error, and the files that the image had before
    done ----> stale      its settings, its input or its files are no longer as the record says

A run skips the images that are ``done``, see :meth:`OutputFolder.is_done`, and starts all others,
except those whose main file somebody has changed since: these keep their files.
A run that is killed leaves images ``started``, so that their files count for nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..images.load import ImageEntry, ImageError, load_image
from ..util.files import not_writable, output_path, reason, remove_abandoned, write_atomically
from ..util.lines import Record
from .frames import remove_output
from .identity import identify
from .names import OutputNames
from .records import Records
from .spec import Contents, OutputSpec
from .task import Task

INTERRUPTED = "the run was interrupted"  #: the error of an image that is started
_INPUT_FIELDS = ("path", "bytes", "mtime_ns", "checksum")  # of records, on the input file
_WRITTEN = "output_crc32"  # the record's field with the checksum of the main output file


class OutputFolder:
    """The results of a job in one folder: which images are done, and what is written when."""

    def __init__(
        self, out: str | os.PathLike[str], spec: OutputSpec, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Makes the folder and locks its records; raises ``ValueError`` if it cannot be written.

        ``shard``: the rank of this process and the number of processes that share the work.
        """
        self.path = output_path("out", out)
        if (self.path / ".selfment").exists():
            raise ValueError(
                "`out` must be another folder than that of a run over shards: got "
                f"{os.fspath(out)!r}"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.records = Records(self.path / spec.records_file, spec.key, shard)
        except OSError as error:
            raise not_writable("out", "folder", out, error) from error
        self._spec = spec
        self._rank, self._world = shard
        self._is_cleaned = False
        self.images: set[str] = set()  #: all images of this run, as the records name them
        self.done = self.skipped = self.failed = 0  #: images of this process
        self.outdated = 0  #: images of this process with results of other settings
        #: main files of this process that somebody has changed, and which therefore stay
        self.changed: list[str] = []

    def plan(self, entries: Sequence[ImageEntry]) -> list[Task]:
        """The tasks left for this process; all images get their names, alike in each process.

        Raises ``ValueError`` if a file would replace an input.
        """
        names = OutputNames(self.path, self._spec, self.records, entries)
        tasks = []
        identified = identify(entries, self.records, names.real_path)
        for index, (entry, (task, tag)) in enumerate(zip(entries, identified, strict=True)):
            record = self.records.get(task.image)
            names.choose(task, entry, tag)
            self.images.add(task.image)
            if index % self._world != self._rank:
                continue
            if self.is_done(task, record):
                self.skipped += 1
                self._update_location(task, record)
            elif (changed := self._changed_file(task)) is not None:
                self.skipped += 1
                self.changed.append(changed)
            else:
                tasks.append(task)
                self.outdated += self._has_other_settings(task, record)
        if self._rank == 0:
            names.report()
        return tasks

    def is_done(self, task: Task, record: Record) -> bool:
        """True if the image's record and files are what this run would make of it."""
        if not self._is_current(record, task):
            return False
        files = {}
        for field in self._spec.wanted(task.name):
            file = record.get(field)
            if not file or not self._has_file_setting(record, field):
                return False
            files[field] = os.path.join(self.path, file)
        try:
            return self._spec.are_intact(files, record)
        except OSError:
            return False

    def _changed_file(self, task: Task) -> str | None:
        """The main file of an image, if somebody has changed it since it was written.

        A file that is no image is damaged, and therefore not of interest.
        """
        written = self._known_outputs(task).get(_WRITTEN)
        if written is None:
            return None
        try:
            content = (self.path / task.name).read_bytes()
            if zlib.crc32(content) == written:
                return None
            load_image(content)
        except (OSError, ImageError):
            return None
        return task.name

    def _has_other_settings(self, task: Task, record: Record) -> bool:
        """True if the record is of a result that was made with other settings."""
        known = record.get("error") is None and record.get("settings") is not None
        return known and record["settings"] != self._settings(task)

    def start(self, task: Task) -> None:
        """Records which files of an image are about to be written; call it before writing them.

        Each may then be the old file or the new one, so that the record names them, but vouches for
        no settings. Raises ``ValueError`` if a file exists that no record of the image mentions.
        """
        earlier = self._known_outputs(task)
        new = self._wanted_files(task)
        for field, file in new.items():
            is_other = earlier and earlier.get(field) != file
            if is_other and os.path.lexists(os.path.join(self.path, file)):
                raise ValueError(
                    f"`out` must hold no {file} of another program where a result is to be"
                )
        task.earlier = earlier
        last = {**earlier, **new}
        last.pop(_WRITTEN, None)
        if not self._is_current(earlier, task):
            last["settings"] = None
        for field in new:
            if not self._has_file_setting(earlier, field):
                last[self._spec.file_settings[field][0]] = None
        self._add(task, {self._spec.key: task.name, "error": INTERRUPTED, "last": last})

    def write(self, task: Task, contents: Contents) -> Record:
        """Writes files of an image, and removes those of other results, see the next methods.

        Returns the fields of its record that name files which remain, and the checksum of the main
        file. Call it after :meth:`start`.
        """
        files = self.new_files(task)
        for field, write in contents.items():
            write_atomically(files[field], write)
        fields = self.remove_stale_files(task)
        if (main := self._main_field(task)) in contents:
            fields[_WRITTEN] = zlib.crc32(files[main].read_bytes())
        return fields

    def new_files(self, task: Task) -> dict[str, Path]:
        """The paths of the files that this run makes of an image, by field."""
        return {field: self.path / file for field, file in self._wanted_files(task).items()}

    def remove_stale_files(self, task: Task) -> Record:
        """Removes the image's files of other results; returns the fields of those that remain.

        Files of the very same result remain, and those that this run makes. No file is removed
        that the image's own record did not name. Call it after :meth:`start`.
        """
        is_current = self._is_current(task.earlier, task)
        kept: Record = {}
        for field, file in self._files(task).items():
            path = self.path / file
            if field in self._spec.wanted(task.name) or task.earlier.get(field) != file:
                continue
            if path.exists() or path.is_symlink():
                if is_current and self._has_file_setting(task.earlier, field):
                    kept[field] = file
                else:
                    remove_output(path)
        for field, (setting, _) in self._spec.file_settings.items():
            if field in kept:
                kept[setting] = task.earlier[setting]
        if self._main_field(task) in kept and _WRITTEN in task.earlier:
            kept[_WRITTEN] = task.earlier[_WRITTEN]
        return kept

    def finish(self, task: Task, fields: Mapping[str, Any]) -> None:
        """Records an image whose files are written; ``fields``: further fields of its record."""
        made: Record = dict(self._wanted_files(task))
        for field, (setting, value) in self._spec.file_settings.items():
            if field in made:
                made[setting] = value
        seconds = round(task.seconds, 4)
        self._add(task, {**made, **fields, self._spec.key: task.name, "seconds": seconds})
        self.done += 1

    def fail(self, task: Task, error: Exception) -> str:
        """Records an image that could not be done, and returns what went wrong as a sentence.

        Files of an earlier result stay, and stay this image's.
        """
        # An image error is a sentence, which may have a line break in the image's name.
        sentence = str(error) if isinstance(error, ImageError) else reason(error)
        if task.path not in sentence:
            sentence = f"cannot {self._spec.verb} {task.path}: {sentence}"
        name = self.records.get(task.image).get(self._spec.key)
        files = self._files(task).values()
        if not any(os.path.exists(os.path.join(self.path, file)) for file in files):
            name = None
        last = self._known_outputs(task)
        self._add(task, {self._spec.key: name or None, "error": sentence, "last": last})
        self.failed += 1
        return sentence

    def remove_abandoned_files(self) -> None:
        """Removes the temporary files of killed processes, unless other processes write here."""
        if not self._is_cleaned and self._world == 1:
            remove_abandoned(self.path)
        self._is_cleaned = True

    def _files(self, task: Task) -> dict[str, str]:
        """The names of all files that may be made of an image, by field."""
        return {**self._spec.output_files(task.name), **task.special_names}

    def _wanted_files(self, task: Task) -> dict[str, str]:
        """The names of the files that this run makes of an image, by field."""
        files = self._files(task).items()
        wanted = self._spec.wanted(task.name)
        return {field: file for field, file in files if field in wanted}

    def _main_field(self, task: Task) -> str:
        """The field of the record that names the main output file of an image, if it is made."""
        return next(iter(self._spec.output_files(task.name)))

    def _settings(self, task: Task) -> str:
        """The digest of the settings of a task, as its record has it."""
        settings = json.dumps(self._spec.settings(task.name), sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]

    def _is_current(self, record: Record, task: Task) -> bool:
        """True if a record has this run's settings and was made from the input as it is now."""
        is_ours = record.get("error") is None and record.get("settings") == self._settings(task)
        return is_ours and task.matches(record) and task.has_features_of(record)

    def _has_file_setting(self, record: Record, field: str) -> bool:
        """True if a file has no setting of its own, or the record has the right value of it.

        If this run does not make the file, any value is right: None means that it is unknown.
        """
        if field not in self._spec.file_settings:
            return True
        setting, value = self._spec.file_settings[field]
        recorded = record.get(setting)
        return recorded is not None if value is None else bool(recorded == value)

    def _known_outputs(self, task: Task) -> Record:
        """The fields of the record on the image's output files: names, settings and input.

        An error does not change them. The settings are None or missing if the files may be of
        several results, or if the record is damaged.
        """
        record = self.records.get(task.image)
        if not record:
            files = self._files(task).items()
            return {f: file for f, file in files if self.records.is_in_damaged(file, task.image)}
        if record.get("error") is not None:
            last: Record = record.get("last") or {}
            return last
        known = ("settings", *_INPUT_FIELDS, "features", _WRITTEN, *self._output_fields())
        return {name: record[name] for name in known if record.get(name) is not None}

    def _output_fields(self) -> tuple[str, ...]:
        settings = (setting for setting, _ in self._spec.file_settings.values())
        return (*self._spec.file_fields, *settings)

    def _add(self, task: Task, fields: Record) -> None:
        """Adds a record of the image, with the common fields and these."""
        of_others = set(self._spec.file_fields) - set(self._files(task))
        common = {
            "image": task.image,
            **({} if task.twin is None else {"twin": task.twin}),
            self._spec.key: None,
            **{field: None for field in self._output_fields() if field not in of_others},
            "error": None,
            "notes": list(task.notes),
            "settings": self._settings(task),
            **{name: getattr(task, name) for name in _INPUT_FIELDS},
            **({} if task.features is None else {"features": task.features_record}),
        }
        self.records.add({**common, **fields})

    def _update_location(self, task: Task, record: Record) -> None:
        """Records where the input of an image that is done lies now."""
        location = {"path": task.path, "mtime_ns": task.mtime_ns}
        if any(record.get(name) != value for name, value in location.items()):
            self.records.add({**record, **location})


def with_valid_file(record: Record, field: str) -> Record:
    """Returns a record; after an error, with the file of an earlier result that is still valid.

    ``field``: the field of the record that names the file; None there if it is not valid.
    """
    if record.get("error") is None:
        return record
    last = record.get("last") or {}
    is_valid = last.get("settings") and all(
        last.get(name) == record.get(name) for name in ("bytes", "mtime_ns")
    )
    if not is_valid:
        return {**record, field: None}
    return {**record, field: last.get(field), "settings": last["settings"]}
