"""What PseudoLabeler and Segmenter share: a frozen backbone that is loaded at its first use."""

from __future__ import annotations

import os
from typing import Any

import torch

from . import _params as params
from .backbones import Backbone, as_dtype, backbone_class, load_backbone
from .images import DECODING


class ImageModel:
    """A backbone by its name, at one image size and on one device; pickled without its weights."""

    def __init__(
        self,
        backbone: str,
        size: int,
        features: str,
        weights: str | os.PathLike[str] | None,
        device: str | torch.device | None,
        dtype: str | torch.dtype | None,
        batch_size: int,
    ) -> None:
        params.number("size", size, "an integer >= 1", isinstance(size, int) and size >= 1)
        whole = isinstance(batch_size, int) and batch_size >= 1
        params.number("batch_size", batch_size, "an integer >= 1", whole)
        as_dtype(dtype)
        self.backbone_name = backbone
        self.size = size
        self.features = features
        self.weights = None if weights is None else os.path.abspath(weights)
        self.device = device
        self.dtype = dtype
        self.note = backbone_class(backbone).note
        self.batch_size = batch_size
        self._backbone: Backbone | None = None
        self._loaded: list[Any] | None = None  # what the weights' file was like then

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded at the first use.

        Raises ``ValueError`` or :class:`selfment.backbones.WeightsError`.
        """
        if self._backbone is None:
            state = self._state_of_weights()
            backbone = load_backbone(
                self.backbone_name,
                features=self.features,
                weights=self.weights,
                dtype=self.dtype,
                device=self.torch_device,
            )
            backbone.grid(self.size)
            self._backbone, self._loaded = backbone, state
        return self._backbone

    def share(self, other: ImageModel) -> None:
        """Takes the backbone of ``other``, a model of the same arguments for it."""
        self._backbone, self._loaded = other.backbone, other._loaded

    @property
    def torch_device(self) -> torch.device:
        """Where the backbone runs. Raises ``ValueError`` for a device that does not exist."""
        return _device(self.device)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the backbone's features depend on besides the image, ready for JSON."""
        # Of the file that was loaded: another may lie there by now.
        weights = self._state_of_weights() if self._backbone is None else self._loaded
        return {
            "backbone": self.backbone_name,
            "size": self.size,
            "features": self.features,
            "decoding": DECODING,
            "weights": weights,
            "dtype": str(as_dtype(self.dtype) or torch.float32).removeprefix("torch."),
        }

    def _state_of_weights(self) -> list[Any] | None:
        if self.weights is None or not os.path.isfile(self.weights):
            return None
        stat = os.stat(self.weights)
        return [self.weights, stat.st_size, stat.st_mtime_ns]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": None}


def _device(device: str | torch.device | None) -> torch.device:
    """The device; of several CUDA devices without a number, torchrun's for this process."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ValueError(f"`device` must be a torch device such as 'cpu': got {device!r}") from None
    if resolved.type != "cuda":
        return resolved
    count = torch.cuda.device_count()
    if (resolved.index or 0) >= count:
        raise ValueError(f"`device` must exist: got {device!r}, torch sees no such CUDA device")
    if resolved.index is None:
        # Where each process is shown one device only, that is its number 0.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % count)
    return resolved
