"""Formats that other tools read: boxes and polygons for YOLO, made from the instances of an image.

Instances are (H, W) integers, 0 for the background and 1 to K for the objects. A label of one mask
has one instance, its foreground. For COCO see :mod:`selfment.jobs.coco`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from ..core import options as params
from ..images.outline import polygon

FORMATS = ("png", "coco", "yolo", "yolo-seg", "fiedler")

Instances = npt.NDArray[np.uint16]


def as_instances(masks: Iterable[npt.NDArray[np.bool_]], size: tuple[int, int]) -> Instances:
    """Numbers (H, W) bool masks from 1 on: (H, W) uint16 instances at ``size`` (W, H).

    Where masks overlap the earlier one counts. A mask of which nothing is left gives no instance,
    but uses up its number. Raises ``ValueError`` for more than 65535 masks.
    """
    instances = np.zeros(size[::-1], dtype=np.uint16)
    for number, mask in enumerate(masks, 1):
        params.require("masks", number, "65535 at most", number <= 65535)
        instances[mask & (instances == 0)] = number
    return instances


def boxes(instances: Instances) -> list[tuple[int, tuple[int, int, int, int]]]:
    """The number and the box x1, y1, x2, y2 of each instance, in pixels; x2, y2 are exclusive."""
    return [
        (number, (slices[1].start, slices[0].start, slices[1].stop, slices[0].stop))
        for number, slices in enumerate(find_objects(instances), 1)
        if slices is not None
    ]


def yolo_lines(instances: Instances) -> str:
    """A line "0 cx cy w h" for each instance: class, centre and size as shares of the image's.

    The text is empty if there are no instances: an empty file marks an image without objects.
    """
    height, width = instances.shape
    return "".join(
        f"0 {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} "
        f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
        for _, (x1, y1, x2, y2) in boxes(instances)
    )


def yolo_polygons(instances: Instances) -> str:
    """Returns a line "0 x1 y1 x2 y2 ..." for each instance: class, and corners of its polygon.

    The corners are shares of the image's size, see :func:`selfment.images.outline.polygon`.
    """
    height, width = instances.shape
    lines = []
    for number, (x1, y1, x2, y2) in boxes(instances):
        corners = polygon(instances[y1:y2, x1:x2] == number) + np.array([x1, y1])
        values = (corners / (width, height)).flatten().tolist()
        lines.append(f"0 {' '.join(f'{value:.6f}' for value in values)}\n")
    return "".join(lines)
