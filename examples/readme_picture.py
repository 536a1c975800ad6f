"""Makes docs/overlay.jpg for the README: labels of the sample photographs of scikit-image.

The features are those of the hand-made `classic` backbone, at the defaults of
`selfment label --samples`; nothing is retouched. Four of the five photographs are shown; in the
fifth, a motorcycle of many colours, these features select the red parts only.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from selfment import PseudoLabeler
from selfment.images.draw import CAPTION as PANEL_CAPTION
from selfment.images.draw import overlay
from selfment.images.load import sample_images

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "overlay.jpg"
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")
CAPTIONS = ("image", "Fiedler vector", "initial mask", "mask after IPO")
WIDTH, CAPTION, GAP = 1200, 28, 6  # pixels


def main() -> None:
    """Labels the photographs and writes the picture: a row for each, under the captions."""
    labeler = PseudoLabeler("classic")
    rows = []
    for entry in sample_images():
        if entry.path.stem in SHOWN:
            row = overlay(entry.path, labeler(entry.path))
            row = row.crop((0, PANEL_CAPTION, *row.size))  # one caption serves all rows
            height = round(row.height * WIDTH / row.width)
            rows.append(row.resize((WIDTH, height), Image.Resampling.LANCZOS))
    height = CAPTION + sum(row.height for row in rows) + GAP * (len(rows) - 1)
    picture = Image.new("RGB", (WIDTH, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    for column, caption in enumerate(CAPTIONS):
        centre = ((2 * column + 1) * WIDTH // 8, CAPTION // 2)
        draw.text(centre, caption, fill="black", font=font, anchor="mm")
    top = CAPTION
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    PICTURE.parent.mkdir(exist_ok=True)
    picture.save(PICTURE, quality=85, optimize=True)
    print(f"{PICTURE.name}: {picture.width} x {picture.height}, {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
