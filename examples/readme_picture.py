"""Makes the pictures of the README: labels of the sample photographs of scikit-image.

docs/overlay.jpg has the labels of the hand-made `classic` backbone, docs/objects.jpg the objects of
`statistics`, both at the defaults of `selfment label --samples`; nothing is retouched. Four of the
five photographs are shown; in the fifth, a motorcycle of many colours, `classic` selects the red
parts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from selfment import PseudoLabeler
from selfment.images.draw import CAPTION as PANEL_CAPTION
from selfment.images.load import sample_images
from selfment.methods import MultiObject

DOCS = Path(__file__).resolve().parent.parent / "docs"
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")
CAPTIONS = ("image", "Fiedler vector", "initial mask", "mask after IPO")
WIDTH, CAPTION, GAP = 1200, 28, 6  # pixels


def main() -> None:
    """Writes both pictures."""
    photographs = [entry.path for entry in sample_images() if entry.path.stem in SHOWN]
    labeler = PseudoLabeler("classic")
    rows = [scaled(labeler(path).overlay(), WIDTH) for path in photographs]
    save(stacked(rows, CAPTIONS), "overlay.jpg")
    labeler = PseudoLabeler("statistics", method=MultiObject(5))
    pairs = [scaled(labeler(path).overlay(), (WIDTH - GAP) // 2) for path in photographs]
    save(stacked(side_by_side(pairs), ("image", "objects") * 2), "objects.jpg")


def scaled(row: Image.Image, width: int) -> Image.Image:
    """Returns a row of panels without their captions, at this width."""
    row = row.crop((0, PANEL_CAPTION, *row.size))
    return row.resize((width, round(row.height * width / row.width)), Image.Resampling.LANCZOS)


def side_by_side(rows: list[Image.Image]) -> list[Image.Image]:
    """Returns rows of two, each as high as the higher of them; equal heights come together."""
    rows = sorted(rows, key=lambda row: row.height)
    pairs = []
    for left, right in zip(rows[::2], rows[1::2], strict=True):
        pair = Image.new("RGB", (WIDTH, max(left.height, right.height)), "white")
        pair.paste(left, (0, 0))
        pair.paste(right, (WIDTH - right.width, 0))
        pairs.append(pair)
    return pairs


def stacked(rows: list[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Returns the rows one below another, under the captions of their columns."""
    height = CAPTION + sum(row.height for row in rows) + GAP * (len(rows) - 1)
    picture = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    for column, caption in enumerate(captions):
        centre = ((2 * column + 1) * WIDTH // (2 * len(captions)), CAPTION // 2)
        draw.text(centre, caption, fill="black", font=font, anchor="mm")
    top = CAPTION
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    return picture


def save(picture: Image.Image, name: str) -> None:
    """Writes a picture into the folder of the documentation, and prints its size."""
    picture.save(DOCS / name, quality=85, optimize=True)
    print(f"{name}: {picture.width} x {picture.height}, {(DOCS / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
