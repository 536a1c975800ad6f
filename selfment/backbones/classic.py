"""``classic``: hand-made patch features that distinguish an object from its surroundings."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .base import resize
from .hand_made import ROWS, HandMade
from .pixels import BINS, gradients, halved, lab, product
from .saliency import of_cells, places, saliency

_CELLS = 576  # about the largest number of cells, of one or more patches, that are compared
# Scales of Lab, gradients and position.
_ALIKE = (0.05, 0.12, 0.12)  # in the averaging that transfers the saliency to the patches
_BASE = (0.1, 0.2, 0.5)  # in the random map
_WEIGHT = 1.5  # weight of the saliency channels beside the random map
_ARC = 0.7  # angle on the arc per standard deviation of the saliency
_ARC_CENTRE = 0.7  # subtracted from the cosine
_EDGE = 0.1  # distance at which the affinity of neighbouring patches falls to 1 / e
_LEVELS = 24  # number of thresholds that are compared
# Between the two ends of a ramp, an image stops being noise, and becomes one without an edge.
_LIKE, _BLURRED = (0.1, 0.3), (0.85, 1.0)


class Classic(HandMade):
    """Saliency, colour, texture and position of each patch, d = 384, patch 16.

    The saliency of at most 24 x 24 cells is transferred to the patches. Two channels encode it as
    an arc around its threshold, so that one direction means "object" in every image. The others are
    random Fourier features of colour, texture and position. If there is nothing to cut, all
    features are equal.
    """

    name = "classic"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        """``device``: the device that computes the features."""
        super().__init__(device, 3 + BINS + 1 + 2, self.dim - 2)

    def preprocess_whole(self, image: Image.Image, size: int) -> tuple[Tensor, tuple[int, int]]:
        """Resizes an RGB image in about its aspect ratio, without padding, and standardises it.

        The shorter side becomes the nearest multiple of the patch size, so that the border of the
        input is the border of the image. Returns (3, H, W) float32 and (H, W).
        """
        self.grid(size)
        patch, longer = self.patch_size, max(image.size)
        width, height = (max(1, round(side * size / longer / patch)) * patch for side in image.size)
        return self._standardised(resize(image, (width, height))), (height, width)

    def features(self, image: Tensor) -> Tensor:
        """Returns (N, 384) features of a (1, 3, H, W) image; all NaN if a pixel is not finite."""
        image = halved(image)
        edges = halved(halved(gradients(image)))
        fine = torch.cat([halved(lab(halved(image))), edges], dim=1)  # means of 8 x 8 pixels
        patches = _rooted(halved(fine))
        h, w = patches.shape[1:]
        if not patches.isfinite().all():
            return patches.new_full((h * w, self.dim), torch.nan)
        share = math.sqrt(min(1.0, _CELLS / (h * w)))
        side = max(1, round(share * h)), max(1, round(share * w))
        cells = _rooted(functional.adaptive_avg_pool2d(fine, side))

        order = _order(patches)
        rows, keys, values = _scaled(patches, _ALIKE), _scaled(cells, _ALIKE), saliency(cells)
        parts = [_averaged(part, keys, values) for part in rows.split(ROWS)]
        salient = _median(torch.cat(parts).view(h, w))
        deviation = _mean((salient - _mean(salient)).square()).sqrt().clamp(min=1e-6)
        angle = (salient - _threshold(salient, patches)).flatten() / deviation
        angle = (_ARC * angle).clamp(-math.pi / 2, math.pi / 2)
        arc = torch.stack([angle.sin(), angle.cos() - _ARC_CENTRE], dim=1)
        rows = order * _scaled(patches, _BASE)
        mapped = self.mapped(rows) / math.sqrt(self.dim / 2 - 1)
        return torch.cat([_WEIGHT * order * arc, mapped], dim=1)


def _averaged(rows: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns, for each of the (n, C) rows of patches, the mean value of the cells with near keys.

    A cell has a weight that falls with the distance of its key from the row. The result is (n,).
    """
    near = product(rows, keys).sub_(0.5 * keys.square().sum(1)).softmax(1)
    return near.mul_(values).sum(1)


def _order(patches: Tensor) -> Tensor:
    """Returns how much there is to cut: 0 for noise, one colour or a gradient, up to 1.

    In noise, neighbours are hardly more alike than any two patches. In gradients and in blurred
    noise there is no edge: the slope between patches equals the slope between pixels, and is much
    the same all over the image.
    """
    h, w = patches.shape[1:]
    if h == w == 1:
        return patches.new_zeros(())
    mean = patches.mean(2, keepdim=True).mean(1, keepdim=True)
    spread = _mean((patches - mean).square().sum(0))
    # Only patches with a neighbour on both axes count, or on the only axis.
    steps = [patches.diff(dim=1)[..., : max(1, w - 1)], patches.diff(dim=2)[:, : max(1, h - 1)]]
    steps = [step.square() for step in steps if step.numel()]
    between = torch.stack([_mean(step.sum(0)) for step in steps]).mean()
    slopes = torch.stack([step[:3].sum(0) for step in steps]).sum(0)
    slope = _mean(slopes.sqrt())
    evenness = slope / _mean(slopes).sqrt().clamp(min=1e-6) - 0.5 / math.sqrt(slopes.numel())
    smoothness = slope / _mean(patches[-1].square())
    likeness = (2 * spread - between) / (2 * spread + 1e-6)
    return _ramp(likeness, _LIKE) * (1 - _ramp(smoothness * evenness.clamp(min=0) ** 8, _BLURRED))


def _threshold(salient: Tensor, patches: Tensor) -> Tensor:
    """Returns the threshold that best separates the (h, w) saliency into two classes along edges.

    Among ``_LEVELS`` thresholds it has the largest product of the between-class variance (Otsu)
    and the mean of 1 - affinity over the pairs of neighbours in different classes.
    """
    low, high = salient.aminmax()
    steps = torch.linspace(0, 1, _LEVELS + 2, dtype=torch.float32, device=salient.device)[1:-1]
    levels = low + (high - low) * steps
    above = salient > levels[:, None, None]
    maps = of_cells(patches).T.reshape(patches.shape)
    cut, pairs = torch.zeros_like(levels), torch.zeros_like(levels)
    for axis in (1, 2):
        unlike = 1 - torch.exp(-maps.diff(dim=axis).norm(dim=0) / _EDGE)
        parted = above.diff(dim=axis)
        cut += (parted * unlike).sum((1, 2))
        pairs += parted.sum((1, 2))
    share = above.sum((1, 2), dtype=torch.float32) / salient.numel()
    excess = (above * (salient - _mean(salient))).sum((1, 2)) / salient.numel()
    between = excess.square() / (share * (1 - share)).clamp(min=1e-9)
    return levels[(between * cut / pairs.clamp(min=1)).argmax()]


def _median(values: Tensor) -> Tensor:
    """Returns (h, w) medians over each patch and its eight neighbours."""
    padded = functional.pad(values[None, None], (1, 1, 1, 1), "replicate")
    return functional.unfold(padded, 3)[0].median(0).values.view(values.shape)


def _mean(values: Tensor) -> Tensor:
    """Returns the mean of (h, w) values.

    It is computed along one axis at a time: torch would divide a larger sum between threads, and
    round it differently.
    """
    return values.mean(1).mean()


def _ramp(value: Tensor, ends: tuple[float, float]) -> Tensor:
    """Returns 0 up to the first of the ``ends``, 1 from the second, and rises linearly between."""
    low, high = ends
    return ((value - low) / (high - low)).clamp(0, 1)


def _rooted(statistics: Tensor) -> Tensor:
    """Returns (C, h, w): the Lab channels of (1, C, h, w), and the square roots of gradients."""
    return torch.cat([statistics[0, :3], statistics[0, 3:].sqrt()])


def _scaled(maps: Tensor, scales: tuple[float, float, float]) -> Tensor:
    """Returns (n, C + 2) rows of the maps (C, h, w) and the positions, divided by ``scales``."""
    colour, texture, place = scales
    where = places(maps.shape[1], maps.shape[2], maps.device)
    parts = [maps[:3].flatten(1).T / colour, maps[3:].flatten(1).T / texture, where / place]
    return torch.cat(parts, dim=1)
