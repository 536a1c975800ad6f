"""What PseudoLabeler and Segmenter share: a frozen backbone that is loaded at its first use."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..backbones import POSITIONS, Backbone, as_dtype, backbone_class, load_backbone, resampling
from ..backbones.checkpoints import files_of
from ..core import options as params
from ..core.torch_state import LOADING, as_device
from ..images.load import DECODING


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
        positions: str,
    ) -> None:
        params.require("size", size, "an integer >= 1", isinstance(size, int) and size >= 1)
        whole = isinstance(batch_size, int) and batch_size >= 1
        params.require("batch_size", batch_size, "an integer >= 1", whole)
        as_dtype(dtype)
        params.choice("positions", positions, POSITIONS)
        self.backbone_name = backbone
        self.size = size
        self.features = features
        self.weights = None if weights is None else os.path.abspath(weights)
        self.device = device
        self.dtype = dtype
        self.note = backbone_class(backbone).note
        self.batch_size = batch_size
        self.positions = positions
        self._backbone: Backbone | None = None
        self._loaded: list[Any] | None = None  # what the weights' file was like then

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
            "positions": resampling(self.backbone_name, self.positions),
            "dtype": str(as_dtype(self.dtype) or torch.float32).removeprefix("torch."),
        }

    def _state_of_weights(self) -> list[Any] | None:
        if self.weights is None or not (files := files_of(self.weights)):
            return None
        stats = [os.stat(file) for file in files]
        size, time = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
        return [os.path.basename(self.weights), size, time]  # wherever it lies

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backbone": None}


def _device(device: str | torch.device | None) -> torch.device:
    """The device; of several CUDA devices without a number, torchrun's for this process."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = as_device(device)
    if resolved.type == "cuda" and resolved.index is None:
        # Where each process is shown one device only, that is its number 0.
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return resolved
