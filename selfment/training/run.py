"""Training of the segmentation head: features and labels once for each image, then epochs."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..backbones import DTYPES, WeightsError
from ..core import native as _native
from ..core import options as params
from ..core.torch_state import loading
from ..images.load import ImageEntry
from ..models.head import HeadInfo, PatchHead, read_checkpoint, save_head
from ..models.labeler import PseudoLabeler
from ..util import distributed as _distributed
from ..util.extras import load_extra
from ..util.files import atomic_file, lock, remove_abandoned, write_atomically
from .cache import TensorCache
from .loop import (
    EPOCHS,
    LEARNING_RATE,
    LOSSES,
    SEED,
    WEIGHT_DECAY,
    Step,
    fit,
)
from .samples import Source

MAX_IMAGES = 1000


@dataclass(frozen=True)
class Summary:
    """What a training run did."""

    head: Path  #: the folder of the finished head
    images: int  #: that were trained on
    failed: int  #: that could not be labelled
    steps: int  #: taken by this run
    seconds_per_step: float  #: the median; NaN without a step


def train(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    labeler: PseudoLabeler,
    *,
    epochs: int = EPOCHS,
    max_images: int = MAX_IMAGES,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = SEED,
    cache: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    cache_limit: int | None = None,
    feature_dtype: str = "float32",
    resume: bool = False,
    progress: bool = True,
) -> Summary:
    """Labels images once, and trains a head on them; see :func:`selfment.Segmenter` for its use.

    ``images``: from :func:`selfment.images.find_images`; ``max_images`` of them, chosen by
    ``seed``. ``cache``: the folder for features (N x d numbers of ``feature_dtype`` for each image)
    and labels, ``out/cache`` by default; ``cache_limit`` bytes at most, and what does not fit is
    computed again in each epoch, as all is without ``use_cache``. Files of the same content share
    an entry, whatever their names. Under ``torchrun`` images and steps are shared by all processes,
    which should see the same ``out``.

    ``out`` gets ``settings.json``, ``steps.jsonl`` (the losses of each step), TensorBoard events,
    ``epoch-NNN.pt`` after each epoch and the finished ``head/``. ``resume`` goes on after the last
    epoch that is there, to the same result; the images may lie elsewhere by then, under the same
    names relative to the folder that was searched. Images that cannot be labelled are reported on
    stderr and left out; one that has labels but cannot be read again ends the run, which can be
    resumed. An image that the labeler rejects is trained on as one that is all background.
    Raises ``ValueError`` for wrong arguments, an ``out`` that holds another training,
    and when no image is left, and whatever the backbone raises when it cannot be loaded.
    """
    _check(epochs, max_images, lr, weight_decay, seed, cache_limit, feature_dtype)
    lr, weight_decay, seed = float(lr), float(weight_decay), int(seed)
    rank, world = _distributed.world()
    if rank == 0:
        _load_tensorboard()  # before any work is done
    folder = Path(out).absolute()
    device = labeler.torch_device
    run = _Run(folder, rank == 0, resume)
    generator = torch.Generator("cpu").manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator, device="cpu")
    taken = [images[index] for index in sorted(chosen[:max_images].tolist())]
    try:
        if len({entry.name for entry in taken}) < len(taken):
            raise ValueError("`images` must have a `name` each: got the same more than once")
        if run.finished > epochs:
            raise ValueError(
                f"`epochs` must be at least as many as are finished: got {epochs}, {folder} has "
                f"{run.finished}"
            )
        store = None
        if use_cache:
            kept = folder / "cache" if cache is None else Path(cache).absolute()
            store = TensorCache(kept, cache_limit, world)
        with _distributed.process_group(device):
            seen = _distributed.gathered(run.finished)
            if len(set(seen)) > 1:
                raise ValueError(
                    "`out` must be the same folder for all processes: they found checkpoints of "
                    f"{', '.join(map(str, seen))} epochs"
                )
            source = Source(taken, labeler, store, feature_dtype)
            failed = source.prepare(progress and rank == 0)
            if not len(source):
                raise ValueError(
                    f"`images` must hold one that can be labelled: got {len(taken)}, of which none "
                    "can"
                )
            settings = {
                **labeler.settings,
                "lr": lr,
                "weight_decay": weight_decay,
                "seed": seed,
                "processes": world,
                "feature_dtype": feature_dtype,
            }
            run.begin(settings, dict(zip(source.names, source.keys, strict=True)), failed)
            head = _new_head(labeler.backbone.dim, seed)
            if run.checkpoint:
                head.load_state_dict(run.checkpoint["model_state"])
            # What travels with the head names no path of this machine.
            public = {name: value for name, value in settings.items() if name != "weights"}
            info = HeadInfo(
                labeler.backbone_name, labeler.features, labeler.size, public, labeler.positions
            )
            steps = -(-len(source) // world) * max(0, epochs - run.finished)
            with tqdm(total=steps, unit="step", disable=not progress or rank > 0) as bar:
                fit(
                    head.to(device),
                    source,
                    epochs=epochs,
                    lr=lr,
                    weight_decay=weight_decay,
                    seed=seed,
                    finished=run.finished,
                    optimizer_state=run.checkpoint.get("optimizer_state"),
                    on_step=lambda step: run.log(step, bar),
                    on_epoch=lambda epoch, state: run.save(epoch, head, info, state),
                )
            if rank == 0:
                save_head(folder / "head", head, info)
                run.close()
            _distributed.gathered(None)  # nobody leaves before all is written
    finally:
        run.close()
    return Summary(folder / "head", len(source), len(failed), len(run.seconds), run.median)


class _Run:
    """The files of a training run; only the first process writes them."""

    def __init__(self, folder: Path, writes: bool, resume: bool) -> None:
        self.folder = folder
        self.seconds: list[float] = []
        self.checkpoint: dict[str, Any] = {}
        self.finished = 0
        self._writes = writes
        self._steps: Any = None
        self._board: Any = None
        self._held: Any = None
        found = [file for file in folder.glob("epoch-*.pt") if _epoch(file.name)]
        epochs = sorted(found, key=lambda file: _epoch(file.name))
        if epochs and not resume:
            raise ValueError(
                f"`out` must hold no training unless it is resumed: {folder} has {epochs[-1].name}"
            )
        while epochs and not self.checkpoint:
            newest = epochs.pop()
            try:
                self.checkpoint = read_checkpoint(os.fspath(newest))
                self.finished = _epoch(newest.name)
            except WeightsError as error:  # cut off, as by a power failure
                print(f"{error}; going on from the epoch before", file=sys.stderr)
        if writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._held = (folder / ".lock").open("a", encoding="utf-8")
            except OSError as error:
                raise ValueError(
                    "`out` must be a folder that can be written: "
                    f"got {os.fspath(folder)!r} ({error.strerror or error})"
                ) from error
            lock(self._held, folder)
            remove_abandoned(folder)

    @property
    def median(self) -> float:
        """Seconds for a step."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def begin(self, settings: dict[str, Any], images: dict[str, str], failed: list[str]) -> None:
        """Checks that a resumed run is the same, and writes what there is to say of it.

        ``images``: the keys of their features, which are of their content, by relative name.
        """
        self._settings, self._images = settings, images
        before = self.checkpoint.get("settings", settings)
        for name in settings:
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"`resume` must have the settings of the training it goes on with: {name} was "
                    f"{before.get(name)!r}, is {settings[name]!r}"
                )
        keys = self.checkpoint.get("images", images)
        for name in [*keys, *images]:
            if keys.get(name) != images.get(name):
                state = "is new" if name not in keys else "has changed"
                state = state if name in images else "is missing, or cannot be labelled now"
                raise ValueError(
                    f"`resume` must have the images of the training it goes on with: {name} {state}"
                )
        self._last = time.perf_counter()
        self._names = list(images)
        if not self._writes:
            return
        about = {"settings": settings, "versions": _native.info(), "failed": failed}
        text = json.dumps({**about, "images": self._names}, indent=2) + "\n"
        write_atomically(
            self.folder / "settings.json", lambda file: file.write(text.encode()), durable=True
        )
        # A run that was killed wrote steps of an epoch that it did not finish.
        file = self.folder / "steps.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if 0 < _parsed(line).get("epoch", 0) <= self.finished]
        write_atomically(file, lambda steps: steps.write("".join(kept).encode()))
        self._steps = file.open("a", encoding="utf-8")
        purge = _parsed(kept[-1])["step"] + 1 if kept else 0
        self._board = _load_tensorboard().SummaryWriter(
            str(self.folder / "tensorboard"), purge_step=purge
        )

    def log(self, step: Step, bar: tqdm[Any]) -> None:
        """Writes one step."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        bar.update()
        if self._steps is None:
            return
        row = {**asdict(step), "image": self._names[step.index], "seconds": self.seconds[-1]}
        self._steps.write(json.dumps(row) + "\n")
        self._steps.flush()
        for name in LOSSES:
            self._board.add_scalar(f"loss/{name}", getattr(step, name), step.step)

    def save(self, epoch: int, head: PatchHead, info: HeadInfo, state: dict[str, Any]) -> None:
        """Writes the checkpoint of an epoch."""
        if not self._writes:
            return
        content = {
            "epoch": epoch,
            "model_state": head.state_dict(),
            "optimizer_state": state,
            "settings": self._settings,
            "images": self._images,
            "info": asdict(info),
        }
        with atomic_file(self.folder / f"epoch-{epoch:03}.pt", durable=True) as file:
            torch.save(content, file)

    def close(self) -> None:
        """Releases the files."""
        for file in (self._board, self._steps, self._held):
            if file is not None:
                file.close()


def _new_head(dim: int, seed: int) -> PatchHead:
    """What ``torch.manual_seed(seed)`` and ``PatchHead(dim)`` make; global generators stay."""
    with loading():
        head = PatchHead(dim)
        generator = torch.Generator("cpu").manual_seed(seed)
        for layer in (part for part in head.modules() if isinstance(part, nn.Linear)):
            # As torch's linear layers begin.
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        return head


def _epoch(name: str) -> int:
    found = re.fullmatch(r"epoch-(\d+)\.pt", name)
    return int(found[1]) if found else 0


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # cut off, or damaged
        return {}
    return row if isinstance(row, dict) else {}


def _load_tensorboard() -> Any:
    """The TensorBoard writer of torch, which takes a second to import."""
    return load_extra("torch.utils.tensorboard", "TensorBoard", "train", "training")


def _check(
    epochs: int,
    max_images: int,
    lr: float,
    weight_decay: float,
    seed: int,
    cache_limit: int | None,
    feature_dtype: str,
) -> None:
    for name, value in (("epochs", epochs), ("max_images", max_images)):
        params.require(name, value, "an integer >= 1", isinstance(value, Integral) and value >= 1)
    finite = isinstance(lr, Real) and lr < math.inf
    params.require("lr", lr, "a number > 0", finite and lr > 0)
    finite = isinstance(weight_decay, Real) and weight_decay < math.inf
    params.require("weight_decay", weight_decay, "a number >= 0", finite and weight_decay >= 0)
    whole = isinstance(seed, Integral)
    params.require("seed", seed, "an integer from 0 to 2^63 - 1", whole and 0 <= seed < 2**63)
    if cache_limit is not None:
        params.require("cache_limit", cache_limit, "an integer >= 0", cache_limit >= 0)
    params.choice("feature_dtype", feature_dtype, DTYPES)
