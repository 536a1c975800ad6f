"""The folder job: masks, records, resuming, and images that fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pictures import picture, records
from helpers.runs import results
from selfment import CutOptions, PseudoLabeler
from selfment.images.draw import CAPTION
from selfment.images.load import find_images
from selfment.jobs.label import LabelSummary, label_images
from selfment.jobs.runner import Runner
from selfment.methods import Selfment

PHOTOS = ("a.jpg", "sub/b.png", "sub/c.png")  # of the fixture photos_in


def at_tau(tau: float) -> PseudoLabeler:
    return PseudoLabeler(size=96, batch_size=2, method=Selfment(CutOptions(tau=tau)))


def run(inputs, out: Path, labeler=None, **options) -> LabelSummary:
    labeler = labeler or PseudoLabeler(size=96, batch_size=2)
    return label_images(find_images(inputs, out=out), out, labeler, progress=False, **options)


def test_masks_and_records(photos_in, tmp_path):
    out = tmp_path / "new/out"
    assert run([photos_in], out, overlays=True) == LabelSummary(labelled=3)
    labels = PseudoLabeler(size=96)(photos_in / "sub/b.png")
    mask = Image.open(out / "sub/b.png")
    assert (mask.mode, mask.size) == ("L", (51, 30))
    rows, columns = ((2 * np.arange(side) + 1) * 6 // (2 * side) for side in (30, 51))
    assert np.array_equal(np.asarray(mask), labels.mask.numpy()[np.ix_(rows, columns)] * 255)
    record = records(out)["b.png"]
    assert (record["image"], record["path"]) == ("sub/b.png", str(photos_in / "sub/b.png"))
    assert (record["mask"], record["overlay"]) == ("sub/b.png", "overlays/sub/b.jpg")
    assert record["eigenvalue"] == labels.eigenvalue.item()
    assert record["ipo_iters"] == labels.ipo_iters.item()
    assert record["foreground"] == pytest.approx(labels.mask.float().mean().item())
    assert record["seconds"] > 0
    assert (record["error"], record["notes"]) == (None, [])
    assert Image.open(out / "overlays/sub/b.jpg").height == CAPTION + 30
    assert not list(out.rglob("*.tmp"))


def test_the_mask_has_the_size_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture(tmp_path / "in/a.png")).save(tmp_path / "in/a.png", exif=exif)
    run([tmp_path / "in"], tmp_path / "out")
    assert Image.open(tmp_path / "out/a.png").size == (30, 50)
    assert records(tmp_path / "out")["a.png"]["notes"] == ["rotated as its EXIF data says"]


def test_a_second_run_skips_and_changes_are_redone(photos_in, tmp_path):
    out = tmp_path / "out"
    run([photos_in], out)
    before = (out / "sub/c.png").stat().st_mtime_ns
    assert run([photos_in], out) == LabelSummary(skipped=3)
    assert run([photos_in], out, overlays=True) == LabelSummary(labelled=3)
    assert run([photos_in], out) == LabelSummary(skipped=3)
    (out / "a.png").unlink()
    picture(photos_in / "sub/b.png", 9, (51, 30))
    os.utime(photos_in / "sub/b.png", ns=(1, 1))
    assert run([photos_in], out) == LabelSummary(labelled=2, skipped=1)
    assert run([photos_in], out, at_tau(0.25)) == LabelSummary(labelled=3)
    assert (out / "sub/c.png").stat().st_mtime_ns > before
    assert len(records(out)) == 3


def test_masks_that_were_changed_by_hand_stay(photos_in, tmp_path, capsys):
    """In runs that would make them again: for another format, with other settings, for a page."""
    out = tmp_path / "out"
    run([photos_in], out)
    edited = out / "sub/b.png"
    Image.fromarray(255 - np.asarray(Image.open(edited))).save(edited)
    by_hand = edited.read_bytes()
    sentence = "sub/b.png was changed by hand, and is kept; remove it to label the image again\n"
    for labeler, formats in ((None, ["png", "fiedler"]), (at_tau(0.3), ["png"])):
        capsys.readouterr()
        done = run([photos_in], out, labeler, formats=formats)
        assert done == LabelSummary(labelled=2, skipped=1)
        assert sentence in capsys.readouterr().err
        assert edited.read_bytes() == by_hand
    (out / "sub/c.png").write_bytes(b"no image")
    edited.unlink()
    assert run([photos_in], out) == LabelSummary(labelled=3)
    run([photos_in], tmp_path / "alone")
    assert results(out) == results(tmp_path / "alone")


def test_masks_that_a_run_did_not_make_are_known_to_be_changed(photos_in, tmp_path):
    out = tmp_path / "out"
    run([photos_in], out)
    run([photos_in], out, formats=["fiedler"])  # the masks stay, and so does what is known of them
    edited = out / "sub/b.png"
    Image.fromarray(255 - np.asarray(Image.open(edited))).save(edited)
    by_hand = edited.read_bytes()
    assert run([photos_in], out, at_tau(0.3)) == LabelSummary(labelled=2, skipped=1)
    assert edited.read_bytes() == by_hand


def test_a_skipping_run_does_not_load_the_backbone(photos_in, tmp_path, monkeypatch):
    run([photos_in], tmp_path / "out")
    labeler = PseudoLabeler(size=96)
    run([photos_in], tmp_path / "out", labeler)
    assert labeler._backbone is None


def test_unreadable_images_are_reported_and_tried_again(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    (photos_in / "sub/c.png").write_bytes((photos_in / "sub/b.png").read_bytes()[:400])
    assert run([photos_in], out) == LabelSummary(labelled=2, failed=1)
    sentence = f"cannot read {photos_in}/sub/c.png: "
    assert capsys.readouterr().err.startswith(sentence)
    record = records(out)["c.png"]
    assert record["error"].startswith(sentence)
    assert record["mask"] is None
    assert not (out / "sub/c.png").exists()
    picture(photos_in / "sub/c.png")
    assert run([photos_in], out) == LabelSummary(labelled=1, skipped=2)
    assert records(out)["c.png"]["error"] is None


class Picky(PseudoLabeler):
    """Fails on any batch with the image whose upper left pixel is green."""

    def start_batch(self, batch):
        if (batch[:, 1, 0, 0] > 0.9).any():
            raise RuntimeError("it is green\nand has two lines")
        return super().start_batch(batch)


def test_one_bad_image_does_not_cost_its_batch(photos_in, tmp_path):
    Image.new("RGB", (20, 20), (0, 255, 0)).save(photos_in / "sub/bad.png")
    labeler = Picky(size=96, batch_size=4)
    assert run([photos_in], tmp_path / "out", labeler) == LabelSummary(labelled=3, failed=1)
    error = records(tmp_path / "out")["bad.png"]["error"]
    assert error == f"cannot label {photos_in}/sub/bad.png: it is green"


def test_a_mask_that_cannot_be_written_is_reported(photos_in, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").write_text("in the way")
    assert run([photos_in], out) == LabelSummary(labelled=1, failed=2)
    assert "cannot label" in records(out)["b.png"]["error"]


def test_another_images_mask_is_never_replaced(photos_in, tmp_path):
    out = tmp_path / "out"
    run([photos_in], out)
    first = (out / "a.png").read_bytes()
    other = picture(tmp_path / "other/a.jpg", 5, (40, 40))
    assert run([other], out) == LabelSummary(labelled=1)
    assert (out / "a.png").read_bytes() == first
    lines = [json.loads(line) for line in (out / "labels.jsonl").read_text().splitlines()]
    masks = {line["path"]: line["mask"] for line in lines}
    assert masks[str(photos_in / "a.jpg")] == "a.png"
    assert masks[str(other)].startswith("a-")
    assert Image.open(out / masks[str(other)]).size == (40, 40)
    assert run([other], out) == LabelSummary(skipped=1)


def test_inputs_are_never_replaced(tmp_path):
    source = picture(tmp_path / "a.png")
    before = source.read_bytes()
    with pytest.raises(ValueError, match=r"`out` must not hold the inputs: a\.png would replace"):
        run([source], tmp_path)
    assert source.read_bytes() == before


def test_inputs_are_never_replaced_through_a_link(tmp_path):
    source = picture(tmp_path / "photos/a.png")
    before = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for inputs in ([tmp_path / "link"], [tmp_path / "link/a.png"]):
        with pytest.raises(ValueError, match="`out` must not"):
            run(inputs, tmp_path / "photos")
    assert source.read_bytes() == before


def test_files_of_others_are_never_replaced(photos_in, tmp_path, capsys):
    out = tmp_path / "out"
    foreign = picture(out / "a.png")
    before = foreign.read_bytes()
    assert run([photos_in], out) == LabelSummary(labelled=3)
    assert foreign.read_bytes() == before
    name = records(out)["a.jpg"]["mask"]
    assert name != "a.png"
    assert (out / name).is_file()
    why = f"in {out}, because there are files that no record mentions"
    assert f"1 image has another name {why}: {name} for a.png\n" in capsys.readouterr().err
    assert run([photos_in], out) == LabelSummary(skipped=3)
    assert "another name" not in capsys.readouterr().err
    (out / "labels.jsonl").unlink()
    run([photos_in], out)
    assert f"3 images have other names {why}: " in capsys.readouterr().err


def test_records_of_another_kind_are_refused(photos_in, tmp_path):
    file = tmp_path / "out/labels.jsonl"
    file.parent.mkdir()
    file.write_text('{"label": 3}\n')
    with pytest.raises(ValueError, match=r"`out` must hold no file labels.jsonl of another kind"):
        run([photos_in], tmp_path / "out")
    assert file.read_text() == '{"label": 3}\n'


def test_one_run_at_a_time(photos_in, tmp_path):
    from selfment.jobs.records import Records

    (tmp_path / "out").mkdir()
    other = Records(tmp_path / "out/labels.jsonl")
    with pytest.raises(ValueError, match="`out` must be used by one run at a time"):
        run([photos_in], tmp_path / "out")
    other.close()
    assert run([photos_in], tmp_path / "out") == LabelSummary(labelled=3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_in_a_folder_are_no_images(photos_in, tmp_path):
    os.mkfifo(photos_in / "pipe.png")
    assert run([photos_in], tmp_path / "out") == LabelSummary(labelled=3)


def test_an_image_that_turned_bad_keeps_its_mask_and_its_name(photos_in, tmp_path):
    source = photos_in / "a.jpg"
    good = source.read_bytes()
    run([photos_in], tmp_path / "out")
    source.write_bytes(good[:100])
    assert run([photos_in], tmp_path / "out") == LabelSummary(skipped=2, failed=1)
    assert records(tmp_path / "out")["a.jpg"]["error"] is not None
    source.write_bytes(good)
    assert run([photos_in], tmp_path / "out") == LabelSummary(skipped=2, labelled=1)
    assert records(tmp_path / "out")["a.jpg"]["mask"] == "a.png"


def test_an_out_that_cannot_be_made(photos_in, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"`out` must be a folder that can be written: got .*file/out"
    ):
        run([photos_in], tmp_path / "file/out")


class Interrupted(PseudoLabeler):
    """Ctrl-C in the third batch."""

    passes = 0

    def start_batch(self, batch):
        self.passes += 1
        if self.passes == 3:
            raise KeyboardInterrupt
        return super().start_batch(batch)


def test_an_interrupted_run_keeps_what_is_done(photos_in, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run([photos_in], out, Interrupted(size=96, batch_size=1))
    assert set(records(out)) == {"a.jpg", "b.png"}
    assert run([photos_in], out) == LabelSummary(labelled=1, skipped=2)


def test_a_redo_that_is_interrupted_is_not_taken_for_done(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run([photos_in], out)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    monkeypatch.setattr(Runner, "_record_written", lambda self, most: None)
    run([photos_in], out, PseudoLabeler("statistics", size=64))
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} != before
    assert run([photos_in], out) == LabelSummary(labelled=3)
    assert {path: path.read_bytes() for path in before} == before


def test_a_record_that_was_cut_off_is_done_again(photos_in, tmp_path):
    out = tmp_path / "out"
    run([photos_in], out)
    text = (out / "labels.jsonl").read_text()
    (out / "labels.jsonl").write_text(text[:-40])
    assert run([photos_in], out) == LabelSummary(labelled=1, skipped=2)
    assert len(records(out)) == 3


def test_lines_are_there_before_the_run_ends(photos_in, tmp_path):
    out = tmp_path / "out"
    seen = []

    class Watching(PseudoLabeler):
        def start_batch(self, batch):
            seen.append(len((out / "labels.jsonl").read_text().splitlines()))
            return super().start_batch(batch)

    for index in range(6):
        picture(photos_in / f"more{index}.png")
    run([photos_in], out, Watching(size=96, batch_size=1))
    assert seen[-1] >= 5


def test_labels_do_not_depend_on_the_batch(photos, tmp_path):
    chosen = photos[:5]
    one = PseudoLabeler(size=160, batch_size=1)
    five = PseudoLabeler(size=160, batch_size=5)
    assert torch.equal(one(chosen).mask, five(chosen).mask)
    for name, labeler in (("one", one), ("five", five)):
        assert run(chosen, tmp_path / name, labeler) == LabelSummary(labelled=5)
    for mask in (tmp_path / "one").glob("*.png"):
        assert mask.read_bytes() == (tmp_path / "five" / mask.name).read_bytes()
