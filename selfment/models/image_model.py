"""The base of PseudoLabeler and Segmenter: a frozen backbone that is loaded at its first use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..backbones import (
    POSITIONS,
    Backbone,
    as_backbone,
    as_dtype,
    backbone_class,
    is_factory,
    load_backbone,
    patch_size_of,
    resampling,
)
from ..backbones.base import check_size
from ..backbones.checkpoints import files_of
from ..backbones.custom import Model
from ..backbones.hugging_face import PREFIX
from ..core import options as params
from ..core.torch_state import LOADING, as_device
from ..images.load import DECODING


class ImageModel:
    """A backbone at one image size and on one device.

    A backbone with a name is loaded at its first use and pickled without its weights.
    """

    #: In pixels: by default, ``size`` is the multiple of the patch size that is nearest to it.
    default_size: ClassVar[int]

    def __init__(
        self,
        backbone: str | Backbone | Model,
        size: int | None,
        features: str,
        weights: str | os.PathLike[str] | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        batch_size: int,
        positions: str,
    ) -> None:
        """Checks the arguments; nothing is loaded yet.

        Args:
            backbone: a name, or one's own, see :func:`selfment.backbones.as_backbone`.
            size: the side in pixels; None for the multiple of the patch size that is nearest to
                ``default_size``.
            features: see :func:`selfment.backbones.load_backbone`.
            weights: see there.
            device: where the backbone runs; None takes CUDA if there is one at the first use.
            dtype: see :func:`selfment.backbones.load_backbone`.
            batch_size: images per pass.
            positions: see :func:`selfment.backbones.load_backbone`.

        Raises:
            ValueError: a wrong argument.
        """
        whole = isinstance(batch_size, int) and batch_size >= 1
        params.require("batch_size", batch_size, "an integer >= 1", whole)
        params.choice("positions", positions, POSITIONS)
        autocast = as_dtype(dtype)
        self._own: Backbone | None = None
        if isinstance(backbone, str):
            self.backbone_name = backbone
        else:
            _check_left_alone({"features": features, "weights": weights, "positions": positions})
            self._own = as_backbone(backbone, device, autocast)
            self.backbone_name = self._own.name
        self.size = self._fitting_size(size)
        self.features = features
        self.weights = None if weights is None else os.path.abspath(weights)
        self.device = device
        self.dtype = dtype
        self.note = self.described.note
        self.batch_size = batch_size
        self.positions = positions
        self._backbone = self._own
        self._loaded: list[Any] | None = None  # what the weights' file was like then

    def _fitting_size(self, size: int | None) -> int:
        """Returns ``size``, or the multiple of the patch size that is nearest to the default.

        Raises ``ValueError`` where it is known that ``size`` is none, before anything is loaded.
        """
        own = self._own
        patch = patch_size_of(self.backbone_name) if own is None else own.patch_size
        if size is None:
            return max(1, round(self.default_size / (patch or 1))) * (patch or 1)
        params.require("size", size, "an integer >= 1", isinstance(size, int) and size >= 1)
        if patch is not None:
            check_size(size, patch, self.backbone_name)
        return size

    @property
    def described(self) -> Backbone | type[Backbone]:
        """The backbone, or its class where it need not be loaded for its attributes."""
        return self._own or backbone_class(self.backbone_name)

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at the first use.

        Raises ``ValueError`` or :class:`selfment.backbones.WeightsError`.
        """
        if self._backbone is None:
            with LOADING.held():
                if self._backbone is None:  # no other thread has loaded it meanwhile
                    self._load()
        assert self._backbone is not None
        return self._backbone

    def _load(self) -> None:
        state = self._state_of_weights()
        backbone = load_backbone(
            self.backbone_name,
            features=self.features,
            weights=self.weights,
            dtype=self.dtype,
            positions=self.positions,
            device=self.torch_device,
        )
        backbone.grid(self.size)
        self._loaded, self._backbone = state, backbone  # last: then other threads use it

    def share(self, other: ImageModel) -> None:
        """Takes the backbone of ``other``, a model of the same arguments for it."""
        self._backbone, self._loaded = other.backbone, other._loaded

    @property
    def torch_device(self) -> torch.device:
        """The device of the backbone. Raises ``ValueError`` for a device that does not exist."""
        if self._own is not None:
            return torch.device(getattr(self._own, "device", "cpu"))
        return device_of(self.device)

    @property
    def batches_ahead(self) -> int:
        """How many batches to begin before the result of the first is waited for."""
        return 1 if self.torch_device.type == "cuda" else 0

    @property
    def settings(self) -> dict[str, Any]:
        """All that the backbone's features depend on besides the image, ready for JSON."""
        own = self.backbone if is_factory(self.backbone_name) else self._own
        if own is not None:
            about: dict[str, Any] = {"own": own.settings}
        else:
            # This describes the file that was loaded; another may have its name by now.
            file = self._state_of_weights() if self._backbone is None else self._loaded
            positions = resampling(self.backbone_name, self.positions)
            about = {"weights": file, "positions": positions}
        return {
            "backbone": self.recorded_name,
            "size": self.size,
            "features": self.features,
            "decoding": DECODING,
            "dtype": str(as_dtype(self.dtype) or torch.float32).removeprefix("torch."),
            **about,
        }

    @property
    def recorded_name(self) -> str:
        """The name of the backbone without the path of a folder on this machine."""
        if self.backbone_name.startswith(PREFIX):
            folder = Path(self.backbone_name.removeprefix(PREFIX))
            return f"{PREFIX}{folder.resolve().name}" if folder.is_dir() else self.backbone_name
        return self.backbone_name

    def _state_of_weights(self) -> list[Any] | None:
        path = self.weights
        if path is None and self.backbone_name.startswith(PREFIX):
            path = self.backbone_name.removeprefix(PREFIX)
        if path is None or not (files := files_of(path)):
            return None
        stats = [os.stat(file) for file in files]
        size, time = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return [Path(path).resolve().name, size, time]  # wherever it lies

    def __repr__(self) -> str:
        about = f"backbone={self.backbone_name!r}, size={self.size}, features={self.features!r}"
        return f"{type(self).__name__}({about}, {self._more()}loaded={self._backbone is not None})"

    def _more(self) -> str:
        """Returns more fields for ``repr``, each with a comma after it."""
        return ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": self._own}


def _check_left_alone(options: dict[str, Any]) -> None:
    """Raises ``ValueError`` for an option that a backbone of one's own does not have."""
    defaults = {"features": "tokens", "positions": "authors"}
    for name, value in options.items():
        if value != defaults.get(name):
            raise ValueError(
                f"`{name}` must be left alone with a backbone of one's own: got {value!r}"
            )


def device_of(device: str | torch.device | None) -> torch.device:
    """Returns the device; None stands for CUDA if there is one, else for the CPU.

    Of several CUDA devices without a number it is torchrun's for this process.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = as_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        # Where each process is shown one device only, that is its number 0.
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return resolved
