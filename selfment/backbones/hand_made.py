"""The base class of the embedded backbones: patches of 16 pixels, random Fourier features."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from ..core.torch_state import as_documented
from .base import Backbone
from .pixels import product

ROWS = 4096  # patches that are computed at a time, to limit memory
_SEED = 0


class HandMade(Backbone):
    """A backbone without weights, whose features are the same to the bit in any batch."""

    patch_size = 16
    dim = 384
    orient = "corners"
    attends = False

    def __init_subclass__(cls) -> None:
        """Sets the ``note`` for the user of the backbone."""
        cls.note = (
            f"note: the {cls.name} backbone is hand-made and needs no weights; for the paper's "
            "quality use a DINO backbone, such as --backbone vit_small_patch16_dinov3.lvd1689m"
        )

    def __init__(self, device: str | torch.device, statistics: int, size: int) -> None:
        """Draws the random map from ``statistics`` numbers to ``size`` Fourier features.

        The numbers come from ``numpy.random.RandomState``, whose stream never changes.
        """
        self.device = torch.device(device)
        stream = np.random.RandomState(_SEED)
        directions = stream.standard_normal((statistics, size)).T
        phase = stream.uniform(0, 2 * math.pi, size)
        self._directions = torch.tensor(directions, dtype=torch.float32, device=self.device)
        self._phase = torch.tensor(phase, dtype=torch.float32, device=self.device)

    def parts(self) -> list[nn.Module]:
        """Raises ``ValueError``: see :meth:`Backbone.parts`."""
        raise ValueError(
            f"`backbone` must be a network for a module or an exported file: {self.name} is "
            "hand-made, of linear systems and roundings that other programs do not repeat exactly; "
            "train a head on a ViT, or on a module of your own, with these labels: "
            "selfment train PHOTOS --labels FOLDER --backbone NAME --out RUN"
        )

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, 384) float32 features of a (B, 3, H, W) batch of sRGB values in [0, 1]."""
        self.grid(*batch.shape[-2:])
        # One image at a time, so that the shapes, and with them the rounding, ignore the batch.
        with as_documented(self.device):
            return torch.stack([self.features(image[None]) for image in batch.to(self.device)])

    @abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Returns (N, 384) features of a (1, 3, H, W) image on the backbone's device."""

    def mapped(self, rows: Tensor) -> Tensor:
        """Returns (N, size) random Fourier features of (N, statistics) rows.

        Their inner products fall with the distance of the rows (Rahimi and Recht, Random features
        for large-scale kernel machines, NIPS 2007).
        """
        parts = [product(part, self._directions).add_(self._phase) for part in rows.split(ROWS)]
        return torch.cat(parts).cos_()
