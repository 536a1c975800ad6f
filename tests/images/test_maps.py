"""Ground truth and saliency from files: the meaning of all kinds of masks, and refused ones."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.folders import SHARED
from selfment.evaluation.folders import evaluate
from selfment.images.load import ImageError
from selfment.images.maps import read_saliency, read_truth, saliency_of, truth_of

CASES = SHARED / "cases"
MASK = np.zeros((40, 60), bool)
MASK[8:30, 15:44] = True
INNER = np.zeros_like(MASK)
INNER[8:20, 15:30] = True
LEVELS = np.where(MASK, 255, 0)
COLOURS = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # VOC's and DAVIS'


def palette(numbers: np.ndarray, colours: list[int] = COLOURS) -> Image.Image:
    picture = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    picture.putdata(numbers.astype(np.uint8).ravel().tolist())
    picture.putpalette(colours)
    return picture


def rgb(*channels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack(channels).astype(np.uint8))


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([*[colours.astype(np.uint8)] * 3, alpha.astype(np.uint8)]))


def antialiased() -> np.ndarray:
    picture = Image.new("L", (240, 160))
    ImageDraw.Draw(picture).ellipse((40, 30, 190, 130), fill=255)
    return np.asarray(picture.resize((60, 40), Image.Resampling.BILINEAR))


NUMBERS = np.where(INNER, 2, MASK * 1)
MEANT: dict[str, tuple[Image.Image, str | None]] = {
    "0 and 255": (Image.fromarray(LEVELS.astype(np.uint8)), None),
    "1 bit": (Image.fromarray(MASK), None),
    "0 and 1": (Image.fromarray(MASK.astype(np.uint8)), "of 0 and 1, scaled"),
    "0 and 2": (Image.fromarray(2 * MASK.astype(np.uint8)), "of 0 and 2, scaled"),
    "0 and 100": (Image.fromarray(100 * MASK.astype(np.uint8)), "of 0 and 100, scaled"),
    "numbers": (Image.fromarray(NUMBERS.astype(np.uint8)), "numbers up to 2"),
    "palette": (palette(MASK * 1), "numbers up to 1"),
    "palette, dark colour": (palette(MASK * 2), "numbers up to 2"),
    "palette of several": (palette(NUMBERS), "numbers up to 2"),
    "palette, black and white": (palette(MASK * 1, [0, 0, 0, 255, 255, 255]), None),
    "palette, white first": (palette(~MASK * 1, [255, 255, 255, 0, 0, 0]), None),
    "16 bits, 0 and 1": (Image.fromarray(MASK.astype(np.uint16)), "of 0 and 1, scaled"),
    "16 bits, 0 and 255": (Image.fromarray(LEVELS.astype(np.uint16)), "of 0 and 255, scaled"),
    "16 bits": (Image.fromarray((LEVELS * 257).astype(np.uint16)), None),
    "16 bits, numbers": (Image.fromarray((NUMBERS * 900).astype(np.uint16)), "numbers up to 1800"),
    "32 bits, 0 and 1": (Image.fromarray(MASK.astype(np.int32)), "of 0 and 1, scaled"),
    "floats": (Image.fromarray(MASK.astype(np.float32)), None),
    "colours": (
        rgb(128 * MASK, 0 * MASK, 40 * INNER),
        "black",
    ),
    "grey RGB": (rgb(LEVELS, LEVELS, LEVELS), None),
    "transparency": (with_alpha(0 * LEVELS, LEVELS), "in the transparency"),
    "white on transparency": (with_alpha(LEVELS, LEVELS), None),
    "no transparency": (with_alpha(LEVELS, 0 * LEVELS + 255), None),
    "nothing": (Image.new("L", (60, 40)), None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEANT)
def test_what_ground_truth_means(name, tmp_path):
    picture, note = MEANT[name]
    suffix = ".tif" if picture.mode in ("I", "F") else ".png"
    picture.save(tmp_path / f"a{suffix}")
    levels, notes = read_truth(tmp_path / f"a{suffix}")
    assert levels.dtype == np.uint8
    assert np.array_equal(levels, 0 * LEVELS if name == "nothing" else LEVELS)
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]
    again, more = truth_of(Image.open(tmp_path / f"a{suffix}"))
    assert np.array_equal(again, levels)
    assert more == notes


def test_the_border_of_voc_is_background():
    numbers = np.where(MASK & ~INNER, 255, INNER * 3)
    levels, notes = truth_of(palette(numbers, [*COLOURS, *[0] * 750, 224, 224, 192]))
    assert np.array_equal(levels, np.where(INNER, 255, 0))
    assert "numbers up to 3" in notes[0]
    assert notes[1] == "pixels with the number 255, which belong to no class, count as background"


def test_grey_levels_stay():
    grey = antialiased()
    assert len(np.unique(grey)) > 5
    for picture in (Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16))):
        assert np.array_equal(truth_of(picture)[0], grey)
    assert np.array_equal(truth_of(Image.fromarray(grey.astype(np.uint16) * 257))[0], grey)


def in_12_bits() -> Image.Image:
    return Image.fromarray(antialiased().astype(np.uint16) * 16 + antialiased() // 16)


def test_grey_levels_in_deeper_files_stay():
    """In a file of 32 bits, 255 is the white of 8 bits, not a border of unknown pixels."""
    grey = antialiased()
    for dtype in (np.uint16, np.int32, np.float32):
        levels, notes = truth_of(Image.fromarray(grey.astype(dtype)))
        assert np.array_equal(levels, grey), dtype
        assert notes == []
    with pytest.raises(
        ValueError, match="its largest value is 4095, which can be white in 12 bits"
    ):
        truth_of(in_12_bits())


def test_numbers_of_class_and_object_in_one():
    """24,001 and 33,018 exceed half of 16 bits, but are no grey levels."""
    numbers = np.where(INNER, 33018, np.where(MASK, 24001, 0)).astype(np.uint16)
    levels, notes = truth_of(Image.fromarray(numbers))
    assert np.array_equal(levels, LEVELS)
    assert "numbers up to 33018" in notes[0]


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_dark_colours_are_colours(channel):
    channels = [0 * LEVELS] * 3
    channels[channel] = MASK * 1
    levels, notes = truth_of(rgb(*channels))
    assert np.array_equal(levels, LEVELS)
    assert "any colour but black" in notes[0]


def test_colours_with_losses_are_refused(tmp_path):
    rgb(128 * MASK, 0 * MASK, 64 * MASK).save(tmp_path / "a.jpg", quality=60)
    with pytest.raises(ImageError, match="it has colours and the losses of JPEG"):
        read_truth(tmp_path / "a.jpg")


def test_files_are_turned_as_they_say(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    for read in (read_truth, read_saliency):
        assert np.array_equal(read(tmp_path / "a.png")[0], np.rot90(LEVELS, -1))
    assert np.array_equal(truth_of(Image.open(tmp_path / "a.png"))[0], np.rot90(LEVELS, -1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("top", [1, 255])
def test_predictions_that_are_nearly_black_are_noted(dtype, top):
    notes = saliency_of(Image.fromarray((MASK * top).astype(dtype)))[1]
    assert notes == [f"prediction of values up to {top} of 65535, taken as it is"]
    assert saliency_of(Image.fromarray((0 * LEVELS).astype(dtype)))[1] == []


def test_predictions_in_the_transparency():
    levels, notes = saliency_of(with_alpha(0 * LEVELS, LEVELS))
    assert np.array_equal(levels, LEVELS)
    assert notes == ["prediction in the transparency, its colours are all the same"]
    assert np.array_equal(saliency_of(with_alpha(LEVELS, 255 - LEVELS))[0], LEVELS)


def test_what_jpeg_does_to_a_mask_is_no_meaning(tmp_path):
    for mode in ("L", "RGB"):
        Image.fromarray(antialiased()).convert(mode).save(tmp_path / "a.jpg", quality=70)
        levels, notes = read_truth(tmp_path / "a.jpg")
        assert np.mean((levels > 127) != (antialiased() > 127)) < 0.01
        assert notes == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Image.fromarray(np.where(INNER, 255, MASK * 7).astype(np.uint8)), "are 0 to 7 and 255"),
        (Image.fromarray(np.where(INNER, 97, MASK * 7).astype(np.uint8)), "largest value is 97 of"),
        (Image.fromarray(np.where(INNER, 0.3, MASK * 0.1).astype(np.float32)), "its floats lie"),
        (Image.fromarray(0 - MASK.astype(np.float32)), "it holds values from -1 to 0"),
        (
            rgb(LEVELS, LEVELS, 255 - LEVELS),
            "nothing black",
        ),
        (with_alpha(np.where(INNER, 255, 0), LEVELS), "are different masks"),
    ],
    ids=range(6),
)
def test_what_could_mean_several_things_is_refused(picture, message, tmp_path):
    picture.save(tmp_path / "odd.tif")
    with pytest.raises(ImageError, match=rf"cannot read .*odd\.tif: [^\n]*{message}[^\n]*$"):
        read_truth(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=message):
        truth_of(picture)


def test_one_pair_that_is_refused_costs_itself_alone(tmp_path):
    for name, values in (("a", LEVELS), ("b", np.where(INNER, 97, MASK * 7)), ("c", LEVELS)):
        for folder, levels in (("gt", values), ("pred", LEVELS)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(levels.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    report = evaluate(tmp_path / "pred", tmp_path / "gt", progress=False)
    assert [image.name for image in report.images] == ["a", "c"]
    assert len(report.failed) == 1
    assert "b.png: its largest value is 97" in report.failed[0]
    assert report.scores["IoU"] == 1


def test_faint_saliency_stays_faint(tmp_path):
    """It is not a photograph and is not brightened."""
    values = np.where(MASK, 900, 30)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "a.png")
    assert read_saliency(tmp_path / "a.png")[0].max() == 4
    Image.fromarray((values / 65535).astype(np.float32)).save(tmp_path / "a.tif")
    assert read_saliency(tmp_path / "a.tif")[0].max() == 4
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(ImageError, match="must hold values from 0 to 1: got values from 30 to 900"):
        read_saliency(tmp_path / "b.tif")
    levels, notes = read_saliency_of_palette(tmp_path)
    assert np.array_equal(levels, LEVELS)
    assert "numbered objects" in notes[0]


def read_saliency_of_palette(folder: Path) -> tuple[np.ndarray, list[str]]:
    palette(NUMBERS).save(folder / "p.png")
    return read_saliency(folder / "p.png")


@pytest.mark.parametrize("kind", ["gt", "gt_index"])
def test_index_masks_of_the_cases_score_1(kind):
    if not (CASES / "index-masks").is_dir():
        pytest.skip(f"no masks of numbers: {CASES / 'index-masks'} is missing")
    folder = CASES / "index-masks"
    report = evaluate(folder / "pred", folder / kind, protocol="all", progress=False)
    assert all(report.scores[key] > 0.999 for key in ("IoU", "Acc", "F_max", "maxFm", "Sm", "wFm"))


def test_names_match_however_they_are_composed(tmp_path):
    for folder, form in (("gt", "NFD"), ("pred", "NFC")):
        (tmp_path / folder).mkdir()
        for name in ("Zürich", "café", "plain"):
            name = unicodedata.normalize(form, name)
            Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    report = evaluate(tmp_path / "pred", tmp_path / "gt", progress=False)
    assert [image.name for image in report.images] == ["Zürich", "café", "plain"]
    if (CASES / "unicode-names").is_dir():
        folder = CASES / "unicode-names"
        assert len(evaluate(folder / "pred", folder / "gt", progress=False).images) == 3


def test_ground_truth_with_a_suffix(tmp_path):
    for name in ("gt/1_mask", "gt/1", "gt/sub/2_mask", "pred/1", "pred/sub/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(LEVELS.astype(np.uint8)).save(tmp_path / f"{name}.png")
    folders = tmp_path / "pred", tmp_path / "gt" / ".." / "gt"
    report = evaluate(*folders, gt_suffix="_mask", progress=False)
    assert [image.name for image in report.images] == ["1", "sub/2"]
    with pytest.raises(ValueError, match="`gt` must hold images whose names end in '_gt': got"):
        evaluate(*folders, gt_suffix="_gt", progress=False)
