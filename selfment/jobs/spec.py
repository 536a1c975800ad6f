"""The differences between jobs: which files they write for each image, and how they make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from torch import Tensor

from ..images.load import ImageEntry
from ..util.lines import Record
from .task import Task

Result = TypeVar("Result")

#: What is written to the files of an image: functions that write it, by field of the record.
Contents = Mapping[str, Callable[[IO[bytes]], object]]


class OutputSpec(Protocol):
    """The files of a job, for :class:`selfment.jobs.folder.OutputFolder`."""

    records_file: str  #: name of the file of records in the output folder
    key: str  #: the record's field that names the main output file
    verb: str  #: what is done to an image, for error messages
    file_fields: tuple[str, ...]  #: the record's fields that name output files
    #: a setting that one file alone depends on, by the file's field: the record's field and value.
    #: The value is None if this run does not make the file.
    file_settings: Mapping[str, tuple[str, Any]]

    def main_file(self, entry: ImageEntry) -> str:
        """The usual name of an image's main output file."""

    def tagged(self, name: str, tag: str) -> str:
        """Another name for a main output file, with ``tag`` at the end of the stem."""

    def output_files(self, name: str) -> dict[str, str]:
        """All files that may be made from an image, by field; ``name``: the main one, the first.

        One may be a folder of frames, see :mod:`selfment.jobs.frames`.
        """

    def wanted(self, name: str) -> frozenset[str]:
        """The fields of the files that this run makes; ``name``: the main one."""

    def settings(self, name: str) -> Mapping[str, Any]:
        """All that the results depend on besides the input, ready for JSON; ``name``: as above."""

    def alternative_names(
        self, image: str, files: Mapping[str, str]
    ) -> Mapping[str, Sequence[str]]:
        """The names that a file of an image may have, the preferred one first, by field.

        ``files``: from :meth:`output_files`. Its name is among them, and is used if none is free.
        """

    def are_intact(self, files: Mapping[str, str], record: Record) -> bool:
        """True if output files, by field, have the content that the record promises.

        Raises ``OSError`` if one is missing.
        """


class ImageSpec(Protocol[Result]):
    """The work on each image, for :class:`selfment.jobs.runner.Runner`."""

    batch_size: int  #: images of one call of :meth:`start`
    #: the endings of the files of an image in an archive, by field; the main file comes first
    endings: Mapping[str, str]
    #: the types of the fields of :meth:`draw`, in Arrow's words
    numbers: Mapping[str, str]
    batches_ahead: int  #: batches that are started before the results of the first are waited for

    def prepare(self, task: Task) -> None:
        """Reads the input, sets ``task.pixels`` and what :meth:`draw` needs; runs in a thread."""

    def start(self, batch: Tensor) -> Callable[[], Sequence[Result]]:
        """Begins to compute a (B, 3, H, W) batch of pixels.

        Returns the function that waits for the result of each image.
        """

    def draw(self, task: Task, result: Result) -> tuple[Contents, Record]:
        """The contents of the wanted files, and further fields of the record; in a thread."""


class JobSpec(OutputSpec, ImageSpec[Result], Protocol[Result]):
    """The files of a job and the work on each input, for :func:`selfment.jobs.runner.run_job`."""

    unit: str  #: what the progress bar counts

    def load(self, tasks: Sequence[Task]) -> None:
        """Loads the models; an error ends the run instead of counting as the first image's."""

    def unbatched(self, task: Task) -> Callable[[Task, Mapping[str, Path]], Record] | None:
        """The function that does the whole task if its input is a video; None for an image.

        It writes the wanted files, by field, and returns further fields of the record.
        """
