"""PseudoLabeler: from images to pseudo-labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..backbones import EMBEDDED, Backbone, is_factory
from ..backbones.custom import Model
from ..core import native as _native
from ..core.arrays import Grid, check_data, check_dense
from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..core.torch_state import as_documented
from ..images.load import ImageLike, load_image
from ..methods import Inputs, Method, MultiObject, SelfMask, Votes, as_method
from .image_model import ImageModel
from .pictured import with_image
from .transfers import download, upload

Labels = PseudoLabels | list[Objects]  #: of a batch: one object, or one for each image

_FIELDS = tuple(field.name for field in fields(PseudoLabels))


class PseudoLabeler(ImageModel):
    """Labels images: resize to ``size`` x ``size``, backbone, and a method of selfment.methods.

    The backbone is loaded at the first use, and left out when the labeler is pickled, so that a
    labeler can be sent to workers. Threads are torch's (``torch.set_num_threads``). Results lie on
    the patch grid of the resized image and on the CPU.
    """

    default_size = 768

    def __init__(
        self,
        backbone: str | Backbone | Model | None = None,
        size: int | None = None,
        *,
        method: Method | str = "selfment",
        features: str = "tokens",
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        positions: str = "authors",
        keep_aspect: bool = False,
        batch_size: int = 8,
    ) -> None:
        """Checks the arguments; nothing is loaded yet.

        Args:
            backbone: a name, see :func:`selfment.backbones.load_backbone`; one's own, see
                :func:`selfment.backbones.as_backbone`; or None for the method's default without
                weights, "classic", or "statistics" for several objects.
            size: the side to which images are resized, in pixels; a multiple of the patch size.
                None takes the multiple that is nearest to 768.
            method: how to label, such as ``Selfment(CutOptions(tau=0.3))`` or ``MultiObject(5)``;
                a string of :data:`selfment.methods.METHODS` stands for the defaults.
            features: see :func:`selfment.backbones.load_backbone`.
            weights: see there.
            device: where the backbone runs; None takes CUDA if there is one at the first use.
            dtype: see :func:`selfment.backbones.load_backbone`.
            positions: see there.
            keep_aspect: make the longer side ``size``, and the shorter the multiple of the patch
                size that is nearest to the image's aspect ratio. There is no padding, and images of
                other aspect ratios have other patch grids.
            batch_size: images per pass.

        Raises:
            ValueError: a wrong argument, or a backbone that lacks what the method needs.
            ImportError: a library that the method needs is missing.
        """
        chosen = as_method(method)
        backbone = chosen.default_backbone if backbone is None else backbone
        super().__init__(backbone, size, features, weights, device, dtype, batch_size, positions)
        self.method = chosen.fitted(self.described, self.backbone_name)
        voters = chosen.weights if isinstance(chosen, SelfMask) else {}
        self._voters = [
            ImageModel(
                name,
                self.size,
                "tokens",
                file,
                device,
                None,
                batch_size,
                "authors" if name in EMBEDDED or is_factory(name) else positions,
            )
            for name, file in voters.items()
        ]
        if self._voters and keep_aspect:
            raise ValueError(
                "`keep_aspect` must be left alone with `voters`, whose patches may have other "
                "sizes: got True"
            )
        self.keep_aspect = keep_aspect

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at the first use.

        Raises ``ValueError``, also if it lacks what the method needs, or
        :class:`selfment.backbones.WeightsError`.
        """
        backbone = super().backbone
        self.method.fitted(backbone, self.backbone_name)
        for voter in self._voters:
            _ = voter.backbone
        return backbone

    @property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on besides the image, ready for JSON."""
        voters = {"voters": [voter.settings for voter in self._voters]} if self._voters else {}
        return {
            **super().settings,
            "keep_aspect": self.keep_aspect,
            "method": {**self.method.settings, **voters},
        }

    def __call__(self, images: ImageLike | Sequence[ImageLike] | Mapping[str, Any]) -> Any:
        """Labels one image, a list of images, or a batch as Ray Data passes it.

        One image (PIL, path, content of a file, uint8 array): :class:`PseudoLabels` of torch
        tensors without a batch axis that can be shown and saved, see
        :class:`selfment.models.pictured.ImageLabels`. A list: :class:`PseudoLabels` with a batch
        axis. A mapping with the column ``image`` (uint8 images of any sizes, contents of files, or
        mappings with "bytes" and "path") or ``path``: its columns, and one numpy array for each
        field of :class:`PseudoLabels`. One row, with one image or path in place of a column: the
        same, without the batch axis.

        With the method ``MultiObject(K)`` the results are :class:`selfment.Objects`, for one image
        :class:`selfment.models.pictured.ImageObjects`; a list of them; or the columns ``count``
        (B,), ``instances`` (B, h, w), ``boxes`` (B, K, 4), ``seeds`` (B, K), ``eigenvalues``
        (B, K) and ``separations`` (B, K), filled up with 0, -1 and NaN if an image has fewer
        objects.

        With ``keep_aspect`` images may have different grids: a list of images gives a list, and of
        mappings only rows are labelled.

        Raises :class:`selfment.images.ImageError` and ``ValueError``.
        """
        if isinstance(images, Mapping):
            return self._with_columns(images)
        if isinstance(images, Sequence) and not isinstance(images, str | bytes):
            labels = self._label(images)
            return labels if self.keep_aspect else _batched(labels)
        return with_image(self._label([images])[0], images)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Returns an RGB image as (3, H, W) float32, for :meth:`label_batch`.

        H and W are :attr:`size`, unless the labeler keeps the aspect ratio.
        """
        if self.keep_aspect:
            return self.backbone.preprocess_fitted(image, self.size)
        return self.backbone.preprocess(image, self.size)

    def grid(self, size: tuple[int, int]) -> Grid:
        """Returns the patch grid (h, w) of an upright image of ``size`` (width, height)."""
        if not self.keep_aspect:
            return self.backbone.grid(self.size)
        return self.backbone.grid(*self.backbone.fitted_size(size, self.size))

    def label_batch(self, batch: Tensor) -> Labels:
        """Labels a (B, 3, H, W) batch of preprocessed images in one pass.

        Raises ``ValueError`` for features that are not finite.
        """
        return self.start_batch(batch)()

    def start_batch(self, batch: Tensor) -> Callable[[], Labels]:
        """Begins :meth:`label_batch`; returns the function that waits for the labels.

        On a CUDA device everything is queued, so that another batch can be begun meanwhile, unless
        the method itself looks at values on the way. On the CPU everything is done here.
        """
        check_dense(batch, "batch")
        check_data(batch, "batch")
        backbone = self.backbone
        grid = backbone.grid(*batch.shape[-2:])
        with as_documented(self.torch_device):
            batch = upload(batch, self.torch_device)
            if self._voters:
                return self._start_features(Votes(backbone(batch), self._votes(batch)), grid)
            needs_more = self.method.needs is not None
            features = backbone.attend(batch) if needs_more else backbone(batch)
            return self._start_features(features, grid)

    def label_features(self, features: Inputs, grid: Grid | None = None) -> Labels:
        """Labels the backbone's (B, N, d) features of images of one size.

        They are labelled where they lie, if there are kernels for that device. ``grid``: (h, w)
        with h * w == N; None for that of square images. Raises ``ValueError`` for features that are
        not finite, and for patch features alone where the method needs more.
        """
        return self._start_features(features, grid)()

    def _start_features(self, features: Inputs, grid: Grid | None) -> Callable[[], Labels]:
        rows = self.method.rows(features)
        check_dense(rows, "features")
        check_data(rows, "features")
        grid = self.backbone.grid(self.size) if grid is None else grid
        labels = self.method.label(where_kernels_are(features), grid)
        if isinstance(labels, list):
            objects = [_on_cpu(one) for one in labels]
            return lambda: objects
        copied = download([getattr(labels, name) for name in _FIELDS])

        def wait() -> Labels:
            labels = PseudoLabels(**dict(zip(_FIELDS, copied(), strict=True)))
            bad = labels.eigenvalue.isnan()
            # On a CUDA device the method did not wait, and so could not raise.
            if bad.any() and self.method.has_vector:
                image = int(bad.int().argmax())
                raise ValueError(
                    "`features` must be finite, and so must their norms: got NaN, infinity or an "
                    f"overflow in image {image}"
                )
            return labels

        return wait

    def _more(self) -> str:
        return f"method={self.method!r}, "

    def _votes(self, batch: Tensor) -> list[tuple[Tensor, Grid]]:
        """Returns the features of a batch by the other backbones, each in its own colours."""
        votes = []
        for voter in self._voters:
            other = voter.backbone
            (mean, std), (own_mean, own_std) = (
                (batch.new_tensor(stat)[:, None, None] for stat in (model.mean, model.std))
                for model in (self.backbone, other)
            )
            features = other((batch * std + mean - own_mean) / own_std)
            votes.append((features, other.grid(self.size)))
        return votes

    def _with_columns(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the columns of a batch, or the values of a row, and those of its labels."""
        column = next((name for name in ("image", "path") if name in batch), None)
        if column is None:
            raise ValueError(
                "a batch must have the column 'image' or 'path': "
                f"got {', '.join(map(repr, batch)) or 'no column'}"
            )
        alone = _is_image(batch[column])
        if self.keep_aspect and not alone:
            raise ValueError(
                "`keep_aspect` must be False for batches, in which masks have one shape: got True; "
                "pass rows"
            )
        labels = _batched(
            self._label(
                [_from_column(value) for value in ([batch[column]] if alone else batch[column])]
            )
        )
        if isinstance(labels, PseudoLabels):
            columns = {name: getattr(labels, name).numpy() for name in _FIELDS}
        else:
            assert isinstance(self.method, MultiObject)
            columns = _object_columns(labels, self.method.max_objects)
        if alone:
            columns = {name: column[0] for name, column in columns.items()}
        return {**batch, **columns}

    def _label(self, images: Sequence[ImageLike]) -> list[PseudoLabels | Objects]:
        if not images:
            raise ValueError("`images` must not be empty: got none")
        labels: dict[int, PseudoLabels | Objects] = {}
        for indices, batch in self._batches(images):
            labels |= zip(indices, one_by_one(self.label_batch(batch)), strict=True)
        return [labels[index] for index in range(len(images))]

    def _batches(self, images: Sequence[ImageLike]) -> Iterator[tuple[list[int], Tensor]]:
        """Yields batches of images of one shape, with their indices."""
        for start in range(0, len(images), self.batch_size):
            shapes: dict[torch.Size, list[tuple[int, Tensor]]] = {}
            for index in range(start, min(start + self.batch_size, len(images))):
                pixels = self.preprocess(load_image(images[index])[0])
                shapes.setdefault(pixels.shape, []).append((index, pixels))
            for alike in shapes.values():
                yield [index for index, _ in alike], torch.stack([pixels for _, pixels in alike])


def _batched(labels: Sequence[PseudoLabels | Objects]) -> Labels:
    """Returns labels of images of one grid with a batch axis; objects as they are."""
    single = [one for one in labels if isinstance(one, PseudoLabels)]
    if not single:
        return [one for one in labels if isinstance(one, Objects)]
    return PseudoLabels(
        **{name: torch.stack([getattr(one, name) for one in single]) for name in _FIELDS}
    )


def one_by_one(labels: Labels) -> Sequence[PseudoLabels | Objects]:
    """Returns the labels of each image of a batch, without a batch axis."""
    if isinstance(labels, list):
        return labels
    return [
        PseudoLabels(**{name: getattr(labels, name)[image] for name in _FIELDS})
        for image in range(len(labels.mask))
    ]


def _on_cpu(objects: Objects) -> Objects:
    return Objects(*(value.cpu() for value in vars(objects).values()))


def where_kernels_are(features: Inputs) -> Inputs:
    """Returns the features on a device whose kernels can be loaded."""
    return features.cpu() if not features.is_cuda or _native.cuda_obstacles() else features


def _from_column(value: Any) -> ImageLike:
    """Returns an entry of a column as an image: text as a path, nested lists as an array.

    Tables have the bytes of a file, or a mapping with "bytes" and "path".
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        data = value.get("bytes")
        return value["path"] if data is None else bytes(data)
    if isinstance(value, str | os.PathLike | bytes | Image.Image | np.ndarray):
        return value
    return np.asarray(value)


def _is_image(value: Any) -> bool:
    """Returns True if a row's value is one image or path, and not a column of them."""
    if isinstance(value, np.ndarray):
        # A column of grey images 3 or 4 pixels wide looks the same, but is not to be expected.
        return value.dtype != object and (
            value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))
        )
    return isinstance(value, str | os.PathLike | bytes | Image.Image | Mapping)


def _object_columns(images: Sequence[Objects], most: int) -> dict[str, npt.NDArray[Any]]:
    """Returns columns of fixed shapes, one row per image, of up to ``most`` objects each."""
    count = len(images)
    columns: dict[str, npt.NDArray[Any]] = {
        "count": np.array([len(objects.masks) for objects in images], dtype=np.int64),
        "instances": np.stack([objects.instances.numpy() for objects in images]),
        "boxes": np.zeros((count, most, 4), dtype=np.int64),
        "seeds": np.full((count, most), -1, dtype=np.int64),
        "eigenvalues": np.full((count, most), np.nan),
        "separations": np.full((count, most), np.nan),
    }
    for name in ("boxes", "seeds", "eigenvalues", "separations"):
        for row, objects in zip(columns[name], images, strict=True):
            row[: len(objects.masks)] = getattr(objects, name).numpy()
    return columns
