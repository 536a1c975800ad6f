"""Images are found, and read in all unusual formats."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.folders import SHARED
from selfment import PseudoLabeler
from selfment.images.load import ImageError, find_images, load_image, sample_images
from selfment.images.suffixes import register_plug_ins


def save(path: Path, color: tuple[int, int, int] = (200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), color).save(path)
    return path


def names(entries) -> list[str]:
    return [entry.mask_name for entry in entries]


def test_one_folder_gives_names_relative_to_it(tmp_path):
    for name in ("b.jpg", "sub/deep/a.PNG", ".hidden.png", ".git/x.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    entries = find_images([tmp_path])
    assert names(entries) == ["b.png", "sub/deep/a.png"]
    assert entries[0].path == tmp_path / "b.jpg"


def test_several_inputs_give_names_relative_to_their_common_parent(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/c.tif"):
        save(tmp_path / name)
    assert names(find_images([tmp_path / "one", tmp_path / "two/a.png"])) == [
        "one/a.png",
        "two/a.png",
    ]
    assert names(find_images([tmp_path / "two/c.tif"])) == ["c.png"]
    assert names(find_images([tmp_path / "two", tmp_path / "two/c.tif"])) == ["a.png", "c.png"]
    assert names(find_images([f"{tmp_path}/*/a.png"])) == ["one/a.png", "two/a.png"]
    assert names(find_images([f"{tmp_path}/**/*.tif"])) == ["c.png"]


def test_images_that_would_share_a_mask_keep_their_suffix(tmp_path):
    for name in ("a.jpg", "a.png", "a.jpg.gif", "b.jpg"):
        save(tmp_path / name)
    found = dict(
        zip(
            (e.path.name for e in find_images([tmp_path])),
            names(find_images([tmp_path])),
            strict=True,
        )
    )
    assert found["a.jpg"] == "a.jpg.png"
    assert found["a.png"] == "a.png.png"
    assert found["b.jpg"] == "b.png"
    assert len(set(found.values())) == 4


def test_names_with_glob_characters_are_files_first(tmp_path):
    save(tmp_path / "[1].png")
    assert names(find_images([tmp_path / "[1].png"])) == ["[1].png"]


def test_results_inside_a_searched_folder_are_left_out(tmp_path):
    save(tmp_path / "a.jpg")
    save(tmp_path / "out/a.png")
    assert names(find_images([tmp_path], out=tmp_path / "out")) == ["a.png"]
    assert names(find_images([f"{tmp_path}/**/*"], out=tmp_path / "out")) == ["a.png"]
    with pytest.raises(ValueError, match="`out` must not be a folder that is searched"):
        find_images([tmp_path], out=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("empty", "the folder .*empty' holds no image"),
        ("empty/*.png", "no image matches .*"),
        ("absent.png", "no such file or folder: .*absent.png'"),
    ],
)
def test_nothing_found_is_one_sentence(tmp_path, given, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_images([tmp_path / given])


def test_no_input():
    with pytest.raises(ValueError, match="at least one image"):
        find_images([])


def test_samples_are_colour_photographs():
    entries = sample_images()
    assert {"astronaut.png", "chelsea.png"} <= set(names(entries))
    assert all(Image.open(entry.path).mode == "RGB" for entry in entries)


def test_transparency_is_composited_on_white(tmp_path):
    half = np.zeros((2, 2, 4), dtype=np.uint8)
    half[0] = (255, 0, 0, 255)
    rgba = Image.fromarray(half)
    rgba.save(tmp_path / "rgba.png")
    rgba.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png", transparency=1)
    image, notes = load_image(tmp_path / "rgba.png")
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert image.getpixel((0, 1)) == (255, 255, 255)
    assert notes == ["transparency composited on white"]
    assert load_image(tmp_path / "la.png")[0].getpixel((1, 1)) == (255, 255, 255)
    assert load_image(tmp_path / "palette.png")[0].getpixel((0, 0)) == (255, 255, 255)
    assert load_image(half)[0].getpixel((0, 1)) == (255, 255, 255)


def test_16_bit_uses_the_full_range(tmp_path):
    ramp = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "deep.tif")
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.png", "deep.tif", "float.tif"):
        image, notes = load_image(tmp_path / name)
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255], name
        assert notes == []


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_than_the_file_could_hold(tmp_path, bits):
    """The picture is the same however its values are stored; the darkest of 14 bits needs 13."""
    eight = np.linspace(40, 200, 12 * 9).reshape(9, 12).round()
    values = np.round(eight / 255 * (2**bits - 1))
    expected = [f"values up to {values.max():g} read as {bits} bits"]
    for name, kind in (
        ("a.png", "uint16"),
        ("b.tif", "uint16"),
        ("c.tif", "int32"),
        ("d.tif", "f4"),
    ):
        Image.fromarray(values.astype(kind)).save(tmp_path / name)
        image, notes = load_image(tmp_path / name)
        assert np.abs(np.asarray(image)[..., 1] - eight).max() <= 1, name
        assert notes == expected, name


def test_a_file_may_say_what_is_white(tmp_path):
    values = np.array([[0, 500, 1000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: 4000})
    image, notes = load_image(tmp_path / "a.tif")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 32, 64]
    assert notes == ["white is 4000, as the file says"]
    Image.fromarray(values).save(
        tmp_path / "b.tif", tiffinfo={281: 999}
    )  # the file contains larger values
    assert load_image(tmp_path / "b.tif")[1] == ["values up to 1000 read as 10 bits"]


def test_colours_of_16_bits_are_cut_and_noted(tmp_path):
    cv2 = pytest.importorskip("cv2")
    for name in ("a.png", "b.tif"):
        cv2.imwrite(str(tmp_path / name), np.full((5, 4, 3), 51400, np.uint16))
        image, notes = load_image(tmp_path / name)
        assert np.asarray(image).max() == 200
        assert notes == ["16-bit colours read as their upper 8 bits, of which the largest is 200"]
        for bits in (10, 12):
            cv2.imwrite(str(tmp_path / name), np.full((5, 4, 3), (1 << bits) - 1, np.uint16))
            with pytest.raises(ImageError, match="its 16-bit colours use the lower bits alone"):
                load_image(tmp_path / name)
    dark = np.full((5, 4, 3), 4095, np.uint16)
    cv2.imwrite(str(tmp_path / "c.png"), np.dstack([dark, dark[..., 0] + 61440]))  # opaque
    pixels = dark.astype(">u2").tobytes()
    (tmp_path / "d.ppm").write_bytes(b"P6 4 5 65535\n" + pixels)
    for name in ("c.png", "d.ppm"):
        with pytest.raises(ImageError, match="its 16-bit colours use the lower bits alone"):
            load_image(tmp_path / name)
    (tmp_path / "e.ppm").write_bytes(b"P6 4 5 4095\n" + pixels)  # the header states the white value
    assert np.asarray(load_image(tmp_path / "e.ppm")[0]).min() == 255


def test_plugins_of_pillow(tmp_path, monkeypatch):
    """A missing plug-in is named; an installed one is registered at its first use."""
    path = tmp_path / "a.HEIC"
    path.write_bytes(b"some new format")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC: no reader is installed: pip install pillow-heif$"):
        load_image(path)
    plugin = types.ModuleType("pillow_heif")
    plugin.__spec__ = importlib.machinery.ModuleSpec("pillow_heif", None)

    def register() -> None:
        Image.register_open(
            "NEW", lambda file, name: Image.new("RGB", (3, 2), "red"), lambda b: True
        )

    plugin.register_heif_opener = register
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    register_plug_ins.cache_clear()
    monkeypatch.setattr(Image, "ID", Image.ID[:])
    monkeypatch.setattr(Image, "OPEN", Image.OPEN.copy())
    assert load_image(path)[0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (3, 0)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "F", "L"])
def test_images_without_pixels(mode, size):
    with pytest.raises(ImageError, match=f"the image: it has no pixels, its size is {size[0]} x"):
        load_image(Image.new(mode, size))


def test_depths_have_the_mask_of_8_bits():
    folder = SHARED / "cases/depths"
    if not folder.is_dir():
        pytest.skip(f"no images of several depths: {folder} is missing")
    labeler = PseudoLabeler("classic", 480)
    expected = labeler(folder / "f_8bit.png").mask
    assert 0 < expected.sum() < expected.numel()
    for path in sorted(folder.iterdir()):
        mask = labeler(path).mask
        assert (mask & expected).sum() >= 0.95 * (mask | expected).sum(), path.name


def test_values_out_of_range_are_scaled_and_noted(tmp_path):
    values = np.array([[-1.0, 1.0, 3.0, np.nan]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    image, notes = load_image(tmp_path / "float.tif")
    assert np.asarray(image)[0, :, 2].tolist() == [0, 128, 255, 64]
    assert notes == ["values that are not finite read as 0", "scaled from [-1, 3]"]
    faint = np.array([[0.0, 0.01, 0.02]], dtype=np.float32)  # 1 is not white there
    Image.fromarray(faint).save(tmp_path / "faint.tif")
    image, notes = load_image(tmp_path / "faint.tif")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]
    assert notes == ["scaled from [0, 0.02]"]


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "YCbCr", "P"])
def test_other_modes_become_rgb(tmp_path, mode):
    suffix = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(path)
    image, notes = load_image(path)
    assert (image.mode, image.size, notes) == ("RGB", (5, 4), [])
    assert min(image.getpixel((2, 2))) >= 254


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (6, 3))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    image, notes = load_image(tmp_path / "turned.png")
    assert image.size == (3, 6)
    assert image.getpixel((2, 0)) == (255, 255, 255)
    assert notes == ["rotated as its EXIF data says"]


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("L", (4, 4), 80 * index) for index in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    image, notes = load_image(tmp_path / "moving.gif")
    assert notes == ["first frame of 3"]
    assert image.getpixel((0, 0)) == (0, 0, 0)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png")[0].getpixel((0, 0)) == (1, 2, 3)


def test_a_pil_image_is_left_as_it_is():
    given = Image.new("RGB", (3, 2), (9, 9, 9))
    image, _ = load_image(given)
    image.putpixel((0, 0), (0, 0, 0))
    assert given.getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("name", ["text.png", "cut.jpg", "cut.png", "absent.png", "folder"])
def test_what_cannot_be_read_is_one_sentence(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("jpg", "png"):
        noise.save(tmp_path / f"cut.{suffix}")
        data = (tmp_path / f"cut.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    reason = {
        "text.png": "not an image that Pillow knows",
        "absent.png": "no such file",
        "folder": "it is a folder",
    }.get(name, "truncated")
    with pytest.raises(ImageError, match=f"^cannot read .*{name}: .*{reason}") as caught:
        load_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_decompression_bomb(tmp_path, monkeypatch):
    save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ImageError, match=r"bomb\.png: it has too many pixels"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.float32), r"must be uint8 .* got float32 of shape \(4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got uint8 of shape \(2, 4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), r"got uint8 of shape \(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), r"must not be empty: got shape \(0, 4\)"),
    ],
)
def test_wrong_arrays(array, message):
    with pytest.raises(ImageError, match=message):
        load_image(array)


def test_strided_arrays():
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)[::-1, ::2]
    assert np.array_equal(np.asarray(load_image(array)[0]), array)
