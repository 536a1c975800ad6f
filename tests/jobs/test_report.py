"""The page of labels as a file: what it says of each image, and what it lacks."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from helpers.commands import call, label
from helpers.pages import Reader, assert_loads_nothing, data_of
from helpers.pictures import files_in, picture, records, things
from selfment.evaluation.pairs import files_by_stem
from selfment.images import find_images
from selfment.jobs.report import report_labels
from selfment.util.lines import with_checksum

EVIL = "</script><b>\"ü' & 雪.jpg"


def folder_of(tmp_path, *names: str):
    return things(tmp_path / "photos", *names)


def items_of(page):
    return {item["name"]: item for item in data_of(page)["items"]}


def picture_of(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_label_writes_the_page_and_keeps_fiedler_vectors(capsys, tmp_path):
    photos, out = folder_of(tmp_path, "a.jpg", "sub/b.png"), tmp_path / "out"
    code, said = label(capsys, photos, out, "--report", tmp_path / "labels.html")
    assert code == 0
    assert said.splitlines()[-1].startswith(
        f"the labels of 2 images are in {tmp_path / 'labels.html'} (0.0 MB)"
    )
    assert files_in(out) == ["a.png", "fiedler/a.jpg", "fiedler/sub/b.jpg", "labels.jsonl",
                             "sub/b.png"]  # fmt: skip
    assert Image.open(out / "fiedler/a.jpg").mode == "L"
    item = items_of(tmp_path / "labels.html")["sub/b.png"]
    record = records(out)["b.png"]
    mask = np.asarray(Image.open(out / "sub/b.png"))
    assert item["kind"] == "label"
    assert item["confidence"] == record["confidence"]
    assert item["area"] == (mask > 0).sum()
    assert item["foreground"] == (mask > 0).mean()
    assert picture_of(item["photo"]).size == tuple(item["box"]) == (120, 90)
    assert picture_of(item["vector"]).size == Image.open(out / "fiedler/sub/b.jpg").size
    assert [number for number, _ in item["paths"]] == [1]
    # Vectors are no masks to score, and no photographs to label.
    assert set(files_by_stem(out, "pred")) == {"a", "sub/b"}
    assert [entry.name for entry in find_images([tmp_path])] == ["photos/a.jpg", "photos/sub/b.png"]
    # The second run has nothing to do, and writes the same page.
    before = (tmp_path / "labels.html").read_bytes()
    assert "2 already done" in label(capsys, photos, out, "--report", tmp_path / "labels.html")[1]
    assert (tmp_path / "labels.html").read_bytes() == before


def test_report_shows_everything_as_what_it_is(capsys, tmp_path):
    names = ["gone.jpg", "flat.png", "vector.jpg", "mask.jpg", "two\nlines.jpg", EVIL]
    photos, out = folder_of(tmp_path, *(name.replace("/", "") for name in names)), tmp_path / "out"
    Image.new("RGB", (40, 30), (80, 90, 100)).save(photos / "flat.png")
    (photos / "broken.jpg").write_text("no image")
    code, _ = label(
        capsys, photos, out, "--format", "png,fiedler", "--size", 192, "--min-confidence", 0.001
    )
    assert code == 1
    (photos / "gone.jpg").unlink()
    (out / "fiedler/vector.jpg").write_bytes(b"broken")
    (out / "mask.png").unlink()
    code, _, said = call(capsys, "report", out)
    assert code == 0
    page = out / "report.html"
    assert said.splitlines()[-1] == (
        f"the labels of 7 images are in {page} (0.1 MB), 2 failed, 1 without a photograph, "
        "1 without a Fiedler vector"
    ).replace("0.1 MB", f"{page.stat().st_size / 1e6:.1f} MB")
    assert_loads_nothing(page)
    notes = [text for tag, text in Reader(page.read_text()).texts if tag == "p"]
    assert any("missing or cannot be read: 1 of 5." in note for note in notes)
    assert any("Labels without a Fiedler vector to show: 1 of 5." in note for note in notes)
    items = items_of(page)
    assert items["broken.jpg"]["kind"] == "failed"
    assert "not an image that Pillow knows" in items["broken.jpg"]["error"]
    assert items["gone.jpg"]["photo"] is None
    assert items["gone.jpg"]["paths"]
    assert "no such file" in items["gone.jpg"]["notes"][0]
    assert items["flat.png"]["rejected"]
    assert (items["flat.png"]["area"], items["flat.png"]["paths"]) == (0, [])
    assert items["vector.jpg"]["notes"][0].startswith("the Fiedler vector cannot be read")
    assert items["mask.jpg"]["kind"] == "failed"  # so that it cannot be accepted
    assert items["mask.jpg"]["error"].startswith("the mask cannot be read: No such file")
    assert [name for name, item in items.items() if not item["listable"]] == ["two\nlines.jpg"]
    assert EVIL.replace("/", "") in items


def test_photographs_that_have_moved(capsys, tmp_path):
    photos, out = folder_of(tmp_path, "a.jpg", "b.jpg"), tmp_path / "out"
    label(capsys, photos, out)
    photos.rename(tmp_path / "elsewhere")
    assert report_labels(out, progress=False).no_photo == 2
    picture(tmp_path / "elsewhere/b.jpg", seed=9, size=(90, 60))
    summary = report_labels(
        out, tmp_path / "page.html", images=tmp_path / "elsewhere", progress=False
    )
    assert (summary.no_photo, summary.no_vector, summary.no_mask) == (0, 2, 0)
    items = items_of(tmp_path / "page.html")
    assert items["a.jpg"]["notes"] == []
    assert items["b.jpg"]["notes"] == ["the photograph is not the file that was labelled"]


def test_objects_have_an_outline_each(capsys, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    picture(photos / "a.jpg")
    code, _ = label(capsys, photos, out, "--objects", 3, "--report", tmp_path / "page.html")
    assert code == 0
    numbers = np.zeros((30, 50), np.uint16)
    numbers[2:9, 3:9], numbers[12:20, 20:40], numbers[25:, :4] = 1, 300, 7
    Image.fromarray(numbers).save(out / "a.png")
    report_labels(out, progress=False)
    item = items_of(out / "report.html")["a.jpg"]
    assert item["paths"] == [
        [1, "M3 2h6v7h-6v-7z"],
        [7, "M0 25h4v5h-4v-5z"],
        [300, "M20 12h20v8h-20v-8z"],
    ]
    assert item["area"] == 42 + 160 + 20
    assert item["vector"] is None


def test_masks_that_were_edited(capsys, tmp_path):
    """A label that has changed has another digest: the verdict on it counts no longer."""
    photos, out = folder_of(tmp_path, "a.jpg", "b.jpg"), tmp_path / "out"
    label(capsys, photos, out, "--report", tmp_path / "page.html")
    before = items_of(tmp_path / "page.html")
    mask = np.zeros((90, 120, 3), np.uint8)
    mask[10:20, 10:30] = 255
    Image.fromarray(mask).save(out / "a.png")
    report_labels(out, tmp_path / "page.html", progress=False)
    after = items_of(tmp_path / "page.html")
    assert after["a.jpg"]["paths"] == [[1, "M10 10h20v10h-20v-10z"]]
    assert after["a.jpg"]["digest"] != before["a.jpg"]["digest"]
    assert after["b.jpg"]["digest"] == before["b.jpg"]["digest"]


def test_shards_and_a_run_that_was_killed(capsys, tmp_path):
    photos, out = folder_of(tmp_path, "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
    label(capsys, photos, out)
    lines = (out / "labels.jsonl").read_text().splitlines(keepends=True)
    (out / "labels.jsonl").write_text(lines[0])
    (out / "labels-rank0.jsonl").write_text(lines[1])
    (out / "labels-rank1.jsonl").write_text(lines[2][:-30])
    report_labels(out, progress=False)
    names = [json.loads(line)["image"] for line in lines[:2]]
    assert sorted(items_of(out / "report.html")) == sorted(names)


def test_names_that_a_list_cannot_hold(capsys, tmp_path):
    """Lines of a list are stripped, and those that begin with # are comments."""
    names = ["#a.jpg", " b.jpg", "c\rd.jpg", "sub/#e.jpg", "f g.jpg"]
    photos, out = folder_of(tmp_path, *names), tmp_path / "out"
    label(capsys, photos, out)
    report_labels(out, progress=False)
    listable = {name for name, item in items_of(out / "report.html").items() if item["listable"]}
    assert listable == {*names[3:]}


def test_videos_are_listed(tmp_path):
    """A video has no thumbnail and no digest, so that it cannot be accepted."""
    record = {"image": "clip.mp4", "name": "clip.mp4", "mask": "clip.mp4", "settings": "1"}
    failed = {**record, "image": "bad.mp4", "error": "cannot label bad.mp4: it ends early"}
    lines = [with_checksum(json.dumps(each)) + "\n" for each in (record, failed)]
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    summary = report_labels(tmp_path, progress=False)
    assert (summary.images, summary.videos, summary.failed) == (2, 1, 1)
    items = items_of(tmp_path / "report.html")
    kinds = {name: (item["kind"], item["photo"], item["digest"]) for name, item in items.items()}
    assert kinds == {"clip.mp4": ("video", None, None), "bad.mp4": ("failed", None, None)}


def test_other_formats_have_no_mask_to_show(capsys, tmp_path):
    photos, out = folder_of(tmp_path, "a.jpg"), tmp_path / "out"
    label(capsys, photos, out, "--format", "yolo")
    summary = report_labels(out, progress=False)
    assert summary.no_mask == 1
    assert items_of(out / "report.html")["a.jpg"]["notes"] == ["no mask was written"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["report", "absent"], "`folder` must be the output folder of `selfment label`"),
        (["report", "photos"], "`folder` must be the output folder of `selfment label`"),
        (["report", "out", "--images", "x"], "`images` must be a folder that exists: got 'x'"),
        (
            ["label", "photos", "--out", "new", "--report", "photos"],
            "`report` must be a file, not a folder: got 'photos'",
        ),
        (
            ["label", "photos", "--out", "new", "--report", "photos/a.jpg"],
            "`report` must be a file .html or .htm: got 'photos/a.jpg'",
        ),
        (
            ["report", "out", "--out", "out/labels.jsonl"],
            "`out` must be a file .html or .htm: got 'out/labels.jsonl'",
        ),
        (
            ["label", "photos", "--out", "new", "--objects", "2", "--format", "fiedler"],
            "`format` must be formats without 'fiedler' where the method has no Fiedler vector: "
            "got 'objects'",
        ),
    ],
)
def test_errors(capsys, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    label(capsys, folder_of(tmp_path, "a.jpg"), tmp_path / "out")
    code, _, said = call(capsys, *words)
    assert code == 2
    assert said.splitlines()[-1].startswith(f"selfment {words[0]}: {sentence}")
