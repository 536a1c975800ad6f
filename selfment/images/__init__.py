"""Images without models: read, searched for, drawn on, and masks refined along their edges."""

from __future__ import annotations

from .draw import overlay, overlay_instances, rgb
from .load import ImageEntries, ImageEntry, ImageError, find_images, load_image, sample_images

__all__ = [
    "ImageEntries",
    "ImageEntry",
    "ImageError",
    "find_images",
    "load_image",
    "overlay",
    "overlay_instances",
    "rgb",
    "sample_images",
]
