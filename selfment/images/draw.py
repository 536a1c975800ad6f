"""Pictures of labels (image, Fiedler vector and masks side by side) and of saliency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..core.arrays import Grid, as_array, as_grid
from ..core.label import PseudoLabels
from .load import ImageLike, load_image

TINT = (255, 56, 92)  # sRGB, over the foreground
TINT_SHARE = 0.55
GAP = 8  # pixels between panels
CAPTION = 18  # pixels of height, above each panel

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def overlay(
    image: ImageLike, labels: PseudoLabels, *, mask: Any = None, max_side: int = 768
) -> Image.Image:
    """Draws four RGB panels: the image, the Fiedler vector, the initial mask and the final mask.

    Each panel has a caption above it.
    The Fiedler vector runs from dark blue (its minimum) to light yellow (its maximum); its panel is
    dark if it is constant or NaN. Panels have the size of the image, or are smaller so that no side
    exceeds ``max_side`` pixels. ``labels`` are those of this image, without a batch axis. ``mask``
    (H, W) bool is drawn in place of the mask after IPO, for a mask that was refined. Raises
    ``ValueError`` for batched labels.
    """
    fiedler = as_array(labels.fiedler, "labels")
    if fiedler.ndim != 2:
        raise ValueError(
            "`labels` must be those of one image, fields (h, w): "
            f"got a Fiedler vector of shape {fiedler.shape}"
        )
    picture = _shrunk(image, max_side)
    vector = colour_levels(vector_levels(fiedler))
    panels = {
        "image": picture,
        "Fiedler vector": vector.resize(picture.size, Image.Resampling.BILINEAR),
        "initial mask": tint(picture, labels.ncut_mask),
        "mask": tint(picture, labels.mask if mask is None else mask),
    }
    return _row(panels)


def vector_levels(vector: Any) -> Pixels:
    """Converts an (h, w) vector to 8-bit levels: 0 for its minimum, 255 for its maximum.

    NaN counts as 0, and a constant vector is 0 everywhere.
    """
    values = np.nan_to_num(as_array(vector, "vector").astype(np.float64))
    span = float(np.ptp(values)) or 1.0
    levels: Pixels = np.rint(255 * (values - values.min()) / span).astype(np.uint8)
    return levels


def colour_levels(levels: Pixels) -> Image.Image:
    """Colours (h, w) levels, from dark blue for 0 to light yellow for 255."""
    return Image.fromarray(_COLORS[levels])


def overlay_instances(image: ImageLike, instances: Any, *, max_side: int = 768) -> Image.Image:
    """Draws two RGB panels: the image, and the image with each of the ``instances`` in a colour.

    ``instances`` (h, w) are 0 in the background, which is darkened, and numbers from 1 in objects;
    consecutive numbers have very different hues. Panels are as large as those of :func:`overlay`.
    """
    picture = _shrunk(image, max_side)
    numbers = as_array(instances, "instances")
    palette = _instance_colors(int(numbers.max()) + 1)
    colours, foreground = (
        Image.fromarray(pixels).resize(picture.size, Image.Resampling.NEAREST)
        for pixels in (palette[numbers], np.where(numbers > 0, np.uint8(255), np.uint8(0)))
    )
    count = len(np.unique(numbers[numbers > 0]))
    objects = f"{count} object{'' if count == 1 else 's'}"
    return _row({"image": picture, objects: _composite(picture, foreground, colours)})


def tint(image: Image.Image, mask: Any) -> Image.Image:
    """Tints the RGB ``image`` with :data:`TINT` in a (h, w) bool ``mask``, darkens the rest."""
    return _composite(image, mask_image(mask, image.size))


def tint_saliency(image: Image.Image, saliency: Any, threshold: float = 0.5) -> Image.Image:
    """Tints the RGB ``image`` as :func:`tint` does where a (h, w) ``saliency`` exceeds a threshold.

    The saliency is in [0, 1], as the threshold is, and is resized bilinearly before.
    """
    values = Image.fromarray(as_array(saliency, "saliency").astype(np.float32))
    resized = values.resize(image.size, Image.Resampling.BILINEAR)
    return tint(image, np.asarray(resized) > threshold)


def saliency_image(saliency: Any) -> Image.Image:
    """Converts an (h, w) saliency in [0, 1] to an 8-bit image: 255 times its value, truncated.

    The official code truncates, too: only 1 becomes white.
    """
    values = as_array(saliency, "saliency").astype(np.float32)
    return Image.fromarray((255 * values).astype(np.uint8))


def _shrunk(image: ImageLike, max_side: int) -> Image.Image:
    """Loads an image and shrinks it so that no side exceeds ``max_side``."""
    picture = load_image(image)[0]
    shrink = min(1.0, max_side / max(picture.size))
    width, height = (max(1, round(side * shrink)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _row(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Places panels of equal size side by side, each under its caption."""
    width, height = next(iter(panels.values())).size
    size = (len(panels) * (width + GAP) - GAP, CAPTION + height)
    row = Image.new("RGB", size, "white")
    font = ImageFont.load_default(12)
    for index, (caption, panel) in enumerate(panels.items()):
        left = index * (width + GAP)
        strip = Image.new("RGB", (width, CAPTION), "white")  # cuts off what is too wide
        ImageDraw.Draw(strip).text((0, 1), caption, "black", font)
        row.paste(strip, (left, 0))
        row.paste(panel, (left, CAPTION))
    return row


def _composite(
    image: Image.Image, weights: Image.Image, colour: Image.Image | None = None
) -> Image.Image:
    """Blends an image with ``colour`` where the weights are 255, with black where they are 0."""
    colour = colour or Image.new("RGB", image.size, TINT)
    inside = Image.blend(image, colour, TINT_SHARE)
    outside = Image.blend(image, Image.new("RGB", image.size), 0.35)
    return Image.composite(inside, outside, weights)


def mask_image(mask: Any, size: tuple[int, int]) -> Image.Image:
    """Converts an (h, w) bool mask to 0 and 255, at ``size`` (W, H) by nearest neighbour."""
    pixels = as_array(mask, "mask").astype(np.uint8) * np.uint8(255)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def label_image(instances: Any) -> Image.Image:
    """Converts (h, w) numbers of objects, 0 in the background, to a grey image.

    It has 8 bits, or 16 if there are more than 255 objects.
    """
    numbers = as_array(instances, "instances")
    small = numbers.size == 0 or numbers.max() <= np.iinfo(np.uint8).max
    return Image.fromarray(numbers.astype(np.uint8 if small else np.uint16))


def rgb(vectors: Any, grid: Grid) -> Image.Image:
    """Draws the first eigenvectors of a graph as the colours of its patches.

    Similar patches have similar colours: the values of each vector, scaled by its 2nd and 98th
    percentile, move the colour along a direction of its own in Oklab, a space in which distances
    are those that people see. The first vector is the lightness. The others share the plane of
    hues: their directions are equal parts of a half turn apart.

    Args:
        vectors: (N, k) real numbers, k >= 1, as :func:`selfment.ncut` returns them; any type of
            array; neither NaN nor infinity.
        grid: (h, w) with h * w == N.

    Returns:
        An RGB image of w x h pixels; :meth:`PIL.Image.Image.resize` makes it larger.

    Raises:
        ValueError: a wrong shape or grid, or numbers that are not finite.
    """
    columns = as_array(vectors, "vectors").astype(np.float64)
    if columns.ndim != 2 or columns.size == 0:
        raise ValueError(f"`vectors` must be (N, k), N and k >= 1: got {columns.shape}")
    height, width = as_grid(grid)
    if height * width != len(columns):
        raise ValueError(f"`grid` must satisfy h*w == N: got {grid} for N = {len(columns)}")
    if not np.isfinite(columns).all():
        raise ValueError("`vectors` must be finite: got NaN or infinity")
    low, high = np.percentile(columns, (2, 98), axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (2 * (columns - low) / span - 1).clip(-1, 1)
    hues = scaled.shape[1] - 1
    directions = np.exp(1j * np.pi * np.arange(hues) / max(1, hues))
    plane = scaled[:, 1:] @ directions / max(1.0, hues / 2)  # of magnitude 1.3 at most
    colours = _from_oklab(
        0.6 + 0.25 * scaled[:, 0], 0.14 * np.abs(plane), np.degrees(np.angle(plane))
    )
    return Image.fromarray(colours.reshape(height, width, 3))


def _color_ramp() -> Pixels:
    """Returns (256, 3) sRGB colours whose Oklab lightness rises evenly while the hue turns."""
    t = np.linspace(0, 1, 256)
    return _from_oklab(0.18 + 0.77 * t, 0.05 + 0.11 * np.sin(np.pi * t), 285 - 180 * t)


def _instance_colors(count: int) -> Pixels:
    """Returns (count, 3) sRGB colours with hues a golden angle apart; the first is not used."""
    numbers = np.arange(count, dtype=np.float64)
    return _from_oklab(np.full(count, 0.72), np.full(count, 0.17), 15.0 + 137.508 * (numbers - 1.0))


def _from_oklab(lightness: Floats, chroma: Floats, degrees: Floats) -> Pixels:
    """Converts Oklab's lightness, chroma and hue to (n, 3) sRGB colours.

    Source: B. Ottosson, *A perceptual color space for image processing*, 2020.
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
