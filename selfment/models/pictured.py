"""Labels that know their image, to look at: in a window, in a notebook or in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.label import PseudoLabels
from ..core.objects import Objects
from ..images.draw import label_image, mask_image, overlay, overlay_instances
from ..images.load import ImageLike, load_image
from ..util.files import output_file, write_atomically


class Pictured:
    """Adds to labels what needs the image, ``image``, which is kept as it was passed."""

    image: ImageLike

    def overlay(self) -> Image.Image:
        """Draws the image beside its label, see :mod:`selfment.images.draw`.

        Raises :class:`selfment.images.ImageError` if the image was a path, and the file has gone.
        """
        raise NotImplementedError

    def at_image_size(self) -> Image.Image:
        """Returns the label as an 8-bit image of the size of the upright image.

        A mask is 0 or 255. For several objects, pixels are their numbers from 1 (16 bits if there
        are more than 255).
        """
        raise NotImplementedError

    def show(self) -> None:
        """Opens :meth:`overlay` in the system's image viewer."""
        self.overlay().show()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes :meth:`at_image_size` as a PNG file, as ``selfment label`` does.

        Raises ``ValueError`` if the name does not end in .png: other formats could change a mask.
        """
        if Path(path).suffix.lower() != ".png":
            raise ValueError(f"`path` must end in .png: got {os.fspath(path)!r}")
        picture = self.at_image_size()
        write_atomically(output_file("path", path), lambda file: picture.save(file, "PNG"))

    def _repr_png_(self) -> Any:
        """The picture that Jupyter shows; the name is Jupyter's."""
        return self.overlay()._repr_png_()


@dataclass(frozen=True, repr=False, eq=False)
class ImageLabels(Pictured, PseudoLabels):
    """The labels of an image: :class:`selfment.PseudoLabels` without a batch axis."""

    image: ImageLike = field(kw_only=True)  #: the image, as it was passed

    def overlay(self) -> Image.Image:
        """Draws the image, the Fiedler vector, the initial mask and the mask after IPO."""
        return overlay(self.image, self)

    def at_image_size(self) -> Image.Image:
        """Returns the mask, 0 or 255, at the size of the upright image, by nearest neighbour."""
        return mask_image(self.mask, load_image(self.image)[0].size)


@dataclass(frozen=True, repr=False, eq=False)
class ImageObjects(Pictured, Objects):
    """The objects of an image: :class:`selfment.Objects`."""

    image: ImageLike = field(kw_only=True)  #: the image, as it was passed

    def overlay(self) -> Image.Image:
        """Draws the image, and the image with each object in a colour."""
        return overlay_instances(self.image, self.instances)

    def at_image_size(self) -> Image.Image:
        """Returns the objects' numbers at the size of the upright image, by nearest neighbour."""
        size = load_image(self.image)[0].size
        return label_image(self.instances).resize(size, Image.Resampling.NEAREST)


def with_image(labels: PseudoLabels | Objects, image: ImageLike) -> ImageLabels | ImageObjects:
    """Returns the labels of one image together with the image."""
    kind = ImageObjects if isinstance(labels, Objects) else ImageLabels
    return kind(**{item.name: getattr(labels, item.name) for item in fields(labels)}, image=image)
