"""Records of many images: which one counts, what planning costs, and links in the way."""

from __future__ import annotations

import json
import os

import pytest

from selfment import PseudoLabeler
from selfment.images.load import find_images
from selfment.jobs.folder import OutputFolder
from selfment.jobs.label import LabelSummary, label_images
from selfment.jobs.label_job import LabelJob
from selfment.jobs.records import Records

PHOTOS = tuple(f"{index:02}.png" for index in range(12))  # of the fixture photos_in


def run(folder, out) -> LabelSummary:
    labeler = PseudoLabeler(size=96)
    return label_images(find_images([folder], out=out), out, labeler, progress=False)


@pytest.mark.slow
def test_the_latest_record_counts_whatever_the_clocks_say(tmp_path, monkeypatch):
    """A machine whose clock is an hour ahead is killed; one with the right time goes on."""
    path = tmp_path / "labels.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr("selfment.jobs.records.time.time", lambda: 5000.0)
        ahead = Records(path, "mask", (1, 2))
        ahead.add({"image": "a", "mask": "a.png", "error": "the run was interrupted"})
        ahead._release()
        patch.setattr("selfment.jobs.records.time.time", lambda: 1400.0)
        right = Records(path, "mask", (0, 2))
        right.add({"image": "a", "mask": "a.png", "error": None})
        assert right.get("a")["error"] is None
        right.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["image"], row["error"]) for row in rows] == [("a", None)]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_records_that_are_added_at_the_end_are_merged(tmp_path, world):
    path = tmp_path / "labels.jsonl"
    records = Records(path, "mask", (0, world))
    for image in ("a", "b"):
        records.add({"image": image, "mask": f"{image}.png"})
    records.close(lambda found: records.add({**next(iter(found)), "seen": True}))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["image"], row.get("seen")) for row in rows] == [("a", True), ("b", None)]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_folders_are_looked_up_once(photos_in, tmp_path, monkeypatch):
    images = find_images([photos_in])
    folder = OutputFolder(tmp_path / "out", LabelJob(PseudoLabeler()))
    asked = []
    realpath = os.path.realpath
    monkeypatch.setattr("os.path.realpath", lambda path: asked.append(path) or realpath(path))
    assert len(folder.plan(images)) == len(images)
    folder.records.close()
    made = ("out", "out/annotations", "out/fiedler", "out/labels", "out/overlays")
    assert sorted(map(str, asked)) == sorted(map(str, (photos_in, *map(tmp_path.joinpath, made))))


@pytest.mark.slow
def test_a_link_to_an_input_among_the_masks_is_no_way_to_it(photos_in, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    before = (photos_in / "00.png").read_bytes()
    (out / "00.png").symlink_to(photos_in / "00.png")
    assert run(photos_in, out) == LabelSummary(labelled=12)
    assert (photos_in / "00.png").read_bytes() == before
    assert (out / "00.png").is_symlink()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "00.jpg").symlink_to(photos_in / "00.png")
    with pytest.raises(ValueError, match=r"`out` must not hold the inputs: 00\.png would replace"):
        run(linked, photos_in)
    assert (photos_in / "00.png").read_bytes() == before


@pytest.mark.slow
def test_a_mask_that_a_power_failure_left_empty_is_made_again(photos_in, tmp_path):
    out = tmp_path / "out"
    run(photos_in, out)
    whole = (out / "03.png").read_bytes()
    (out / "03.png").write_bytes(b"")
    assert run(photos_in, out) == LabelSummary(labelled=1, skipped=11)
    assert (out / "03.png").read_bytes() == whole


def test_a_file_of_captions_is_anothers(photos_in, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lines = [{"image": f"{name}.png", "caption": "a dog"} for name in ("00", "01", "00")]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (out / "labels.jsonl").write_text(text)
    with pytest.raises(ValueError, match=r"`out` must hold no file labels.jsonl of another kind"):
        run(photos_in, out)
    assert (out / "labels.jsonl").read_text() == text


def test_a_damaged_line_of_one_process_voids_the_records_of_others(tmp_path, capsys):
    path = tmp_path / "labels.jsonl"
    whole = Records(path, "mask")
    for image in ("a", "b"):
        whole.add({"image": image, "mask": f"{image}.png", "settings": "A"})
    whole.close()
    rank = Records(path, "mask", (0, 2))
    rank.add({"image": "a", "mask": "a.png", "settings": "B"})
    rank._release()
    part = tmp_path / "labels-rank0.jsonl"
    part.write_text(part.read_text().replace('"B"', '"C"'))
    again = Records(path, "mask")
    assert again.get("a") == {}
    assert again.get("b")["settings"] == "A"
    assert "1 line is damaged" in capsys.readouterr().err
    again.close()
