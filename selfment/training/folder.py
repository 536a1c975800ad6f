"""The folder of a training run: its lock, settings, steps and checkpoints."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..backbones import WeightsError
from ..core import native as _native
from ..models.head import HeadInfo, PatchHead, read_checkpoint
from ..util.extras import load_extra
from ..util.files import atomic_file, lock, not_writable, remove_abandoned, write_atomically
from .cache import key_of
from .loop import LOSSES, Step
from .masks import MaskFolder
from .samples import Sample

_KEPT = 3  # checkpoints: a few images take 1,000 epochs, which would fill the disk


class RunFolder:
    """The files of a training run. All processes read them; only the first process writes."""

    def __init__(self, folder: Path, writes: bool, resume: bool) -> None:
        """Reads the newest checkpoint that is whole; locks the folder if this process writes.

        Raises ``ValueError`` where there are checkpoints and ``resume`` is False, and where the
        folder cannot be written.
        """
        self.folder = folder
        self.seconds: list[float] = []  #: that each step of this run took
        self.checkpoint: dict[str, Any] = {}  #: of the last finished epoch
        self.finished = 0  #: epochs
        self._writes = writes
        self._steps: Any = None
        self._board: Any = None
        self._lock: Any = None
        checkpoints = sorted((f for f in folder.glob("epoch-*.pt") if _epoch_of(f)), key=_epoch_of)
        if checkpoints and not resume:
            raise ValueError(
                "`out` must hold no training unless it is resumed: "
                f"{folder} has {checkpoints[-1].name}"
            )
        while checkpoints and not self.checkpoint:
            newest = checkpoints.pop()
            try:
                self.checkpoint = read_checkpoint(os.fspath(newest))
                self.finished = _epoch_of(newest)
            except WeightsError as error:  # the file was cut off, as by a power failure
                print(f"{error}; going on from the epoch before", file=sys.stderr)
        if writes:
            self._make_and_lock()

    @property
    def median(self) -> float:
        """The median of the seconds of a step; NaN without a step."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def begin(
        self,
        settings: dict[str, Any],
        names: Sequence[str],
        samples: Sequence[Sample],
        failed: Sequence[str],
        labels: MaskFolder | None,
    ) -> None:
        """Checks that a resumed run is the same one, and writes ``settings.json``.

        Args:
            settings: Of the training, ready for JSON.
            names: The relative name of each image.
            samples: The images. The keys of their features depend on the content of their files.
            failed: A sentence for each image that has no labels.
            labels: The folder of the masks, if the labels are masks that exist.
        """
        masks = {name: sample.mask for name, sample in zip(names, samples, strict=True)}
        digest = None if labels is None else key_of(masks=masks)
        self._images = {name: sample.key for name, sample in zip(names, samples, strict=True)}
        self._masks, self._names = masks, names
        self._check_same(settings, digest)
        # Added after the check, which names the image whose mask has changed.
        self.settings = {**settings, "labels": digest}
        self._time_of_last_step = time.perf_counter()
        if not self._writes:
            return
        about = {
            "settings": self.settings,
            "labels_folder": None if labels is None else os.fspath(labels.path),
            "versions": _native.info(),
            "failed": failed,
            "images": names,
        }
        text = json.dumps(about, indent=2) + "\n"
        write_atomically(
            self.folder / "settings.json", lambda file: file.write(text.encode()), durable=True
        )
        self._open_logs()

    def log(self, step: Step, bar: tqdm[Any]) -> None:
        """Writes one step to ``steps.jsonl`` and for TensorBoard."""
        now = time.perf_counter()
        self.seconds.append(now - self._time_of_last_step)
        self._time_of_last_step = now
        bar.update()
        if self._steps is None:
            return
        row = {**asdict(step), "image": self._names[step.index], "seconds": self.seconds[-1]}
        self._steps.write(json.dumps(row) + "\n")
        self._steps.flush()
        for name in LOSSES:
            self._board.add_scalar(f"loss/{name}", getattr(step, name), step.step)

    def save(self, epoch: int, head: PatchHead, info: HeadInfo, state: dict[str, Any]) -> None:
        """Writes the checkpoint of an epoch, and removes the one before the last ``_KEPT``.

        ``state``: of the optimiser.
        """
        if not self._writes:
            return
        content = {
            "epoch": epoch,
            "model_state": head.state_dict(),
            "optimizer_state": state,
            "settings": self.settings,
            "images": self._images,
            "masks": self._masks,
            "info": asdict(info),
        }
        with atomic_file(self._checkpoint_file(epoch), durable=True) as file:
            torch.save(content, file)
        self._checkpoint_file(epoch - _KEPT).unlink(missing_ok=True)

    def _checkpoint_file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03}.pt"

    def close(self) -> None:
        """Closes the logs and releases the lock."""
        for file in (self._board, self._steps, self._lock):
            if file is not None:
                file.close()

    def _make_and_lock(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("a", encoding="utf-8")
        except OSError as error:
            raise not_writable("out", "folder", self.folder, error) from error
        lock(self._lock, self.folder)
        remove_abandoned(self.folder)

    def _check_same(self, settings: dict[str, Any], labels: str | None) -> None:
        """Raises ``ValueError`` where the checkpoint has other settings, images or labels."""
        if not self.checkpoint:
            return
        before = self.checkpoint.get("settings", {})
        kinds = [
            "the labeler's" if digest is None else "masks that exist"
            for digest in (before.get("labels"), labels)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "`resume` must have the labels of the training it goes on with: they were "
                f"{kinds[0]}, are {kinds[1]}"
            )
        for name in settings:
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"`resume` must have the settings of the training it goes on with: {name} was "
                    f"{before.get(name)!r}, is {settings[name]!r}"
                )
        keys, images = self.checkpoint.get("images", {}), self._images
        masks = self.checkpoint.get("masks", {})
        for name in [*keys, *images]:
            if keys.get(name) != images.get(name):
                state = "is new" if name not in keys else "has changed"
                state = state if name in images else "is missing, or cannot be labelled now"
                raise ValueError(
                    f"`resume` must have the images of the training it goes on with: {name} {state}"
                )
            if masks.get(name) != self._masks.get(name):
                raise ValueError(
                    "`resume` must have the labels of the training it goes on with: that of "
                    f"{name} has changed"
                )

    def _open_logs(self) -> None:
        """Opens ``steps.jsonl`` and the TensorBoard writer after the last finished epoch."""
        # A run that was killed has written steps of an epoch that it did not finish.
        file = self.folder / "steps.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if 0 < _parsed(line).get("epoch", 0) <= self.finished]
        write_atomically(file, lambda steps: steps.write("".join(kept).encode()))
        self._steps = file.open("a", encoding="utf-8")
        purge = _parsed(kept[-1])["step"] + 1 if kept else 0
        self._board = load_tensorboard().SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=purge
        )


def load_tensorboard() -> Any:
    """Imports torch's TensorBoard writer, which takes a second.

    Raises ``ImportError`` where TensorBoard is missing.
    """
    return load_extra("torch.utils.tensorboard", "TensorBoard", "train", "training")


def _epoch_of(checkpoint: Path) -> int:
    """The epoch in the name of a checkpoint; 0 for another file."""
    match = re.fullmatch(r"epoch-(\d+)\.pt", checkpoint.name)
    return int(match[1]) if match else 0


def _parsed(line: str) -> dict[str, Any]:
    """The JSON object in a line; empty for a line that is cut off or damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
