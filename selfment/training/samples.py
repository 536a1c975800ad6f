"""The images that a head is trained on, with their features and labels."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..backbones import EMBEDDED
from ..core.arrays import Grid
from ..core.label import PseudoLabels
from ..core.torch_state import as_documented
from ..images.load import ImageError, load_image, size_of
from ..methods import MultiObject
from ..models.labeler import PseudoLabeler
from ..util import distributed as _distributed
from ..util.files import printable, reason, sha256_of
from ..util.words import count_of
from .cache import TensorCache, key_of
from .choice import Choice
from .masks import MaskFolder


@dataclass(frozen=True)
class Sample:
    """An image that is ready to be trained on."""

    key: str  #: of its features in the cache
    labels: Tensor  #: (N,) bool, or the share of each patch that is foreground, in [0, 1]
    is_rejected: bool
    mask: str | None = None  #: the digest of the mask that the labels come from
    notes: Sequence[str] = ()  #: how the mask was read, where that is unusual


@dataclass
class _Read:
    """An image that was read: its pixels and its sample, each None if it is not known yet."""

    key: str
    pixels: Tensor | None
    sample: Sample | None


class LabelledImages:
    """The features and labels of images; each image is labelled once."""

    def __init__(
        self,
        choice: Choice,
        labeler: PseudoLabeler,
        cache: TensorCache | None,
        dtype: str,
        folder: MaskFolder | None = None,
        drop_rejected: bool = False,
    ) -> None:
        """Prepares nothing yet.

        Args:
            choice: The images, and their masks if there is a ``folder``.
            labeler: Makes the features, and the labels if there is no ``folder``.
            cache: Stores features and the labeler's labels.
            dtype: Of the features.
            folder: The folder of the masks that are the labels.
            drop_rejected: Leave out images that the labeler rejected.

        Raises:
            ValueError: For a labeler of other labels than one mask from patch features.
        """
        if folder is None and (needs := labeler.method.needs):
            raise ValueError(f"{needs}: got patch features alone, which training keeps")
        if folder is None and isinstance(labeler.method, MultiObject):
            raise ValueError(
                f"`method` must make one mask of each image for training: got {labeler.method}"
            )
        self._entries = choice.images
        self._masks = choice.masks
        self.folder = folder
        self._drops_rejected = drop_rejected
        self.dropped = 0  #: images that were rejected and left out
        self.labeler = labeler
        self.cache = cache
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.samples: list[Sample] = []
        settings = labeler.settings
        self._of_labels = {"method": settings.pop("method")}
        #: all that features and labels depend on besides the images and their masks
        self.settings = settings if folder is not None else {**settings, **self._of_labels}
        self._of_features = {**settings, "version": __version__, "dtype": dtype}
        if labeler.backbone_name not in EMBEDDED:
            # The version of timm decides which weights a name stands for, and what they compute.
            self._of_features["timm"] = metadata.version("timm")
        self._lock = Lock()  # backbones run in one thread at a time

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def paths(self) -> list[Path]:
        """The file of each image."""
        return [entry.path for entry in self._entries]

    @property
    def names(self) -> list[str]:
        """The relative name of each image."""
        return [entry.name for entry in self._entries]

    @property
    def rejected(self) -> int:
        """The number of images that were rejected, and are all background."""
        return sum(sample.is_rejected for sample in self.samples)

    @property
    def empty(self) -> int:
        """The number of images that were not rejected, and have labels without any foreground."""
        return sum(not (sample.is_rejected or sample.labels.any()) for sample in self.samples)

    def notes(self, unlabelled: Sequence[str]) -> list[str]:
        """Lines on masks that a user would not expect; ``unlabelled``: images without a mask."""
        if self.folder is None:
            return []
        noted = [index for index, sample in enumerate(self.samples) if sample.notes]
        unusual = [f"{self.names[i]} ({'; '.join(self.samples[i].notes)})" for i in noted[:1]]
        kinds = {
            f"images without a mask in {self.folder.path}": unlabelled,
            "masks there without an image": self.folder.unused if unlabelled else [],
            "images whose mask is not plain black and white": unusual + [""] * len(noted[1:]),
            "images with the name of a labelled one, but other bytes, whose mask is used": [
                entry.name for entry in self._entries if self.folder.is_other(entry)
            ],
        }
        return [f"{kind}: {len(n):,}, as {n[0]}" for kind, n in kinds.items() if n]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.samples[index]
        features = None if self.cache is None else self.cache.get(sample.key)
        if features is None:
            key, pixels = self._load(index)
            if key != sample.key:
                raise ImageError(f"{self._entries[index].path} has changed since it was labelled")
            with self._lock:
                features = self._extract(pixels[None])[0]
            if self.cache is not None:
                self.cache.put(key, features)
        # The copy reads the memory-mapped file here, in a thread, and not in the training step.
        return features.clone(), sample.labels

    def prepare(self, progress: bool) -> list[str]:
        """Labels all images; those that fail are left out. Returns a sentence for each of these."""
        rank, world = _distributed.world()
        own = range(rank, len(self._entries), world)
        self._done: dict[int, Sample | str] = {}  # or what went wrong
        _ = self.labeler.backbone  # loaded here, so that its errors end the run
        if progress:
            self._report_size()
        with (
            ThreadPoolExecutor(min(8, max(2, torch.get_num_threads()))) as pool,
            tqdm(total=len(own), unit="image", disable=not progress, file=sys.stderr) as bar,
        ):
            batches: dict[torch.Size, list[tuple[int, _Read]]] = {}  # by the shape of the pixels
            for index, future in ahead(pool, self._read, own, 2 * self.labeler.batch_size):
                try:
                    read = future.result()
                    if read.pixels is None and read.sample is None:
                        read.sample = self._from_features(index, read.key)
                        if read.sample is None:  # the features were removed meanwhile
                            read.key, read.pixels = self._load(index)
                except Exception as error:
                    self._fail(index, error)
                else:
                    self._add(index, read, batches)
                bar.update()
            for batch in batches.values():
                self._label(batch)
        return self._collect()

    def _add(
        self, index: int, read: _Read, batches: dict[torch.Size, list[tuple[int, _Read]]]
    ) -> None:
        """Adds an image to the batch of its shape, if it is not done; labels a batch that is full.

        The fullest batch is labelled, too, where images of many shapes wait: they take memory.
        """
        if read.pixels is None:
            assert read.sample is not None
            self._done[index] = read.sample
            return
        batches.setdefault(read.pixels.shape, []).append((index, read))
        fullest = max(batches, key=lambda shape: len(batches[shape]))
        size = self.labeler.batch_size
        if len(batches[fullest]) == size or sum(map(len, batches.values())) == 2 * size:
            self._label(batches.pop(fullest))

    def _collect(self) -> list[str]:
        """Keeps what all processes have done; returns a sentence for each image that failed."""
        done = {k: v for part in _distributed.gathered(self._done) for k, v in part.items()}
        failed, kept = [], []
        self.dropped = 0
        for index in sorted(done):
            sample = done[index]
            if isinstance(sample, str):
                failed.append(sample)
            elif sample.is_rejected and self._drops_rejected:
                self.dropped += 1
            else:
                kept.append((self._entries[index], sample))
        self._entries = [entry for entry, _ in kept]
        self.samples = [sample for _, sample in kept]
        return failed

    def _report_size(self) -> None:
        if self.cache is not None:
            backbone = self.labeler.backbone
            h, w = backbone.grid(self.labeler.size)
            size = h * w * backbone.dim * self.dtype.itemsize / 2**20
            most = "up to " if self.labeler.keep_aspect else ""
            print(
                f"cache: {most}{size:.1f} MiB for each of "
                f"{count_of(len(self._entries), 'image')}, in "
                f"{self.cache.folder}",
                file=sys.stderr,
            )

    def _read(self, index: int) -> _Read:
        """Reads what is needed of an image.

        The pixels are None if features or labels are cached, the sample if the labels are not.
        """
        entry = self._entries[index]
        key = self._key(entry.path) if self.cache is not None else ""
        if self.folder is not None and self._masks is not None:
            size = size_of(entry.path)
            label = self.folder.read(entry, self._masks[index], size, self.labeler.grid(size))
            pixels = None
            if self.cache is None or self.cache.get(key) is None:
                key, pixels = self._load(index)
            about = label.is_rejected, label.digest, label.notes
            return _Read(key, pixels, Sample(key, label.target, *about))
        if self.cache is not None:
            labels = self.cache.get(self._key_of_labels(key))
            if labels is not None:
                return _Read(key, None, _sample(key, labels))
            if self.cache.get(key) is not None:
                return _Read(key, None, None)
        return _Read(*self._load(index), None)

    def _load(self, index: int) -> tuple[str, Tensor]:
        """The key of the features and the pixels, of the same content of the file."""
        path = self._entries[index].path
        key = self._key(path)
        pixels = self.labeler.preprocess(load_image(path)[0])
        if self._key(path) != key:
            raise ImageError(f"cannot read {path}: it changed meanwhile")
        return key, pixels

    def _key(self, path: Path) -> str:
        return key_of(content=sha256_of(path), **self._of_features)

    def _key_of_labels(self, key: str) -> str:
        return key_of(labels_of=key, **self._of_labels)

    def _from_features(self, index: int, key: str) -> Sample | None:
        """The sample of an image with cached features; None if there are no features."""
        features = None if self.cache is None else self.cache.get(key)
        if features is None:
            return None
        grid = self.labeler.grid(size_of(self._entries[index].path))
        return self._labelled(key, self._masks_of(features[None], grid)[0])

    def _labelled(self, key: str, labels: Tensor) -> Sample:
        """Stores the labels of an image in the cache, and returns its sample."""
        if self.cache is not None:
            self.cache.put(self._key_of_labels(key), labels)
        return _sample(key, labels)

    def _masks_of(self, features: Tensor, grid: Grid) -> Tensor:
        """The labels (B, N + 1) bool of (B, N, d) features: the mask, then if it was rejected."""
        labels = self.labeler.label_features(features, grid)
        assert isinstance(labels, PseudoLabels)
        return torch.cat([labels.mask.flatten(1), labels.rejected[:, None]], dim=1)

    def _extract(self, pixels: Tensor) -> Tensor:
        # Rounded to the dtype of the cache, so that labels and head do not depend on the cache.
        with as_documented(self.labeler.torch_device):
            features: Tensor = self.labeler.backbone(pixels)
        return features.to(self.dtype)

    def _label(self, batch: list[tuple[int, _Read]]) -> None:
        """Labels images of one shape."""
        pixels = torch.stack([read.pixels for _, read in batch if read.pixels is not None])
        grid = self.labeler.backbone.grid(*pixels.shape[-2:])
        try:
            features = self._extract(pixels)
            masks = self._masks_of(features, grid) if self.folder is None else [None] * len(batch)
        except Exception as error:
            # One bad image must not fail the others of its batch: label each by itself.
            if len(batch) == 1:
                self._fail(batch[0][0], error)
            else:
                for one in batch:
                    self._label([one])
            return
        for (index, read), rows, mask in zip(batch, features, masks, strict=True):
            if self.cache is not None:
                self.cache.put(read.key, rows)
            sample = read.sample if mask is None else self._labelled(read.key, mask)
            assert sample is not None
            self._done[index] = sample

    def _fail(self, index: int, error: Exception) -> None:
        # The message of an ImageError is a sentence already.
        text = str(error) if isinstance(error, ImageError) else reason(error)
        path = str(self._entries[index].path)
        sentence = text if path in text else f"cannot label {path}: {text}"
        self._done[index] = sentence
        tqdm.write(printable(sentence), file=sys.stderr)


def _sample(key: str, labels: Tensor) -> Sample:
    """The sample of an image from its labels (N + 1,) in the cache, or from a batch of them."""
    # Copied: the number of memory maps of a process is limited, and a view would hold the batch.
    return Sample(key, labels[:-1].clone(), bool(labels[-1]))


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], Any], order: Iterable[int], most: int
) -> Iterator[tuple[int, Future[Any]]]:
    """Runs ``work`` in the pool on each index, in order; at most ``most`` results wait."""
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
