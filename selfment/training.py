"""Training of the segmentation head: features and labels once for each image, then epochs."""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from tqdm import tqdm

from . import __version__, _distributed, _native
from . import _params as params
from ._cache import TensorCache, content_of, key_of
from ._records import lock, write_atomically
from .backbones import DTYPES
from .head import HeadInfo, PatchHead, read_checkpoint, save_head
from .images import ImageEntry, load_image
from .labeler import PseudoLabeler
from .losses import HeadLoss, head_loss

EPOCHS = 3
MAX_IMAGES = 1000
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-5
SEED = 111

_AHEAD = 4  # samples that are read while one is trained on
_LOSSES = ("total", "bce", "dice", "contrastive")


class Samples(Protocol):
    """What a head is trained on."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """(N, d) features and (N,) bool labels of an image; called from several threads."""


@dataclass(frozen=True)
class Step:
    """One optimisation step: the losses are means over the images of all processes."""

    epoch: int  #: from 1
    step: int  #: from 1, over all epochs
    index: int  #: of this process's image
    total: float
    bce: float
    dice: float
    contrastive: float


@dataclass(frozen=True)
class Summary:
    """What a training run did."""

    head: Path  #: the folder of the finished head
    images: int  #: that were trained on
    failed: int  #: that could not be labelled
    steps: int  #: taken by this run
    seconds_per_step: float  #: the median; NaN without a step


def fit(
    head: PatchHead,
    samples: Samples,
    *,
    epochs: int = EPOCHS,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = SEED,
    finished: int = 0,
    optimizer_state: dict[str, Any] | None = None,
    on_step: Callable[[Step], object] = lambda step: None,
    on_epoch: Callable[[int, dict[str, Any]], object] = lambda epoch, state: None,
) -> PatchHead:
    """Trains ``head`` in place, on its device: Adam, one image for each step and process.

    The order of an epoch depends on ``seed`` and its number alone, so that a run that goes on after
    ``finished`` epochs with their ``optimizer_state`` ends as one that never stopped. Under
    ``torch.distributed`` each process takes its share of every epoch. ``on_epoch`` gets the epoch,
    from 1, and the optimiser's state.
    """
    device = next(head.parameters()).device
    model: nn.Module = head
    rank, world = 0, 1
    if torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model = nn.parallel.DistributedDataParallel(head)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr, weight_decay=weight_decay)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    indices: Any = range(len(samples))
    sampler: DistributedSampler[int]
    sampler = DistributedSampler(indices, world, rank, shuffle=True, seed=seed)
    step = finished * len(sampler)
    head.train()
    for epoch in range(finished + 1, epochs + 1):
        sampler.set_epoch(epoch)
        for index, features, labels in _prefetched(samples, sampler):
            logits, embedding = model(features.to(device))
            loss = head_loss(logits, embedding, labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            optimizer.step()
            step += 1
            on_step(Step(epoch, step, index, **_values(loss)))
        on_epoch(epoch, optimizer.state_dict())
    return head.eval()


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
    epoch that is there, to the same result. Images that cannot be labelled are reported on stderr
    and left out. Raises ``ValueError`` for wrong arguments, an ``out`` that holds another training,
    and when no image is left, and whatever the backbone raises when it cannot be loaded.
    """
    _check(epochs, max_images, lr, weight_decay, seed, cache_limit, feature_dtype)
    rank, world = _distributed.world()
    folder = Path(out).absolute()
    run = _Run(folder, rank == 0, resume)
    device = labeler.torch_device
    store = None
    if use_cache:
        kept = folder / "cache" if cache is None else Path(cache).absolute()
        store = TensorCache(kept, cache_limit, world)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    paths = [images[index].path for index in sorted(chosen[:max_images].tolist())]
    try:
        with _distributed.process_group(device):
            source = _Source(paths, labeler, store, feature_dtype)
            failed = source.prepare(progress and rank == 0)
            if not len(source):
                raise ValueError(
                    f"`images` must hold one that can be labelled: got {len(paths)}, of which none "
                    "can"
                )
            settings = {
                **labeler.settings,
                "lr": lr,
                "weight_decay": weight_decay,
                "seed": seed,
                "processes": world,
                "feature_dtype": feature_dtype,
                "images": key_of(features=source.keys),
            }
            run.begin(settings, [str(path) for path in source.paths], failed)
            head = _new_head(labeler.backbone.dim, seed)
            if run.checkpoint:
                head.load_state_dict(run.checkpoint["model_state"])
            # What travels with the head names no path of this machine.
            public = {k: v for k, v in settings.items() if k not in ("weights", "images")}
            info = HeadInfo(labeler.backbone_name, labeler.features, labeler.size, public)
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
            _distributed.gathered(None)  # nobody leaves before the head is there
    finally:
        run.close()
    return Summary(folder / "head", len(source), len(failed), len(run.seconds), run.median)


class _Source:
    """The features and labels of images; each is labelled once."""

    def __init__(
        self,
        paths: list[Path],
        labeler: PseudoLabeler,
        cache: TensorCache | None,
        dtype: str,
    ) -> None:
        self.paths = paths
        self.labeler = labeler
        self.cache = cache
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.keys: list[str] = []  # of the features
        self.labels: list[Tensor] = []  # (N,) bool
        settings = labeler.settings
        of_labels = {"orient", *labeler.options}
        self._of_features = {k: v for k, v in settings.items() if k not in of_labels}
        self._of_features |= {"version": __version__, "dtype": dtype}
        self._of_labels = {k: v for k, v in settings.items() if k in of_labels}
        self._lock = Lock()  # backbones run in one thread at a time

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = None if self.cache is None else self.cache.get(self.keys[index])
        if features is None:
            pixels = self.labeler.preprocess(load_image(self.paths[index])[0])
            with self._lock:
                features = self._extract(pixels[None])[0]
            if self.cache is not None:
                self.cache.put(self.keys[index], features)
        return features, self.labels[index]

    def prepare(self, progress: bool) -> list[str]:
        """Labels all images; those that fail are left out, and returned with the reason."""
        rank, world = _distributed.world()
        own = range(rank, len(self.paths), world)
        self._done: dict[int, tuple[str, Tensor | None]] = {}  # without labels: an error
        backbone = self.labeler.backbone  # loaded here: its errors are not those of an image
        hidden = not progress
        if progress and self.cache is not None:
            h, w = backbone.grid(self.labeler.size)
            size = h * w * backbone.dim * self.dtype.itemsize / 2**20
            print(
                f"cache: {size:.1f} MiB for each of {len(self.paths)} images, in "
                f"{self.cache.folder}",
                file=sys.stderr,
            )
        with (
            ThreadPoolExecutor(min(8, max(2, torch.get_num_threads()))) as pool,
            tqdm(total=len(own), unit="image", disable=hidden, file=sys.stderr) as bar,
        ):
            batch: list[tuple[int, str, Tensor]] = []
            for index, future in _ahead(pool, self._read, own, 2 * self.labeler.batch_size):
                try:
                    key, pixels, labels = future.result()
                    if labels is None and pixels is None:
                        labels = self._labels(key)
                except Exception as error:
                    self._fail(index, error)
                else:
                    if labels is not None:
                        self._done[index] = key, labels
                    else:
                        batch.append((index, key, pixels))
                if len(batch) == self.labeler.batch_size:
                    self._label(batch)
                    batch = []
                bar.update()
            self._label(batch)
        found = {k: v for part in _distributed.gathered(self._done) for k, v in part.items()}
        failed = [found[index][0] for index in sorted(found) if found[index][1] is None]
        kept = [index for index in sorted(found) if found[index][1] is not None]
        self.paths = [self.paths[index] for index in kept]
        self.keys = [found[index][0] for index in kept]
        self.labels = [labels for index in kept if (labels := found[index][1]) is not None]
        return failed

    def _read(self, index: int) -> tuple[str, Tensor | None, Tensor | None]:
        """The features' key; the labels where they are cached, the pixels where nothing is."""
        path = self.paths[index]
        key = key_of(content=content_of(path), **self._of_features)
        if self.cache is not None:
            labels = self.cache.get(self._key_of_labels(key))
            if labels is not None or self.cache.get(key) is not None:
                return key, None, labels
        return key, self.labeler.preprocess(load_image(path)[0]), None

    def _key_of_labels(self, key: str) -> str:
        return key_of(features=key, **self._of_labels)

    def _labels(self, key: str) -> Tensor:
        """The labels of cached features."""
        assert self.cache is not None
        features = self.cache.get(key)
        assert features is not None
        labels: Tensor = self.labeler.label_features(features[None]).mask.flatten()
        self.cache.put(self._key_of_labels(key), labels)
        return labels

    def _extract(self, pixels: Tensor) -> Tensor:
        # Rounded as they are stored, so that labels and head do not depend on the cache.
        features: Tensor = self.labeler.backbone(pixels)
        return features.to(self.dtype)

    def _label(self, batch: list[tuple[int, str, Tensor]]) -> None:
        if not batch:
            return
        try:
            features = self._extract(torch.stack([pixels for _, _, pixels in batch]))
            masks = self.labeler.label_features(features).mask.flatten(1)
        except Exception as error:
            # The other images of the batch must not pay for one: each again, by itself.
            if len(batch) == 1:
                self._fail(batch[0][0], error)
            else:
                for one in batch:
                    self._label([one])
            return
        for (index, key, _), rows, labels in zip(batch, features, masks, strict=True):
            if self.cache is not None:
                self.cache.put(key, rows)
                self.cache.put(self._key_of_labels(key), labels)
            self._done[index] = key, labels

    def _fail(self, index: int, error: Exception) -> None:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        path = str(self.paths[index])
        sentence = text if path in text else f"cannot label {path}: {text}"
        self._done[index] = sentence, None
        tqdm.write(sentence, file=sys.stderr)


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
        epochs = sorted(folder.glob("epoch-*.pt"), key=lambda file: _epoch(file.name))
        if epochs and not resume:
            raise ValueError(
                f"`out` must hold no training unless it is resumed: {folder} has {epochs[-1].name}"
            )
        if epochs:
            self.checkpoint = read_checkpoint(os.fspath(epochs[-1]))
            self.finished = _epoch(epochs[-1].name)
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

    @property
    def median(self) -> float:
        """Seconds for a step."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    def begin(self, settings: dict[str, Any], images: list[str], failed: list[str]) -> None:
        """Checks that a resumed run is the same, and writes what there is to say of it."""
        self._settings = settings
        before = self.checkpoint.get("settings", settings)
        for name in settings:
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"`resume` must have the settings of the training it goes on with: {name} was "
                    f"{before.get(name)!r}, is {settings[name]!r}"
                )
        self._last = time.perf_counter()
        self._paths = images
        if not self._writes:
            return
        about = {"settings": settings, "versions": _native.info(), "failed": failed}
        text = json.dumps({**about, "images": images}, indent=2) + "\n"
        write_atomically(self.folder / "settings.json", lambda file: file.write(text.encode()))
        # A run that was killed wrote steps of an epoch that it did not finish.
        file = self.folder / "steps.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if 0 < _parsed(line).get("epoch", 0) <= self.finished]
        write_atomically(file, lambda steps: steps.write("".join(kept).encode()))
        self._steps = file.open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter  # imports tensorboard, slowly

        purge = _parsed(kept[-1])["step"] + 1 if kept else 0
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge)

    def log(self, step: Step, bar: tqdm[Any]) -> None:
        """Writes one step."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        bar.update()
        if self._steps is None:
            return
        row = {**asdict(step), "image": self._paths[step.index], "seconds": self.seconds[-1]}
        self._steps.write(json.dumps(row) + "\n")
        self._steps.flush()
        for name in _LOSSES:
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
            "info": asdict(info),
        }
        write_atomically(
            self.folder / f"epoch-{epoch:03}.pt", lambda file: torch.save(content, file)
        )

    def close(self) -> None:
        """Releases the files."""
        if self._board is not None:
            self._board.close()
        if self._steps is not None:
            self._steps.close()
        if self._writes:
            self._held.close()


def _new_head(dim: int, seed: int) -> PatchHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchHead(dim)


def _prefetched(samples: Samples, order: Iterable[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    with ThreadPoolExecutor(2) as pool:
        for index, future in _ahead(pool, samples.__getitem__, order, _AHEAD):
            yield index, *future.result()


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], Any], order: Iterable[int], most: int
) -> Iterator[tuple[int, Future[Any]]]:
    """Runs ``work`` in the pool, in order, for at most ``most`` indices at a time."""
    running: deque[tuple[int, Future[Any]]] = deque()
    try:
        for index in order:
            running.append((index, pool.submit(work, index)))
            if len(running) > most:
                yield running.popleft()
        while running:
            yield running.popleft()
    finally:
        for _, future in running:
            future.cancel()


def _values(loss: HeadLoss) -> dict[str, float]:
    values = torch.stack([getattr(loss, name).detach().float() for name in _LOSSES])
    return dict(zip(_LOSSES, _distributed.mean(values).tolist(), strict=True))


def _epoch(name: str) -> int:
    found = re.fullmatch(r"epoch-(\d+)\.pt", name)
    return int(found[1]) if found else 0


def _parsed(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # cut off
        return {}
    return row if isinstance(row, dict) else {}


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
        params.number(name, value, "an integer >= 1", isinstance(value, int) and value >= 1)
    params.number("lr", lr, "a number > 0", 0 < lr < float("inf"))
    params.number("weight_decay", weight_decay, "a number >= 0", 0 <= weight_decay < float("inf"))
    params.number("seed", seed, "an integer from 0 to 2^63 - 1", 0 <= seed < 2**63)
    if cache_limit is not None:
        params.number("cache_limit", cache_limit, "an integer >= 0", cache_limit >= 0)
    params.choice("feature_dtype", feature_dtype, DTYPES)
