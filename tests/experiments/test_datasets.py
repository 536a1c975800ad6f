"""Data sets: the layouts of their downloads, what is missing, and what `data check` says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.commands import call
from selfment.evaluation import datasets
from selfment.evaluation.datasets import KNOWN, check, describe, find_folder, find_masks, find_set

# As the official archives unpack, and as the papers on camouflage pass their test sets on.
OFFICIAL = [
    ("ECSSD", "ECSSD/images", "ECSSD/ground_truth_mask"),
    ("DUTS-TE", "DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
    ("DUTS-TR", "DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask"),
    ("DUTS-TE", "DUTS/DUTS-TE/DUTS-TE-Image", "DUTS/DUTS-TE/DUTS-TE-Mask"),
    ("HKU-IS", "HKU-IS/imgs", "HKU-IS/gt"),
    ("PASCAL-S", "pascal-s/Imgs", "pascal-s/Gt"),
    ("PASCAL-S", "datasets/imgs/pascal", "datasets/masks/pascal"),
    ("DUT-OMRON", "DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ("DUT-OMRON", "DUT-OMRON/DUT-OMRON-image", "DUT-OMRON/pixelwiseGT-new-PNG"),
    ("CHAMELEON", "CHAMELEON/Imgs", "CHAMELEON/GT"),
    ("CAMO", "CAMO-V.1.0-CVIU2019/Images/Test", "CAMO-V.1.0-CVIU2019/GT"),
    ("CAMO", "TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT"),
    ("COD10K", "COD10K-v3/Test/Image", "COD10K-v3/Test/GT_Object"),
    ("COD10K", "TestDataset/COD10K/Imgs", "TestDataset/COD10K/GT"),
    ("NC4K", "NC4K/Imgs", "NC4K/GT"),
    ("NC4K", "NC4K/NC4K/Imgs", "NC4K/NC4K/GT"),
]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images are a whole data set."""
    monkeypatch.setattr(
        datasets, "KNOWN", {name: replace(known, count=2) for name, known in KNOWN.items()}
    )


def fill(folder: Path, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def put(root: Path, name: str, images: str, masks: str, count: int = 2) -> None:
    stems = [f"{KNOWN[name].prefix}-{index}.v1" for index in range(count)]
    fill(root / images, [f"{stem}.jpg" for stem in stems])
    fill(root / masks, [f"{stem}.png" for stem in stems])


def test_counts():
    expected = {"ECSSD": 1000, "DUTS-TE": 5019, "DUTS-TR": 10553, "HKU-IS": 4447, "PASCAL-S": 850}
    expected |= {"DUT-OMRON": 5168, "CHAMELEON": 76, "CAMO": 250, "COD10K": 2026, "NC4K": 4121}
    assert {name: known.count for name, known in KNOWN.items()} == expected


@pytest.mark.parametrize(("name", "images", "masks"), OFFICIAL)
def test_official_layouts(tmp_path, name, images, masks):
    put(tmp_path, name, images, masks)
    found = find_set(name, tmp_path)
    assert found.whole
    assert (found.images_folder, found.masks_folder) == (tmp_path / images, tmp_path / masks)
    assert [pair.stem for pair in found.pairs] == [f"{KNOWN[name].prefix}-{i}.v1" for i in (0, 1)]
    for pair, image in zip(found.pairs, found.images, strict=True):
        assert (pair.image, pair.mask) == (image, tmp_path / masks / f"{pair.stem}.png")
        assert image == tmp_path / images / f"{pair.stem}.jpg"
    there = [one.name for one in check(tmp_path) if one.there]
    assert there == [name]


@pytest.mark.parametrize("name", KNOWN)
def test_every_layout_is_found_in_any_case(tmp_path, name):
    for number, (images, masks) in enumerate(KNOWN[name].layouts):
        root = tmp_path / str(number)
        put(root, name, images.swapcase(), masks.swapcase())
        found = find_set(name, root)
        assert found.whole, found.problems
        assert found.images_folder == root / images.swapcase()


@pytest.mark.parametrize("name", KNOWN)
def test_a_plain_layout_and_the_one_of_test_data_sets_do_for_all(tmp_path, name):
    for root, images, masks in (
        (tmp_path / "a", f"{name}/images", f"{name}/masks"),
        (tmp_path / "b", f"TestDataset/{name}/Imgs", f"TestDataset/{name}/GT"),
        (tmp_path / "c", f"{name}/{name}/Image", f"{name}/{name}/Mask"),
    ):
        put(root, name, images, masks)
        assert find_set(name, root).whole


def test_the_whole_of_two_layouts_is_taken_and_an_exact_name_before_another_case(tmp_path):
    put(tmp_path, "CAMO", "CAMO-V.1.0-CVIU2019/Images/Test", "CAMO-V.1.0-CVIU2019/GT", 1)
    put(tmp_path, "CAMO", "TestDataset/CAMO/Imgs", "TestDataset/CAMO/GT")
    assert find_set("CAMO", tmp_path).images_folder == tmp_path / "TestDataset/CAMO/Imgs"
    put(tmp_path, "ECSSD", "ECSSD/images", "ECSSD/ground_truth_mask")
    (tmp_path / "ECSSD/Images").mkdir(exist_ok=True)
    assert find_set("ECSSD", tmp_path).images_folder == tmp_path / "ECSSD/images"


def test_links_are_followed(tmp_path):
    put(tmp_path / "disk", "NC4K", "some/Imgs", "some/GT")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/NC4K").symlink_to(tmp_path / "disk/some")
    assert find_set("NC4K", tmp_path / "root").whole
    (tmp_path / "disk/some/Imgs/-0.v1.jpg").unlink()
    (tmp_path / "disk/some/Imgs/-0.v1.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert find_set("NC4K", tmp_path / "root").problems == ["1 of 2 images"]


def test_only_camouflaged_images_of_cod10k_count(tmp_path):
    put(tmp_path, "COD10K", "COD10K-v3/Test/Image", "COD10K-v3/Test/GT_Object")
    fill(tmp_path / "COD10K-v3/Test/Image", ["COD10K-NonCAM-1.jpg"])
    fill(tmp_path / "COD10K-v3/Test/GT_Object", ["COD10K-NonCAM-1.png"])
    found = find_set("COD10K", tmp_path)
    assert (found.whole, len(found.pairs), found.notes) == (True, 2, [])


def test_masks_of_the_training_images_of_camo_are_no_surprise(tmp_path):
    put(tmp_path, "CAMO", "CAMO-V.1.0-CVIU2019/Images/Test", "CAMO-V.1.0-CVIU2019/GT")
    fill(tmp_path / "CAMO-V.1.0-CVIU2019/GT", ["train.png"])
    found = find_set("CAMO", tmp_path)
    assert (found.whole, found.notes) == (True, [])


def test_what_is_not_an_image_is_left_alone(tmp_path):
    put(tmp_path, "HKU-IS", "HKU-IS/imgs", "HKU-IS/gt")
    fill(tmp_path / "HKU-IS/imgs", ["Thumbs.db", ".hidden.jpg", "readme.txt"])
    fill(tmp_path / "HKU-IS/imgs/more.jpg", ["a.jpg"])
    assert find_set("HKU-IS", tmp_path).whole


def test_what_is_missing_is_said(tmp_path):
    found = find_set("ECSSD", tmp_path)
    assert (found.there, found.pairs) == (False, ())
    assert found.problems == [
        f"missing: its images belong in {tmp_path}/ECSSD/images, its masks in "
        f"{tmp_path}/ECSSD/ground_truth_mask"
    ]
    fill(tmp_path / "ECSSD/images", [f"{i}.jpg" for i in range(5)])
    found = find_set("ECSSD", tmp_path)
    assert found.problems == [
        "5 of 2 images",
        f"no masks, which belong in {tmp_path}/ECSSD/ground_truth_mask",
    ]
    assert found.image_problems == ["5 of 2 images"]
    fill(tmp_path / "ECSSD/ground_truth_mask", ["4.png"])
    assert find_set("ECSSD", tmp_path).problems[1:] == [
        "4 images without a mask: 0.jpg, 1.jpg, 2.jpg and 1 more"
    ]
    (tmp_path / "ECSSD/images").rename(tmp_path / "elsewhere")
    assert find_set("ECSSD", tmp_path).problems == [
        f"no images, which belong in {tmp_path}/ECSSD/images"
    ]


def test_files_of_one_stem_and_masks_without_an_image(tmp_path):
    put(tmp_path, "ECSSD", "ECSSD/images", "ECSSD/ground_truth_mask")
    fill(tmp_path / "ECSSD/ground_truth_mask", ["extra.png"])
    found = find_set("ECSSD", tmp_path)
    assert found.whole
    assert found.notes == ["1 mask without an image: extra.png"]
    fill(tmp_path / "ECSSD/images", ["-0.v1.png"])
    found = find_set("ECSSD", tmp_path)
    assert found.problems == ["1 file with the stem of another: -0.v1.png"]
    assert len(found.pairs) == 2


def test_masks_in_jpeg_beside_others_are_left_aside(tmp_path):
    folder = tmp_path / "DUTS-TR/DUTS-TR-Mask"
    put(tmp_path, "DUTS-TR", "DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask")
    fill(folder, ["-0.v1.jpg", "-1.v1.JPEG"])
    found = find_set("DUTS-TR", tmp_path)
    assert (found.whole, found.image_problems) == (True, [])
    assert [pair.mask.suffix for pair in found.pairs] == [".png", ".png"]
    assert found.notes == [
        "2 masks in JPEG beside one of the same name in a lossless format, not used: "
        "-0.v1.jpg, -1.v1.JPEG"
    ]
    fill(folder, ["-0.v1.bmp"])  # which of two would count, nobody can tell
    assert find_set("DUTS-TR", tmp_path).problems == ["1 file with the stem of another: -0.v1.png"]


def test_masks_in_jpeg_alone_count(tmp_path):
    fill(tmp_path / "images", ["a.jpg", "b.jpg"])
    fill(tmp_path / "masks", ["a.jpg", "b.jpeg", "b.png"])
    found = find_folder(tmp_path)
    assert found.whole
    assert [pair.mask.name for pair in found.pairs] == ["a.jpg", "b.png"]
    assert found.stray == ("b.jpeg",)


@pytest.mark.parametrize(("name", "images", "masks"), OFFICIAL)
def test_the_masks_of_a_data_set_are_known_by_their_place(tmp_path, name, images, masks):
    put(tmp_path, name, images, masks)
    fill(tmp_path / masks, [f"{KNOWN[name].prefix}extra.png"])
    found = find_masks(tmp_path / masks)
    assert found is not None
    assert {image.stem for image in found.images} == {pair.stem for pair in found.pairs}
    assert len(found.pairs) == 2
    next((tmp_path / images).iterdir()).unlink()
    assert find_masks(tmp_path / masks) is None
    assert find_masks(tmp_path / images) is None


def test_a_folder_of_ones_own(tmp_path):
    own = tmp_path / "own"
    fill(own / "Images", ["a.jpg", "b.png"])
    fill(own / "masks", ["b.png", "a.png"])
    found = find_folder(own)
    assert (found.name, found.count, found.whole) == ("own", None, True)
    assert [pair.stem for pair in found.pairs] == ["a", "b"]
    fill(own / "masks", ["c.png"])
    assert find_folder(own).problems == ["1 mask without an image: c.png"]
    fill(tmp_path / "empty/images", [])
    fill(tmp_path / "empty/masks", [])
    assert find_folder(tmp_path / "empty").problems == [f"no image in {tmp_path}/empty/images"]
    assert find_folder(tmp_path, "mine").problems == [
        f"missing: its images belong in {tmp_path}/images, its masks in {tmp_path}/masks"
    ]


def test_photographs_with_masks(photos):
    folder = photos[0].parent.parent
    found = find_folder(folder)
    assert found.whole
    assert {pair.image for pair in found.pairs} >= {
        path for path in photos if folder in path.parents
    }


def test_folders_that_cannot_be_read_are_no_data_sets_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()
    names = datasets._Tree.names

    def refuse(tree, folder):
        if folder.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return names(tree, folder)

    monkeypatch.setattr(datasets._Tree, "names", refuse)
    assert [one.name for one in check(tmp_path)] == list(KNOWN)


def test_check_lists_known_sets_and_ones_own(tmp_path):
    put(tmp_path, "ECSSD", "ECSSD/images", "ECSSD/masks")
    fill(tmp_path / "own/images", ["a.jpg"])
    fill(tmp_path / "own/masks", ["a.png"])
    fill(tmp_path / "other/images", ["a.jpg"])
    found = check(tmp_path)
    assert [one.name for one in found] == [*KNOWN, "own"]
    assert [one.name for one in found if one.there] == ["ECSSD", "own"]
    assert [one.name for one in check(tmp_path / "own") if one.there] == ["own"]
    lines = describe(found, tmp_path)
    assert lines[0] == "ECSSD      ok: 2 pairs in ECSSD/images and ECSSD/masks"
    assert lines[-1] == "own        ok: 1 pair in own/images and own/masks"


@pytest.mark.parametrize("root", ["..", ".", "../own", "./../own/", "masks/.."])
def test_folders_may_be_named_by_the_way_to_them(tmp_path, monkeypatch, capsys, root):
    own = tmp_path / "own"
    fill(own / "images", ["a.jpg", "b.jpg"])
    fill(own / "masks", ["a.png"])
    monkeypatch.chdir(own / "images" if root == ".." else own)
    code, out, err = call(capsys, "data", "check", root)
    assert (code, err) == (1, "")
    assert out.splitlines()[-1].split(None, 1) == [
        "own",
        "NOT WHOLE: 1 image without a mask: b.jpg; looked in images and masks",
    ]


def test_places_in_problems_are_relative(tmp_path, monkeypatch, capsys):
    fill(tmp_path / "data/ECSSD/images", ["a.jpg", "b.jpg"])
    monkeypatch.chdir(tmp_path)
    for root in ("data", "./data", "data/../data"):
        out = call(capsys, "data", "check", root)[1]
        assert "NOT WHOLE: no masks, which belong in ECSSD/ground_truth_mask;" in out


def test_data_check(capsys, tmp_path):
    code, out, err = call(capsys, "data", "check", tmp_path)
    assert (code, err) == (1, f"no data set lies in {tmp_path}\n")
    assert all(" missing: " in line for line in out.splitlines())

    put(tmp_path, "ECSSD", "ECSSD/images", "ECSSD/ground_truth_mask")
    code, out, err = call(capsys, "data", "check", tmp_path)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "ECSSD      ok: 2 pairs in ECSSD/images and ECSSD/ground_truth_mask"
    assert lines[1] == (
        "DUTS-TE    missing: 2 images belong in DUTS-TE/DUTS-TE-Image, their masks in "
        "DUTS-TE/DUTS-TE-Mask"
    )
    assert len(lines) == len(KNOWN)

    fill(tmp_path / "ECSSD/ground_truth_mask", ["extra.png"])
    code, out, _ = call(capsys, "data", "check", tmp_path)
    assert code == 0
    assert out.splitlines()[0].endswith(" (note: 1 mask without an image: extra.png)")

    (tmp_path / "ECSSD/ground_truth_mask/-0.v1.png").unlink()
    code, out, _ = call(capsys, "data", "check", tmp_path)
    assert code == 1
    assert out.splitlines()[0] == (
        "ECSSD      NOT WHOLE: 1 image without a mask: -0.v1.jpg; looked in ECSSD/images and "
        "ECSSD/ground_truth_mask (note: 1 mask without an image: extra.png)"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "absent"], "`root` must be a folder of data sets: got 'absent'"),
        (["check"], "the following arguments are required: ROOT"),
        (["fetch"], "argument ACTION: invalid choice: 'fetch'"),
    ],
)
def test_usage_errors_are_one_sentence(capsys, arguments, sentence):
    code, out, err = call(capsys, "data", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert sentence in err


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`name` must be one of ECSSD, .*: got 'ecssd'"):
        find_set("ecssd", tmp_path)
