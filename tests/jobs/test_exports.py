"""Objects in files: COCO, YOLO and label images, read back by their own readers."""

from __future__ import annotations

import errno
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import files_in, records
from helpers.scenes import SIZES, coco_of, labeler, run, scene
from selfment import CutOptions, Objects, PseudoLabeler, refine_mask
from selfment.images.draw import label_image
from selfment.images.load import find_images
from selfment.jobs import folder as output_folder
from selfment.jobs.coco import coco_record
from selfment.jobs.exports import as_instances, yolo_lines
from selfment.jobs.label import LabelSummary, label_images
from selfment.jobs.runner import Runner
from selfment.methods import MultiObject, Selfment


def test_where_masks_overlap_the_earlier_one_counts():
    masks = np.zeros((4, 5, 6), dtype=bool)
    masks[0, 1:3, 1:4] = True
    masks[1, 1:3, 1:3] = True  # nothing is left of it
    masks[2, 2:5, 2:5] = True
    masks[3, 0, 5] = True
    expected = np.zeros((5, 6), dtype=int)
    for number in (4, 3, 2, 1):
        expected[masks[number - 1]] = number
    found = as_instances(masks, (6, 5))
    assert np.array_equal(found, expected)
    assert found.dtype == np.uint16
    assert set(np.unique(found)) == {0, 1, 3, 4}
    assert (as_instances([], (6, 5)) == np.zeros((5, 6))).all()
    lines = [line.split() for line in yolo_lines(found).splitlines()]
    assert [
        float(value) * side for value, side in zip(lines[1][1:], (6, 5, 6, 5), strict=True)
    ] == [pytest.approx(value, abs=1e-6) for value in (3.5, 3.5, 3, 3)]
    scores = [
        annotation["score"]
        for annotation in coco_record(found, [0.9, 0.8, 0.7, 0.6])["annotations"]
    ]
    assert scores == [0.9, 0.7, 0.6]


@pytest.mark.parametrize(("count", "bits"), [(0, 8), (255, 8), (256, 16), (700, 16)])
def test_label_images_have_any_number_of_objects(count, bits, tmp_path):
    instances = np.arange(30 * 40).reshape(30, 40).astype(np.uint16)
    instances[instances > count] = 0
    label_image(instances).save(tmp_path / "labels.png")
    # The header states the bits of a sample, and that the image is grey.
    assert (tmp_path / "labels.png").read_bytes()[24:26] == bytes([bits, 0])
    read = Image.open(tmp_path / "labels.png")
    assert np.array_equal(np.asarray(read), instances)


def test_too_many_masks():
    masks = (np.zeros((1, 1), dtype=bool) for _ in range(65536))
    with pytest.raises(ValueError, match="`masks` must be 65535 at most: got 65536"):
        as_instances(masks, (1, 1))


def test_all_formats_say_the_same(scenes, tmp_path):
    out = tmp_path / "out"
    assert run([scenes], out, formats=("png", "coco", "yolo")) == LabelSummary(labelled=3)
    coco = coco_of(out / "annotations.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == sorted(SIZES)
    assert [image["id"] for image in coco.dataset["images"]] == [1, 2, 3]
    assert [category["name"] for category in coco.dataset["categories"]] == ["object"]
    ids = [annotation["id"] for annotation in coco.dataset["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) > 3
    for image in coco.dataset["images"]:
        name, size = image["file_name"], (image["width"], image["height"])
        assert size == SIZES[name]
        objects = labeler()(scenes / name)
        expected = np.asarray(
            Image.fromarray(objects.instances.numpy().astype(np.uint8)).resize(
                size, Image.Resampling.NEAREST
            )
        )
        png = np.asarray(Image.open((out / name).with_suffix(".png")))
        assert np.array_equal(png, expected)
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        lines = (out / "labels" / name).with_suffix(".txt").read_text().splitlines()
        assert len(found) == len(lines) == len(objects.masks) > 0
        for k, (annotation, line) in enumerate(zip(found, lines, strict=True)):
            mask = png == k + 1
            assert np.array_equal(coco.annToMask(annotation), mask)
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert annotation["bbox"] == box
            assert annotation["area"] == mask.sum()
            assert (annotation["iscrowd"], annotation["category_id"]) == (0, 1)
            assert annotation["score"] == max(0, 1 - objects.eigenvalues[k].item())
            kind, *values = line.split()
            cx, cy, w, h = (
                float(value) * side for value, side in zip(values, 2 * size, strict=True)
            )
            assert kind == "0"
            assert [cx - w / 2, cy - h / 2, w, h] == pytest.approx(box, abs=1e-5)
    record = records(out)["b.jpg"]
    files = (record["mask"], record["boxes"], record["annotations"])
    assert files == ("sub/b.png", "labels/sub/b.txt", "annotations/sub/b.json")
    assert record["objects"] == len(record["eigenvalues"]) == len(record["separations"])


def test_one_mask_is_one_object(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out, labeler(Selfment()), formats=("png", "coco", "yolo"))
    coco = coco_of(out / "annotations.json")
    for annotation in coco.dataset["annotations"]:
        name = coco.loadImgs(annotation["image_id"])[0]["file_name"]
        png = np.asarray(Image.open((out / name).with_suffix(".png")))
        assert set(np.unique(png)) == {0, 255}
        assert np.array_equal(coco.annToMask(annotation), png > 0)
        value = labeler(Selfment())(scenes / name).eigenvalue.item()
        assert annotation["score"] == max(0, 1 - value)
        assert len((out / "labels" / name).with_suffix(".txt").read_text().splitlines()) == 1
    assert len(coco.dataset["annotations"]) == 3


class Blind(PseudoLabeler):
    """Finds nothing."""

    def start_batch(self, batch):
        images = [
            Objects(
                *(
                    value[:0] if value.ndim != 2 or name == "boxes" else 0 * value
                    for name, value in vars(objects).items()
                )
            )
            for objects in super().start_batch(batch)()
        ]
        return lambda: images


def test_images_without_objects(scenes, tmp_path):
    out = tmp_path / "out"
    blind = Blind(size=160, method=MultiObject(2))
    assert run([scenes], out, blind, formats=("png", "coco", "yolo"), overlays=True).labelled == 3
    coco = coco_of(out / "annotations.json")
    assert (len(coco.dataset["images"]), coco.dataset["annotations"]) == (3, [])
    assert (out / "labels/a.txt").read_bytes() == b""
    assert not np.asarray(Image.open(out / "a.png")).any()
    assert run([scenes], out, blind, formats=["yolo"]) == LabelSummary(skipped=3)
    (out / "labels/a.txt").unlink()
    (out / "sub/b.png").write_bytes(b"")
    assert run([scenes], out, blind, formats=["yolo"]) == LabelSummary(labelled=1, skipped=2)
    assert (out / "labels/a.txt").read_bytes() == b""
    assert run([scenes], out, blind, formats=["png"]) == LabelSummary(labelled=1, skipped=2)
    assert (out / "sub/b.png").stat().st_size > 0


def test_the_same_run_gives_the_same_bytes_whatever_its_order(scenes, tmp_path):
    entries = find_images([scenes])
    for name, order in (("one", entries), ("two", entries[::-1])):
        label_images(order, tmp_path / name, labeler(), formats=["coco"], progress=False)
    first = (tmp_path / "one/annotations.json").read_bytes()
    assert first == (tmp_path / "two/annotations.json").read_bytes()


def test_what_is_wanted_anew_is_done_and_the_rest_skipped(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out)
    assert run([scenes], out) == LabelSummary(skipped=3)
    assert run([scenes], out, formats=("png", "yolo")) == LabelSummary(labelled=3)
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(skipped=3)
    (out / "labels/a.txt").unlink()
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=1, skipped=2)
    for option in ({"fill_holes": True}, {"largest_component": True}, {"refine": "bilateral"}):
        assert run([scenes], out, **option) == LabelSummary(labelled=3)
        assert run([scenes], out, **option) == LabelSummary(skipped=3)
    assert run([scenes], out, labeler(MultiObject(2)), refine="bilateral") == LabelSummary(
        labelled=3
    )
    assert run([scenes], out, labeler(Selfment()), refine="bilateral") == LabelSummary(labelled=3)


def test_files_of_the_same_label_stay_done(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out, overlays=True)
    assert run([scenes], out, formats=["coco"]) == LabelSummary(labelled=3)
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=3)
    assert run([scenes], out, formats=("png", "coco", "yolo"), overlays=True) == LabelSummary(
        skipped=3
    )
    fields = ("mask", "annotations", "boxes", "overlay")
    files = ["sub/b.png", "annotations/sub/b.json", "labels/sub/b.txt", "overlays/sub/b.jpg"]
    assert [records(out)["b.jpg"][field] for field in fields] == files
    # Not those that are lost, nor those of what the image was before.
    (out / "sub/b.png").unlink()
    (out / "labels/sub/b.txt").unlink()
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=1, skipped=2)
    assert [records(out)["b.jpg"][field] for field in fields] == [None, *files[1:]]
    scene(scenes / "a.png", (70, 70), 5)
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=1, skipped=2)
    expected = [None, None, "labels/a.txt", None]
    assert [records(out)["a.png"][field] for field in fields] == expected


def test_no_file_of_another_label_stays(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out, formats=("png", "coco", "yolo"), overlays=True)
    other = labeler(Selfment(CutOptions(tau="auto"), min_confidence=0.25))
    assert run([scenes / "sub"], out, other) == LabelSummary(labelled=2)
    of_a = ["a.png", "annotations/a.json", "images/a.png", "labels/a.txt", "overlays/a.jpg"]
    both = ["annotations.json", "data.yaml", "images.txt", "labels.jsonl", "sub/b.png", "sub/c.png"]
    assert files_in(out) == sorted([*of_a, *both])
    images = coco_of(out / "annotations.json").dataset["images"]
    assert [one["file_name"] for one in images] == ["a.png"]
    assert run([scenes], out, other, formats=["coco"]) == LabelSummary(labelled=3)
    run([scenes], tmp_path / "new", other, formats=["coco"])
    expected = (tmp_path / "new/annotations.json").read_bytes()
    assert (out / "annotations.json").read_bytes() == expected
    assert not (out / "a.png").exists()
    assert (out / "sub/b.png").exists()


def test_no_file_of_a_label_that_a_killed_run_left_stays(scenes, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_record_written", lambda self, most: None)
        run([scenes], out, labeler(tau=0.4), formats=["coco", "yolo"])
    assert len(files_in(out)) == 3 * 2 + 4
    assert run([scenes], out) == LabelSummary(labelled=3)
    masks = ["a.png", "sub/b.png", "sub/c.png"]
    sets = ["annotations.json", "data.yaml", "images.txt"]
    assert files_in(out) == sorted([*masks, *sets, "labels.jsonl"])


def test_files_of_others_are_never_removed(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out)
    for name in ("labels/a.txt", "overlays"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    assert run([scenes], out, labeler(tau=0.4)) == LabelSummary(labelled=3)
    assert (out / "labels/a.txt").read_text() == (out / "overlays").read_text() == "mine"


def test_an_error_costs_no_file_of_the_same_label(scenes, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run([scenes], out, formats=("png", "coco"))
    whole = (out / "annotations.json").read_bytes()
    files = sorted(out.rglob("*.*g")) + sorted((out / "annotations").rglob("*.json"))

    def full(path, write):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "write_atomically", full)
        assert run([scenes], out, formats=["yolo"]) == LabelSummary(failed=3)
    assert (out / "annotations.json").read_bytes() == whole
    away = (scenes / "a.png").rename(tmp_path / "a.png")
    entries = find_images([scenes], out=out)
    away.rename(scenes / "a.png")
    found = find_images([scenes], out=out)
    assert len(entries) == len(found) - 1
    away = (scenes / "a.png").rename(tmp_path / "a.png")
    assert label_images(found, out, labeler(), formats=["png"], progress=False).failed == 1
    away.rename(scenes / "a.png")
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=3)
    assert all(file.exists() for file in files)
    assert (out / "annotations.json").read_bytes() == whole
    assert run([scenes], out, formats=("png", "coco", "yolo")) == LabelSummary(skipped=3)


def test_files_of_others_are_neither_written_over_nor_removed(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    run([scenes], out, formats=["png"])
    (out / "labels").mkdir()
    own = out / "labels/a.txt"
    own.write_text("by hand")
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=2, failed=1)
    assert "must hold no labels/a.txt of another program" in capsys.readouterr().err
    assert run([scenes], out, labeler(tau=0.3), formats=["png"]) == LabelSummary(labelled=3)
    assert own.read_text() == "by hand"
    assert not (out / "labels/sub/b.txt").exists()


def test_a_file_of_boxes_that_was_cut_off_is_made_again(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out, formats=["yolo"])
    assert (out / "labels/a.txt").read_text()
    (out / "labels/a.txt").write_text("")
    assert run([scenes], out, formats=["yolo"]) == LabelSummary(labelled=1, skipped=2)
    assert (out / "labels/a.txt").read_text()


def test_images_of_one_name_are_told_apart(scenes, tmp_path):
    other = scene(tmp_path / "other/a.png", (40, 40), 7)
    out = tmp_path / "out"
    run([scenes], out, formats=["coco"])
    run([other], out, formats=["coco"])
    images = coco_of(out / "annotations.json").dataset["images"]
    names = [one["file_name"] for one in images]
    assert names == [*(f"in/{name}" for name in ("a.png", "sub/b.jpg", "sub/c.png")), "other/a.png"]
    assert (images[3]["width"], images[0]["width"]) == (40, 90)
    assert str(tmp_path) not in (out / "annotations.json").read_text()


def test_refined_masks_are_those_of_refine_mask(scenes, tmp_path):
    out = tmp_path / "out"
    steps = {"fill_holes": True, "largest_component": True}
    run([scenes], out, refine="crf", formats=("png", "coco"), **steps)
    coco = coco_of(out / "annotations.json")
    plain = refined = 0
    for image in coco.dataset["images"]:
        path = scenes / image["file_name"]
        objects = labeler()(path)
        masks = [refine_mask(mask, path, "crf", **steps) for mask in objects.masks]
        expected = as_instances(masks, SIZES[image["file_name"]])
        png = np.asarray(Image.open((out / image["file_name"]).with_suffix(".png")))
        assert np.array_equal(png, expected)
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert sum(coco.annToMask(one).sum() for one in found) == (png > 0).sum()
        plain += sum(refine_mask(mask, path).sum() for mask in objects.masks)
        refined += (png > 0).sum()
    assert plain != refined


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"formats": ["png", "voc"]},
            "`formats` must be 'png' or 'coco' or 'yolo' or 'yolo-seg' or 'fiedler': got 'voc'",
        ),
        ({"formats": []}, r"`formats` must be one format at least: got \[\]"),
        ({"refine": "sharpen"}, "`refine` must be 'bilateral' or .* or 'crf': got 'sharpen'"),
    ],
)
def test_options_are_checked_before_the_run(scenes, tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run([scenes], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [("pycocotools", {"formats": ["coco"]}, "coco"), ("kornia", {"refine": "guided"}, "refine")],
)
def test_missing_libraries_are_named_before_the_run(
    scenes, tmp_path, monkeypatch, module, options, extra
):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'needs? {module}.*pip install "selfment\[{extra}\]"'):
        run([scenes], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
