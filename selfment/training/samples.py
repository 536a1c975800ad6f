"""The images that a head is trained on, with their features and labels."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import __version__
from ..backbones import EMBEDDED
from ..core.label import PseudoLabels
from ..core.torch_state import as_documented
from ..images.load import ImageEntry, ImageError, load_image
from ..methods import MultiObject
from ..models.labeler import PseudoLabeler
from ..util import distributed as _distributed
from ..util.files import printable, reason, sha256_of
from .cache import TensorCache, key_of


class LabelledImages:
    """The features and labels of images; each image is labelled once."""

    def __init__(
        self,
        images: Sequence[ImageEntry],
        labeler: PseudoLabeler,
        cache: TensorCache | None,
        dtype: str,
    ) -> None:
        if needs := labeler.method.needs:
            raise ValueError(f"{needs}: got patch features alone, which training keeps")
        if isinstance(labeler.method, MultiObject):
            raise ValueError(
                f"`method` must make one mask of each image for training: got {labeler.method}"
            )
        self.paths = [entry.path for entry in images]
        self.names = [entry.name for entry in images]
        self.labeler = labeler
        self.cache = cache
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.keys: list[str] = []  # of the features
        self.labels: list[Tensor] = []  # (N,) bool
        settings = labeler.settings
        self._of_labels = {"method": settings.pop("method")}
        self._of_features = {**settings, "version": __version__, "dtype": dtype}
        if labeler.backbone_name not in EMBEDDED:
            # The version of timm decides which weights a name stands for, and what they compute.
            self._of_features["timm"] = metadata.version("timm")
        self._lock = Lock()  # backbones run in one thread at a time

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def empty(self) -> int:
        """The number of images whose labels have no foreground."""
        return sum(not bool(labels.any()) for labels in self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = None if self.cache is None else self.cache.get(self.keys[index])
        if features is None:
            key, pixels = self._load(index)
            if key != self.keys[index]:
                raise ImageError(f"{self.paths[index]} has changed since it was labelled")
            with self._lock:
                features = self._extract(pixels[None])[0]
            if self.cache is not None:
                self.cache.put(key, features)
        # The copy reads the memory-mapped file here, in a thread, and not in the training step.
        return features.clone(), self.labels[index]

    def prepare(self, progress: bool) -> list[str]:
        """Labels all images; those that fail are left out. Returns a sentence for each of these."""
        rank, world = _distributed.world()
        own = range(rank, len(self.paths), world)
        self._done: dict[int, tuple[str, Tensor | None]] = {}  # key and labels, or error and None
        backbone = self.labeler.backbone  # loaded here, so that its errors end the run
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
            for index, future in ahead(pool, self._read, own, 2 * self.labeler.batch_size):
                try:
                    key, pixels, labels = future.result()
                    if labels is None and pixels is None:
                        labels = self._labels(key)
                        if labels is None:  # the features were removed meanwhile
                            key, pixels = self._load(index)
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
        done = {k: v for part in _distributed.gathered(self._done) for k, v in part.items()}
        failed = [done[index][0] for index in sorted(done) if done[index][1] is None]
        kept = [index for index in sorted(done) if done[index][1] is not None]
        self.paths = [self.paths[index] for index in kept]
        self.names = [self.names[index] for index in kept]
        self.keys = [done[index][0] for index in kept]
        self.labels = [labels for index in kept if (labels := done[index][1]) is not None]
        return failed

    def _read(self, index: int) -> tuple[str, Tensor | None, Tensor | None]:
        """The key of the features, the pixels, and the labels.

        The pixels are None if features or labels are cached, the labels if they are not.
        """
        if self.cache is not None:
            key = self._key(self.paths[index])
            labels = self.cache.get(self._key_of_labels(key))
            if labels is not None:
                # Copied, because the number of memory maps of a process is limited.
                return key, None, labels.clone()
            if self.cache.get(key) is not None:
                return key, None, None
        return *self._load(index), None

    def _load(self, index: int) -> tuple[str, Tensor]:
        """The key of the features and the pixels, of the same content of the file."""
        path = self.paths[index]
        key = self._key(path)
        pixels = self.labeler.preprocess(load_image(path)[0])
        if self._key(path) != key:
            raise ImageError(f"cannot read {path}: it changed meanwhile")
        return key, pixels

    def _key(self, path: Path) -> str:
        return key_of(content=sha256_of(path), **self._of_features)

    def _key_of_labels(self, key: str) -> str:
        return key_of(features=key, **self._of_labels)

    def _labels(self, key: str) -> Tensor | None:
        """The labels of cached features; None if there are no features."""
        features = None if self.cache is None else self.cache.get(key)
        if features is None:
            return None
        labels = self._masks(features[None])[0]
        assert self.cache is not None
        self.cache.put(self._key_of_labels(key), labels)
        return labels

    def _masks(self, features: Tensor) -> Tensor:
        """The masks (B, N) bool of (B, N, d) features."""
        labels = self.labeler.label_features(features)
        assert isinstance(labels, PseudoLabels)
        masks: Tensor = labels.mask.flatten(1)
        return masks

    def _extract(self, pixels: Tensor) -> Tensor:
        # Rounded to the dtype of the cache, so that labels and head do not depend on the cache.
        with as_documented(self.labeler.torch_device):
            features: Tensor = self.labeler.backbone(pixels)
        return features.to(self.dtype)

    def _label(self, batch: list[tuple[int, str, Tensor]]) -> None:
        if not batch:
            return
        try:
            features = self._extract(torch.stack([pixels for _, _, pixels in batch]))
            masks = self._masks(features)
        except Exception as error:
            # One bad image must not fail the others of its batch: label each by itself.
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
            self._done[index] = key, labels.clone()  # a view would hold the whole batch

    def _fail(self, index: int, error: Exception) -> None:
        # The message of an ImageError is a sentence already.
        text = str(error) if isinstance(error, ImageError) else reason(error)
        path = str(self.paths[index])
        sentence = text if path in text else f"cannot label {path}: {text}"
        self._done[index] = sentence, None
        tqdm.write(printable(sentence), file=sys.stderr)


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
