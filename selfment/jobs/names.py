"""The names of output files: one set for each image, and none that is already in use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..images.load import ImageEntry
from ..util.files import RealPaths, printable
from .records import Records
from .spec import OutputSpec
from .task import Task

_MOST_NAMESAKES = 3  # that a message lists


class OutputNames:
    """Chooses the names of the output files of each image.

    An image keeps the names in its record. A new one gets neither the name of another image's file
    nor that of a file that no record mentions. Every process of a sharded run makes the same
    choices: it asks for all images, in the same order.
    """

    def __init__(
        self, folder: Path, spec: OutputSpec, records: Records, inputs: Iterable[ImageEntry]
    ) -> None:
        """``inputs``: the images of the run, which no output file may replace."""
        self._folder = os.fspath(folder)
        self._spec = spec
        self._records = records
        self.real_path = RealPaths()  #: each folder of inputs and outputs is looked up once
        self._inputs = set()
        for entry in inputs:
            path = os.fspath(entry.path)
            self._inputs.add(self.real_path(path))
            if os.path.islink(path):
                self._inputs.add(os.path.realpath(path))
        self._namesakes: list[str] = []
        self._misplaced: list[tuple[str, str, str]] = []  # image, field, file
        self._aside: list[str] = []  # images whose files have other names than usual

    def choose(self, task: Task, entry: ImageEntry, tag: str) -> None:
        """Sets the names of a task's output files; ``tag`` tells them from another image's.

        Raises ``ValueError`` if a file would replace an input.
        """
        record = self._records.get(task.image)
        task.name = record.get(self._spec.key) or self._spec.main_file(entry)
        files = self._spec.output_files(task.name)
        for file in files.values():
            if self.real_path(os.path.join(self._folder, file)) in self._inputs:
                raise ValueError(
                    f"`out` must not hold the inputs: {file} would replace an input image "
                    f"in {self._folder}"
                )
        exist = self._exist(task, files)
        is_free = self._records.reserve(task.name, task.image)
        if exist or not is_free:
            usual, task.name = task.name, self._spec.tagged(task.name, tag)
            if is_free:
                self._aside.append(f"{task.name} for {usual}")
            self._records.reserve(task.name, task.image)
            files = self._spec.output_files(task.name)
        if task.twin is not None and not record:
            self._namesakes.append(f"{task.twin} is {task.name}")
        for field, names in self._spec.alternative_names(task.image, files).items():
            recorded = record.get(field) or (record.get("last") or {}).get(field)
            chosen = self._choose_alternative(task, field, names, files[field], recorded)
            if chosen != files[field]:
                task.special_names = {**task.special_names, field: chosen}
            if chosen != names[0] and field in self._spec.wanted(task.name):
                self._misplaced.append((task.image, field, chosen))

    def _exist(self, task: Task, files: Mapping[str, str]) -> bool:
        """True if files of an image exist that no record mentions."""
        return not self._records.is_recorded(task.name, task.image) and any(
            os.path.exists(os.path.join(self._folder, file)) for file in files.values()
        )

    def _choose_alternative(
        self, task: Task, field: str, names: Sequence[str], usual: str, recorded: str | None
    ) -> str:
        """The recorded one of the names, or if the file is to be made, the first that is free."""
        image = task.image
        if recorded is not None and recorded in names:
            self._records.reserve(recorded, image)
            return recorded
        if field in self._spec.wanted(task.name):
            free = (file for file in names if file == usual or self._is_free(file, image))
            return next((file for file in free if self._records.reserve(file, image)), usual)
        return usual

    def _is_free(self, file: str, image: str) -> bool:
        """True unless a file exists that no record mentions."""
        return self._records.is_recorded(file, image) or not os.path.lexists(
            os.path.join(self._folder, file)
        )

    def report(self) -> None:
        """Prints on stderr which of the chosen names a user would not expect."""
        if self._misplaced:
            image, field, file = self._misplaced[0]
            others = and_more(len(self._misplaced) - 1)
            sentence = (
                f"the {field} of {image} are in {file}{others}, where programs find them by "
                "data.yaml only: rename images that differ in their suffix alone"
            )
            print(printable(sentence), file=sys.stderr)
        if self._aside:
            count = len(self._aside)
            have = "1 image has another name"
            if count > 1:
                have = f"{count:,} images have other names"
            listed = ", ".join(self._aside[:_MOST_NAMESAKES])
            sentence = (
                f"{have} in {self._folder}, because there are files that no record mentions: "
                f"{listed}{and_more(count - _MOST_NAMESAKES)}"
            )
            print(printable(sentence), file=sys.stderr)
        if self._namesakes:
            listed = ", ".join(self._namesakes[:_MOST_NAMESAKES])
            others = and_more(len(self._namesakes) - _MOST_NAMESAKES)
            sentence = f"other images have the same names in {self._folder}: {listed}{others}"
            print(printable(sentence), file=sys.stderr)


def and_more(count: int) -> str:
    """Returns the end of a list of which ``count`` more are not shown."""
    return f" and {count:,} more" if count > 0 else ""
