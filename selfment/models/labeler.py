"""PseudoLabeler: from images to pseudo-labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .. import methods
from ..backbones import EMBEDDED, Attended, Backbone, backbone_class
from ..core import native as _native
from ..core import options as params
from ..core.arrays import Grid, check_data, check_dense
from ..core.label import PseudoLabels
from ..core.objects import Objects, multi_label
from ..core.torch_state import as_documented
from ..images.load import ImageLike, load_image
from .image_model import ImageModel

_FIELDS = tuple(field.name for field in fields(PseudoLabels))
_OF_OBJECTS = ("tau", "eps", "graph", "ipo_iters", "ipo_min_count")  # options


class PseudoLabeler(ImageModel):
    """Labels images: resize to ``size`` x ``size``, backbone, graph, cut, initial mask, IPO.

    Or by another method, see :mod:`selfment.methods`.

    The backbone is loaded at the first use, and left out when the labeler is pickled, so that a
    labeler can be sent to workers. Threads are torch's (``torch.set_num_threads``). Results lie on
    the patch grid of the resized image and on the CPU.
    """

    def __init__(
        self,
        backbone: str | None = None,
        size: int = 768,
        *,
        features: str = "tokens",
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        positions: str = "authors",
        tau: float | str = params.TAU,
        eps: float = params.EPS,
        graph: str = "binary",
        orient: str | None = None,
        ipo_iters: int = params.IPO_ITERS,
        ipo_min_count: int = params.IPO_MIN_COUNT,
        min_confidence: float = 0.0,
        objects: int | None = None,
        batch_size: int = 8,
        method: str = "selfment",
        init: str = "ncut",
        backbones: Sequence[str] | Mapping[str, str | os.PathLike[str] | None] = (),
    ) -> None:
        """``backbone`` to ``positions`` as in :func:`selfment.backbones.load_backbone`, the rest as
        in :func:`selfment.pseudo_label`.

        ``backbone`` None: ``"classic"``, and with ``objects`` ``"statistics"``, which tells more of
        them apart. ``size`` in pixels, a multiple of the patch size. ``device`` None: CUDA if there
        is one where the labeler is used. ``orient`` None: the backbone's own. ``objects``: label up
        to so many objects of each image by :func:`selfment.multi_label`, whose ``orient`` is
        "corners" where None is given; None: one mask. ``batch_size``: images per pass. ``method``,
        and ``init``, the split that ``"selfment"`` starts from: as in :mod:`selfment.methods`;
        other methods take none of ``tau`` to ``init``, and ``objects`` goes with neither, nor with
        ``min_confidence``. ``backbones``: more of them whose tokens vote with the method
        ``"selfmask"``, all at ``size``; a mapping says their ``weights``. Raises ``ValueError``.
        """
        if backbone is None:
            backbone = "classic" if objects is None else "statistics"
        given = {"tau": tau, "eps": eps, "graph": graph, "orient": orient}
        given |= {"ipo_iters": ipo_iters, "ipo_min_count": ipo_min_count}
        given |= {"min_confidence": min_confidence}
        if backbones and method != "selfmask":
            raise ValueError(
                f"`backbones` must be left alone unless `method` is 'selfmask': got {method!r}"
            )
        if isinstance(backbones, str):
            raise ValueError(f"`backbones` must be a list or a mapping of names: got {backbones!r}")
        files = backbones if isinstance(backbones, Mapping) else dict.fromkeys(backbones)
        self._voters = [
            ImageModel(name, size, "tokens", file, device, None, batch_size, whose)
            for name, file in files.items()
            for whose in ["authors" if name in EMBEDDED else positions]
        ]
        params.CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
        if not isinstance(tau, str):
            params.require("tau", tau, "at most 1, the largest similarity of patches", tau <= 1)
        params.IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
        params.check_min_confidence(min_confidence)
        methods.check(method, init, given)
        methods.check_backbone(method, init, backbone_class(backbone), backbone)
        if orient is not None:
            params.choice("orient", orient, params.ORIENTS)
        super().__init__(backbone, size, features, weights, device, dtype, batch_size, positions)
        if objects is not None:
            whole = isinstance(objects, Integral) and not isinstance(objects, bool)
            params.require("objects", objects, "an integer >= 1", whole and objects >= 1)
            others = {"method": method, "init": init, "min_confidence": min_confidence}
            for name, default in zip(others, ("selfment", "ncut", 0), strict=True):
                if others[name] != default:
                    raise ValueError(
                        f"`{name}` must be left alone with `objects`: got {others[name]!r}"
                    )
        self.objects = None if objects is None else int(objects)
        self.orient = orient or ("corners" if objects else backbone_class(backbone).orient)
        self.options: dict[str, Any] = {
            "tau": tau if isinstance(tau, str) else float(tau),
            "eps": float(eps),
            "graph": graph,
            "ipo_iters": int(ipo_iters),
            "ipo_min_count": int(ipo_min_count),
            "method": method,
            "init": init,
            "min_confidence": float(min_confidence),
        }

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at the first use.

        Raises ``ValueError``, also where the method needs more than it gives, or
        :class:`selfment.backbones.WeightsError`.
        """
        backbone = super().backbone
        methods.check_backbone(
            self.options["method"], self.options["init"], backbone, self.backbone_name
        )
        for voter in self._voters:
            _ = voter.backbone
        return backbone

    @property
    def needs(self) -> str | None:
        """What the method needs besides patch features, as an error says it."""
        if self._voters:
            return "`backbones` need the images"
        return methods.needs(self.options["method"], self.options["init"])

    @property
    def settings(self) -> dict[str, Any]:
        """All that the labels depend on besides the image, ready for JSON."""
        objects = {} if self.objects is None else {"objects": self.objects}
        voters = {"backbones": [voter.settings for voter in self._voters]} if self._voters else {}
        return {**super().settings, "orient": self.orient, **objects, **self.options, **voters}

    def __call__(self, images: ImageLike | Sequence[ImageLike] | Mapping[str, Any]) -> Any:
        """Labels of one image, of a list of images, or of a batch as Ray Data passes it.

        One image (PIL, path, uint8 array): :class:`PseudoLabels` of torch tensors without a batch
        axis. A list: with it. A mapping with the column ``image`` (uint8 images, of any sizes) or
        ``path``: the same columns and one numpy array for each field of :class:`PseudoLabels`. One
        row, with one image or path in place of a column: the same, without the batch axis.

        With ``objects`` = K these are :class:`selfment.Objects`, a list of them, and the columns
        ``count`` (B,), ``instances`` (B, h, w), ``boxes`` (B, K, 4), ``seeds`` (B, K),
        ``eigenvalues`` (B, K) and ``separations`` (B, K), filled up with 0, -1 and NaN where an
        image has fewer objects.
        Raises :class:`selfment.images.ImageError` and ``ValueError``.
        """
        if isinstance(images, Mapping):
            column = next((name for name in ("image", "path") if name in images), None)
            if column is None:
                raise ValueError(
                    "a batch must have the column 'image' or 'path': "
                    f"got {', '.join(map(repr, images)) or 'no column'}"
                )
            alone = _is_image(images[column])
            rows = [images[column]] if alone else images[column]
            values = [_from_column(value) for value in rows]
            if self.objects is not None:
                found = _object_columns(self._find(values), self.objects)
            else:
                labels = self._label(values)
                found = {name: getattr(labels, name).numpy() for name in _FIELDS}
            if alone:
                found = {name: column[0] for name, column in found.items()}
            return {**images, **found}
        if isinstance(images, Sequence) and not isinstance(images, str):
            return self._label(images) if self.objects is None else self._find(images)
        if self.objects is not None:
            return self._find([images])[0]
        labels = self._label([images])
        return PseudoLabels(**{name: getattr(labels, name)[0] for name in _FIELDS})

    def preprocess(self, image: Image.Image) -> Tensor:
        """(3, size, size) float32 of an RGB image, as :meth:`label_batch` takes it."""
        return self.backbone.preprocess(image, self.size)

    def label_batch(self, batch: Tensor) -> PseudoLabels:
        """Labels of a (B, 3, size, size) batch of preprocessed images, in one pass.

        Raises ``ValueError`` for features that are not finite.
        """
        check_dense(batch, "batch")
        check_data(batch, "batch")
        backbone = self.backbone
        with as_documented(self.torch_device):
            if self._voters:
                return self.label_features(backbone(batch), self._votes(batch))
            return self.label_features(backbone.attend(batch) if self.needs else backbone(batch))

    def objects_batch(self, batch: Tensor) -> list[Objects]:
        """The objects of each image of a (B, 3, size, size) batch, on the CPU.

        Raises ``ValueError`` without ``objects``, or for features that are not finite.
        """
        if self.objects is None:
            raise ValueError("`objects` must be given to find objects: got None")
        check_dense(batch, "batch")
        check_data(batch, "batch")
        backbone = self.backbone
        with as_documented(self.torch_device):
            features = _where_kernels_are(backbone(batch))
        found = multi_label(
            features,
            backbone.grid(self.size),
            max_objects=self.objects,
            orient=self.orient,
            **{name: self.options[name] for name in _OF_OBJECTS},
        )
        assert isinstance(found, list)
        return [Objects(*(value.cpu() for value in vars(objects).values())) for objects in found]

    def _votes(self, batch: Tensor) -> list[tuple[Tensor, Grid]]:
        """The features of a batch by the other backbones, each in its own colours."""
        found = []
        for voter in self._voters:
            other = voter.backbone
            (mean, std), (own_mean, own_std) = (
                (batch.new_tensor(stat)[:, None, None] for stat in (model.mean, model.std))
                for model in (self.backbone, other)
            )
            features = other((batch * std + mean - own_mean) / own_std)
            found.append((features, other.grid(self.size)))
        return found

    def label_features(
        self, features: Tensor | Attended, votes: Sequence[tuple[Tensor, Grid]] = ()
    ) -> PseudoLabels:
        """Labels of the backbone's (B, N, d) features of images of this size.

        Labelled where they lie, if there are kernels for that device. Raises ``ValueError`` for
        features that are not finite, and where :attr:`needs` asks for what ``attend`` gives.
        ``votes``: (B, N', d') features of the same images by each of the other backbones, and
        their grids.
        """
        if self.objects is not None:
            raise ValueError(f"`objects` must be None for a label of one mask: got {self.objects}")
        if self._voters and not votes:
            raise ValueError(f"{self.needs}: got patch features alone")
        rows = features.features if isinstance(features, Attended) else features
        check_dense(rows, "features")
        check_data(rows, "features")
        features = _where_kernels_are(features)
        grid = self.backbone.grid(self.size)
        labels = methods.label(features, grid, orient=self.orient, votes=votes, **self.options)
        labels = PseudoLabels(**{name: getattr(labels, name).cpu() for name in _FIELDS})
        bad = labels.eigenvalue.isnan()
        # A CUDA device could not raise.
        if bad.any() and methods.has_vector(self.options["method"], self.options["init"]):
            image = int(bad.int().argmax())
            raise ValueError(
                "`features` must be finite, and so must their norms: got NaN, infinity or an "
                f"overflow in image {image}"
            )
        return labels

    def _batches(self, images: Sequence[ImageLike]) -> Iterator[Tensor]:
        if not images:
            raise ValueError("`images` must not be empty: got none")
        for start in range(0, len(images), self.batch_size):
            chunk = images[start : start + self.batch_size]
            yield torch.stack([self.preprocess(load_image(image)[0]) for image in chunk])

    def _find(self, images: Sequence[ImageLike]) -> list[Objects]:
        return [objects for batch in self._batches(images) for objects in self.objects_batch(batch)]

    def _label(self, images: Sequence[ImageLike]) -> PseudoLabels:
        parts = [self.label_batch(batch) for batch in self._batches(images)]
        return PseudoLabels(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS}
        )


def _where_kernels_are(features: Any) -> Any:
    if not features.is_cuda or _native.cuda_obstacles():
        return features.cpu()
    return features


def _from_column(value: Any) -> ImageLike:
    """An entry of a numpy column: text as a string, nested lists as an array."""
    if isinstance(value, str | os.PathLike | Image.Image | np.ndarray):
        return value
    return np.asarray(value)


def _is_image(value: Any) -> bool:
    """Whether a row's value is one image or path, and not a column of them."""
    if isinstance(value, np.ndarray):
        # Rows of grey images of 3 or 4 pixels a line are no column that anybody has.
        return value.dtype != object and (
            value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (3, 4))
        )
    return isinstance(value, str | os.PathLike | Image.Image)


def _object_columns(found: Sequence[Objects], most: int) -> dict[str, npt.NDArray[Any]]:
    """Columns of fixed shapes, one row per image, of up to ``most`` objects each."""
    count = len(found)
    columns: dict[str, npt.NDArray[Any]] = {
        "count": np.array([len(objects.masks) for objects in found], dtype=np.int64),
        "instances": np.stack([objects.instances.numpy() for objects in found]),
        "boxes": np.zeros((count, most, 4), dtype=np.int64),
        "seeds": np.full((count, most), -1, dtype=np.int64),
        "eigenvalues": np.full((count, most), np.nan),
        "separations": np.full((count, most), np.nan),
    }
    for name in ("boxes", "seeds", "eigenvalues", "separations"):
        for row, objects in zip(columns[name], found, strict=True):
            row[: len(objects.masks)] = getattr(objects, name).numpy()
    return columns
