"""Images without models: read, searched for, drawn on, and masks refined along their edges."""

from __future__ import annotations

from .load import ImageEntries, ImageEntry, ImageError, find_images, load_image, sample_images

__all__ = [
    "ImageEntries",
    "ImageEntry",
    "ImageError",
    "find_images",
    "load_image",
    "sample_images",
]
