"""`compare --tau` shows the masks of several thresholds side by side, without ground truth."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.commands import call
from selfment import CutOptions, PseudoLabeler
from selfment.experiments.taus import compare_taus
from selfment.images import find_images
from selfment.methods import Selfment

TAUS = [0.1, 0.9, "auto"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs of discs on a ramp, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows, columns = np.ogrid[:64, :96]
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 40, (64, 96, 3)).astype(np.uint8)
        pixels += np.uint8(columns)[..., None]
        pixels[(rows - 30) ** 2 + (columns - 20 - 25 * number) ** 2 < 300] = (200, 30, 60)
        Image.fromarray(pixels).save(folder / f"<b>{number}.png")
    (folder / "broken.png").write_text("no image")
    return folder


def test_the_table_is_that_of_the_labels(photos: Path, tmp_path: Path) -> None:
    images = find_images([photos])
    found = compare_taus(images, tmp_path / "out", TAUS, "classic", 128, progress=False)
    assert (found.taus, found.images, found.failed) == (["0.1", "0.9", "auto"], 3, 1)
    masks = []
    for tau, foreground, confidence in zip(TAUS, found.foreground, found.confidence, strict=True):
        labeler = PseudoLabeler("classic", 128, method=Selfment(CutOptions(tau=tau)))
        labels = labeler([entry.path for entry in images if "broken" not in str(entry.path)])
        assert foreground == pytest.approx(labels.mask.double().mean().item())
        assert confidence == pytest.approx(labels.confidence.mean().item())
        masks.append(labels.mask.numpy())
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            both, either = (one & other).sum((1, 2)), (one | other).sum((1, 2))
            assert found.agreement[i, j] == pytest.approx(np.mean(both / either))
    assert found.agreement.min() < 1


def test_the_page_has_a_row_of_masks_for_each_photograph(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--tau", "0.1,0.3,auto", "--size", 128, "--keep-aspect", "--out", tmp_path / "out")
    code, out, err = call(capsys, "compare", photos, *arguments)
    assert code == 1
    assert "broken.png: not an image that Pillow knows" in err
    assert re.findall(r"^(0\.1|0\.3|auto) ", out, re.MULTILINE) == ["0.1", "0.3", "auto"]
    page = (tmp_path / "out/taus.html").read_text()
    assert page.count("<h2>&lt;b&gt;") == 3
    assert page.count('<img src="data:image/jpeg;base64,') == 3 * 4
    assert len(re.findall(r"tau auto: 0\.\d\d; foreground \d+ %, confidence", page)) == 2 * 3
    assert not re.search(r"<b>|https?://(?!www\.w3\.org/2000/svg)", page)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tau", "0.1,0.1"], "`tau` must be two different thresholds at least: got '0.1,0.1'"),
        (["--tau", "0.1,x"], "argument --tau: must be a number or 'auto': got 'x'"),
        (["--tau", "0.1,2"], "`tau` must be at most 1, the largest similarity of patches: got 2.0"),
        (["--tau", "0.1,0.2", "--gt", "masks"], "`gt` must be left alone with several thresholds"),
        ([], "give the ground truth, --gt DIR, or several thresholds, --tau T,T,..."),
    ],
)
def test_what_cannot_be_compared(
    options: list[str],
    sentence: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = call(capsys, "compare", photos, "--out", tmp_path / "out", *options)
    assert code == 2
    assert sentence in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_no_image_that_can_be_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_text("no image")
    command = ("compare", tmp_path / "broken.png", "--tau", "0.1,0.2", "--out", tmp_path / "out")
    code, _, err = call(capsys, *command)
    assert code == 2
    assert "`images` must be images of which one can be labelled: got 1" in err
