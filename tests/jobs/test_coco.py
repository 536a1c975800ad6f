"""The COCO file of a folder: composed from the annotations of each image, and always whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

from helpers.pictures import records
from helpers.scenes import SIZES, coco_of, labeler, run
from selfment import PseudoLabeler, cli
from selfment.jobs.coco import write_coco
from selfment.jobs.label import LabelSummary
from selfment.jobs.runner import Runner
from selfment.methods import MultiObject


def test_cocoeval_finds_our_annotations_perfect_against_themselves(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    run([scenes], out, formats=["coco"])
    coco = coco_of(out / "annotations.json")
    from pycocotools.cocoeval import COCOeval

    keys = ("image_id", "category_id", "bbox", "segmentation", "score")
    results = [{key: one[key] for key in keys} for one in coco.dataset["annotations"]]
    for kind in ("segm", "bbox"):
        evaluation = COCOeval(coco, coco.loadRes([dict(one) for one in results]), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)
    assert not (out / "a.png").exists()
    assert records(out)["a.png"]["mask"] is None


class Interrupted(PseudoLabeler):
    """Ctrl-C in the second batch."""

    passes = 0

    def start_batch(self, batch):
        self.passes += 1
        if self.passes == 2:
            raise KeyboardInterrupt
        return super().start_batch(batch)


def test_an_interrupted_run_composes_what_is_done_and_the_next_one_the_rest(scenes, tmp_path):
    out = tmp_path / "out"
    model = Interrupted(size=160, batch_size=1, method=MultiObject(3))
    with pytest.raises(KeyboardInterrupt):
        run([scenes], out, model, formats=["coco"])
    names = [one["file_name"] for one in coco_of(out / "annotations.json").dataset["images"]]
    assert names == ["a.png"]
    assert run([scenes], out, formats=["coco"]) == LabelSummary(labelled=2, skipped=1)
    run([scenes], tmp_path / "whole", formats=["coco"])
    expected = (tmp_path / "whole/annotations.json").read_bytes()
    assert (out / "annotations.json").read_bytes() == expected
    (out / "annotations.json").unlink()
    assert run([scenes], out, formats=["coco"]) == LabelSummary(skipped=3)
    assert (out / "annotations.json").read_bytes() == expected


def test_the_last_process_of_a_sharded_run_composes(scenes, tmp_path):
    from selfment.jobs.records import Records

    out = tmp_path / "out"
    out.mkdir()
    other = Records(out / "labels.jsonl", "name", (2, 3))  # another process, at work
    assert run([scenes], out, formats=["coco"], shard=(0, 3)) == LabelSummary(labelled=1)
    assert run([scenes], out, formats=["coco"], shard=(1, 3)) == LabelSummary(labelled=1)
    assert not (out / "annotations.json").exists()
    other.close()
    assert run([scenes], out, formats=["coco"], shard=(2, 3)) == LabelSummary(labelled=1)
    run([scenes], tmp_path / "whole", formats=["coco"])
    expected = (tmp_path / "whole/annotations.json").read_bytes()
    assert (out / "annotations.json").read_bytes() == expected


def test_failed_images_are_not_in_the_set_and_keep_their_name(scenes, tmp_path):
    out = tmp_path / "out"
    run([scenes], out, formats=["coco"])
    good = (scenes / "a.png").read_bytes()
    (scenes / "a.png").write_bytes(good[:100])
    assert run([scenes], out, formats=["coco"]) == LabelSummary(skipped=2, failed=1)
    names = [one["file_name"] for one in coco_of(out / "annotations.json").dataset["images"]]
    assert names == ["sub/b.jpg", "sub/c.png"]
    (scenes / "a.png").write_bytes(good)
    assert run([scenes], out, formats=["coco"]) == LabelSummary(labelled=1, skipped=2)
    assert records(out)["a.png"]["annotations"] == "annotations/a.json"


def test_annotations_that_a_killed_run_left_are_not_in_the_set(scenes, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run([scenes], out, formats=["coco"])
    monkeypatch.setattr(Runner, "_record_written", lambda self, most: None)
    run([scenes], out, labeler(tau=0.4), formats=["coco"])
    assert coco_of(out / "annotations.json").dataset["images"] == []


class Doubtful(PseudoLabeler):
    """Cuts that cost more than they leave."""

    def start_batch(self, batch):
        labels = super().start_batch(batch)()
        return lambda: replace(labels, eigenvalue=labels.eigenvalue + 1.0)


def test_scores_are_never_negative(scenes, tmp_path):
    run([scenes], tmp_path / "out", Doubtful(size=160), formats=["coco"])
    annotations = coco_of(tmp_path / "out/annotations.json").dataset["annotations"]
    assert [annotation["score"] for annotation in annotations] == [0, 0, 0]


@pytest.mark.parametrize("content", ["", "[]", '{"width": 3, "height"', '{"width": 3}', "[" * 9999])
def test_broken_annotations_are_left_out_and_made_again(scenes, tmp_path, capsys, content):
    out = tmp_path / "out"
    run([scenes], out, formats=("coco", "png"))
    whole = (out / "annotations.json").read_bytes()
    broken = out / "annotations/a.json"
    broken.write_text(content)
    (out / "annotations.json").unlink()
    options = ("--size", 160, "--objects", 3, "--format", "coco")
    arguments = [str(value) for value in ("label", scenes / "sub", "--out", out, *options)]
    assert cli.main(arguments) == 1
    errors = capsys.readouterr().err.splitlines()
    said = [line for line in errors if "cannot" in line]
    assert len(said) == 1
    assert said[0].startswith(f"cannot read {broken}: it holds no annotations")
    images = coco_of(out / "annotations.json").dataset["images"]
    assert [one["file_name"] for one in images] == ["sub/b.jpg", "sub/c.png"]
    assert [records(out)["a.png"][field] for field in ("annotations", "mask")] == [None, "a.png"]
    assert len((out / "labels.jsonl").read_text().splitlines()) == 3
    assert cli.main(arguments) == 0
    assert run([scenes], out, formats=["coco"]) == LabelSummary(labelled=1, skipped=2)
    assert (out / "annotations.json").read_bytes() == whole
    assert records(out)["a.png"]["mask"] == "a.png"


def test_annotations_that_are_broken_do_not_stop_those_after_them(scenes, tmp_path):
    run([scenes], tmp_path, formats=["coco"])
    first, *others = (
        (name, "", (tmp_path / "annotations" / name).with_suffix(".json")) for name in sorted(SIZES)
    )
    assert write_coco(tmp_path / "expected.json", others) == {}
    expected = (tmp_path / "expected.json").read_bytes()
    file = first[-1]
    for content in ("{}", '{"width": 3, "height": 2, "annotations": [5]}', None):
        file.unlink()
        if content is None:
            file.mkdir()
        else:
            file.write_text(content)
        (sentence,) = write_coco(tmp_path / "all.json", [first, *others]).values()
        assert sentence.startswith(f"cannot read {file}: ")
        assert (tmp_path / "all.json").read_bytes() == expected


def test_annotations_of_others_are_never_replaced(scenes, tmp_path):
    file = tmp_path / "out/annotations.json"
    file.parent.mkdir()
    file.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"`out` must hold no file annotations\.json of another"):
        run([scenes], tmp_path / "out", formats=["coco"])
    assert file.read_text() == '{"images": []}'
    assert run([scenes], tmp_path / "out") == LabelSummary(labelled=3)
    assert file.read_text() == '{"images": []}'


def test_the_reader_of_torchvision(scenes, tmp_path):
    pytest.importorskip("pycocotools", reason="pycocotools is missing")
    run([scenes], tmp_path / "out", formats=["png", "coco"])
    keys = ["boxes", "labels", "masks"]
    data = CocoDetection(scenes, tmp_path / "out/annotations.json")
    data = wrap_dataset_for_transforms_v2(data, target_keys=keys)
    assert len(data) == 3
    for name, (image, target) in zip(sorted(SIZES), data, strict=True):
        png = np.asarray(Image.open((tmp_path / "out" / name).with_suffix(".png")))
        assert image.size == SIZES[name]
        for number, (mask, box) in enumerate(zip(target["masks"], target["boxes"], strict=True), 1):
            assert np.array_equal(mask.numpy() > 0, png == number)
            y, x = np.nonzero(png == number)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert target["labels"].tolist() == [1] * png.max()
