"""Pictures of labels (image, Fiedler vector and masks side by side) and of saliency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.arrays import as_array
from ..core.label import PseudoLabels
from .load import ImageLike, load_image

TINT = (255, 56, 92)  # sRGB, over the foreground
TINT_SHARE = 0.55
GAP = 8  # pixels between two panels

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def overlay(
    image: ImageLike, labels: PseudoLabels, *, mask: Any = None, max_side: int = 768
) -> Image.Image:
    """Four RGB panels in a row: image, Fiedler vector, initial mask and IPO mask on the image.

    ``mask``: (H, W) bool, shown in place of the IPO mask, as what became of it at the image's size.
    ``labels``: those of this one image, without a batch axis. The Fiedler vector runs from dark
    blue (its minimum) to light yellow (its maximum); where there is none, its panel is dark. Panels
    are the image's size, or smaller so that no side exceeds ``max_side`` pixels. Raises
    ``ValueError`` for batched labels.
    """
    fiedler = np.nan_to_num(as_array(labels.fiedler, "labels").astype(np.float64))
    if fiedler.ndim != 2:
        raise ValueError(
            "`labels` must be those of one image, fields (h, w): "
            f"got a Fiedler vector of shape {fiedler.shape}"
        )
    picture = _shrunk(image, max_side)
    span = float(np.ptp(fiedler)) or 1.0
    levels = np.rint(255 * (fiedler - fiedler.min()) / span).astype(np.uint8)
    panels = [
        picture,
        Image.fromarray(_COLORS[levels]).resize(picture.size, Image.Resampling.BILINEAR),
        tint(picture, labels.ncut_mask),
        tint(picture, labels.mask if mask is None else mask),
    ]
    return _row(panels)


def overlay_instances(image: ImageLike, instances: Any, *, max_side: int = 768) -> Image.Image:
    """Two RGB panels in a row: the image, and on it each of the (h, w) ``instances`` in a colour.

    ``instances``: 0 for the background, which is darkened, and 1 on for objects; neighbouring
    numbers have hues far apart. Panels are as large as those of :func:`overlay`.
    """
    picture = _shrunk(image, max_side)
    numbers = as_array(instances, "instances")
    palette = _instance_colors(int(numbers.max()) + 1)
    colours, foreground = (
        Image.fromarray(pixels).resize(picture.size, Image.Resampling.NEAREST)
        for pixels in (palette[numbers], np.where(numbers > 0, np.uint8(255), np.uint8(0)))
    )
    return _row([picture, _composite(picture, foreground, colours)])


def tint(image: Image.Image, mask: Any) -> Image.Image:
    """The RGB ``image`` with :data:`TINT` over the (h, w) bool ``mask``, the rest darkened."""
    return _composite(image, mask_image(mask, image.size))


def tint_saliency(image: Image.Image, saliency: Any) -> Image.Image:
    """The RGB ``image`` with :data:`TINT` as far as the (h, w) ``saliency`` in [0, 1] goes.

    Where it is 0 the image is darkened, as outside a mask of :func:`tint`; resized bilinearly.
    """
    weights = saliency_image(saliency).resize(image.size, Image.Resampling.BILINEAR)
    return _composite(image, weights)


def saliency_image(saliency: Any) -> Image.Image:
    """An 8-bit image of an (h, w) saliency in [0, 1]: 255 times it, cut to whole numbers.

    The official code cuts, too: white is 1 alone.
    """
    values = as_array(saliency, "saliency").astype(np.float32)
    return Image.fromarray((255 * values).astype(np.uint8))


def _shrunk(image: ImageLike, max_side: int) -> Image.Image:
    picture = load_image(image)[0]
    shrink = min(1.0, max_side / max(picture.size))
    width, height = (max(1, round(side * shrink)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _row(panels: Sequence[Image.Image]) -> Image.Image:
    width, height = panels[0].size
    row = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height), "white")
    for index, panel in enumerate(panels):
        row.paste(panel, (index * (width + GAP), 0))
    return row


def _composite(
    image: Image.Image, weights: Image.Image, colour: Image.Image | None = None
) -> Image.Image:
    colour = colour or Image.new("RGB", image.size, TINT)
    inside = Image.blend(image, colour, TINT_SHARE)
    outside = Image.blend(image, Image.new("RGB", image.size), 0.35)
    return Image.composite(inside, outside, weights)


def mask_image(mask: Any, size: tuple[int, int]) -> Image.Image:
    """An 8-bit image, 0 or 255, of a (h, w) bool mask, at ``size`` (W, H) by nearest neighbour."""
    pixels = as_array(mask, "mask").astype(np.uint8) * np.uint8(255)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def _color_ramp() -> Pixels:
    """(256, 3) sRGB colours whose Oklab lightness rises evenly while the hue turns."""
    t = np.linspace(0, 1, 256)
    return _from_oklab(0.18 + 0.77 * t, 0.05 + 0.11 * np.sin(np.pi * t), 285 - 180 * t)


def _instance_colors(count: int) -> Pixels:
    """(count, 3) sRGB colours whose hues are the golden angle apart; the first is that of none."""
    numbers = np.arange(count, dtype=np.float64)
    return _from_oklab(np.full(count, 0.72), np.full(count, 0.17), 15.0 + 137.508 * (numbers - 1.0))


def _from_oklab(lightness: Floats, chroma: Floats, degrees: Floats) -> Pixels:
    """(n, 3) sRGB colours of Oklab's lightness, chroma and hue.

    Oklab and its matrices: B. Ottosson, *A perceptual color space for image processing*, 2020.
    """
    hue = np.radians(degrees)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    roots = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_rgb @ roots**3).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels: Pixels = np.rint(255 * srgb.T).astype(np.uint8)
    return pixels


_COLORS = _color_ramp()
