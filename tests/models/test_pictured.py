"""Labels of images are shown, saved and printed as people expect in a notebook."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import selfment
from selfment import PseudoLabeler
from selfment.images import ImageError, find_images, load_image, overlay
from selfment.jobs.label import label_images
from selfment.methods import MultiObject

SIZE = 96


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A dark disc and a bright square on noise, 120 x 80 pixels."""
    pixels = np.random.default_rng(0).integers(90, 130, (80, 120, 3), np.uint8)
    rows, columns = np.ogrid[:80, :120]
    pixels[(rows - 40) ** 2 + (columns - 35) ** 2 < 400] = (10, 20, 60)
    pixels[30:60, 80:105] = (250, 200, 20)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("method", ["selfment", MultiObject(2)])
def test_a_saved_label_is_the_file_of_the_command(
    method: str | MultiObject, photo: Path, tmp_path: Path
) -> None:
    labeler = PseudoLabeler(None, SIZE, method=method)
    labeler(photo).save(tmp_path / "saved.png")
    label_images(find_images([photo]), tmp_path / "out", labeler, progress=False)
    with Image.open(tmp_path / "saved.png") as ours, Image.open(tmp_path / "out/photo.png") as file:
        assert ours.size == (120, 80)
        assert np.array(ours).max() > 0
        assert np.array_equal(np.array(ours), np.array(file))


@pytest.mark.parametrize("given", ["path", "picture", "array"])
def test_a_notebook_shows_the_panels(
    given: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = load_image(photo)[0]
    image = {"path": photo, "picture": picture, "array": np.array(picture)}[given]
    label = PseudoLabeler("classic", SIZE)(image)
    expected = np.array(overlay(picture, label))
    with Image.open(io.BytesIO(label._repr_png_())) as png:
        assert np.array_equal(np.array(png), expected)
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture))
    label.show()
    assert np.array_equal(np.array(shown[0]), expected)


def test_masks_are_saved_as_png_only(photo: Path, tmp_path: Path) -> None:
    label = PseudoLabeler("classic", SIZE)(photo)
    with pytest.raises(ValueError, match=r"`path` must end in \.png: got '.*mask\.jpg'"):
        label.save(tmp_path / "mask.jpg")
    photo.unlink()
    with pytest.raises(ImageError, match="photo"):
        label.save(tmp_path / "mask.png")
    assert not list(tmp_path.iterdir())


def test_results_print_no_arrays(photo: Path) -> None:
    labeler = PseudoLabeler("classic", SIZE)
    label, objects = labeler(photo), PseudoLabeler(None, SIZE, method=MultiObject(2))(photo)
    features = np.random.default_rng(0).normal(size=(2, 36, 5))
    joint = selfment.joint_label(features[0], [(4, 5), (4, 4)])
    assert repr(label).startswith("ImageLabels(mask=bool (6, 6), ncut_mask=bool (6, 6), fiedler=")
    assert f"eigenvalue={label.eigenvalue.item():.4g}, gap=" in repr(label)
    assert "rejected=False, tau=0.2, image=" in repr(label)
    assert "masks=bool (2, 6, 6)" in repr(objects)
    assert repr(selfment.pseudo_label(features, (6, 6))).startswith("PseudoLabels(mask=bool (2, 6,")
    assert "mask=list of 2, ncut_mask=list of 2" in repr(joint)
    assert "degree=float64 (2, 36), taus=float64 (2,)" in repr(selfment.affinity(features))
    assert all("\n" not in repr(result) for result in (label, objects, joint))


def test_models_print_what_they_are() -> None:
    labeler = PseudoLabeler("classic", SIZE, method="tokencut")
    expected = "PseudoLabeler(backbone='classic', size=96, features='tokens', method=TokenCut("
    assert repr(labeler).startswith(expected)
    assert repr(labeler).endswith("loaded=False)")
    segmenter = selfment.Segmenter(selfment.PatchHead(64), "classic", SIZE)
    assert "size=96, features='tokens', head=PatchHead(64), loaded=False)" in repr(segmenter)
