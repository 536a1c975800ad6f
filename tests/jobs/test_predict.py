"""The prediction job: saliency files, records, resuming, kills, and shares of several processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms

from helpers import mortal, processes
from helpers.commands import call
from helpers.heads import a_head
from helpers.pictures import picture, records
from selfment import PatchHead, PseudoLabeler, Segmenter
from selfment.backbones import load_backbone
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.jobs.predict import PredictionSummary, find_inputs, predict_images
from selfment.jobs.records import Records
from selfment.models.head import HeadInfo, save_head


def run(inputs, out: Path, segmenter=None, **options) -> PredictionSummary:
    segmenter = segmenter or Segmenter(a_head(), "classic", 64, batch_size=2)
    return predict_images(find_inputs(inputs, out=out), out, segmenter, progress=False, **options)


PHOTOS = ("a.jpg", "sub/b.png", "sub/c.png")  # of the fixture photos_in


@pytest.fixture
def head_in(tmp_path):
    save_head(tmp_path / "head", a_head(), HeadInfo("classic"))
    return tmp_path / "head"


@pytest.mark.slow
def test_files_and_records(photos_in, tmp_path):
    out = tmp_path / "out"
    segmenter = Segmenter(a_head(), "classic", 64, batch_size=2)
    expected = segmenter(photos_in / "sub/b.png").numpy()
    level = float(np.median(expected))
    done = run([photos_in], out, segmenter, overlays=True, binary=level)
    assert done == PredictionSummary(predicted=3)
    saliency = Image.open(out / "sub/b_saliency.png")
    assert (saliency.mode, saliency.size) == ("L", (51, 30))
    assert np.array_equal(np.asarray(saliency), np.floor(np.float32(255) * expected))
    mask = np.asarray(Image.open(out / "sub/b_mask.png"))
    assert np.array_equal(mask, (expected > level) * 255)
    assert 0 < mask.mean() < 255
    assert Image.open(out / "overlays/sub/b_overlay.jpg").size == (51, 30)
    record = records(out, "predictions.jsonl")["b.png"]
    assert (record["image"], record["path"]) == ("sub/b.png", str(photos_in / "sub/b.png"))
    assert (record["saliency"], record["mask"]) == ("sub/b_saliency.png", "sub/b_mask.png")
    assert record["overlay"] == "overlays/sub/b_overlay.jpg"
    assert record["mean_saliency"] == pytest.approx(expected.mean(), abs=1e-6)
    assert (record["error"], record["binary"]) == (None, level)
    assert len([path for path in out.rglob("*") if path.is_file()]) == 3 * 3 + 1


@pytest.mark.slow
def test_an_overlay_shows_the_foreground(tmp_path):
    head = a_head()
    for parameter in head.classifier.parameters():
        parameter.data.zero_()
    head.classifier.bias.data[1] = 50
    Image.new("RGB", (40, 40), (20, 200, 20)).save(tmp_path / "in.png")
    run([tmp_path / "in.png"], tmp_path / "out", Segmenter(head, "classic", 64), overlays=True)
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/in_overlay.jpg")).astype(float)
    assert overlay[20, 20] == pytest.approx([149, 121, 60], abs=6)


@pytest.mark.slow
def test_files_that_would_share_a_name_keep_their_suffix(tmp_path):
    for name in ("a.jpg", "a.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "in/a.mp4").write_text("")
    assert [entry.mask_name for entry in find_inputs([tmp_path / "in"])] == [
        "a.jpg.png",
        "a.mp4",
        "a.png.png",
    ]
    assert run([tmp_path / "in"], tmp_path / "out") == PredictionSummary(predicted=2, failed=1)
    assert (tmp_path / "out/a.jpg_saliency.png").is_file()
    assert (tmp_path / "out/a.png_saliency.png").is_file()


class Counting(Segmenter):
    """Counts the images that it computes."""

    def start_batch(self, batch):
        self.seen = getattr(self, "seen", 0) + len(batch)
        return super().start_batch(batch)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(photos_in, tmp_path):
    out = tmp_path / "out"

    def again(seed=0, size=64, keep_aspect=False, **options):
        segmenter = Counting(a_head(seed), "classic", size, keep_aspect=keep_aspect)
        summary = run([photos_in], out, segmenter, **options)
        assert summary.predicted == getattr(segmenter, "seen", 0)
        return summary.predicted

    assert again() == 3
    assert again() == 0
    assert again(overlays=True) == 3
    assert again() == 0
    assert again(binary=0.5) == 3
    assert again(binary=0.5) == 0
    assert again(binary=0.6) == 3
    before = (out / "a_saliency.png").read_bytes()
    assert again(seed=1) == 3
    assert (out / "a_saliency.png").read_bytes() != before
    assert again(seed=1, size=80) == 3
    assert again(seed=1, size=80, keep_aspect=True) == 3
    assert again(seed=1, size=80, keep_aspect=True) == 0
    (out / "a_saliency.png").unlink()
    os.utime(photos_in / "sub/b.png", ns=(1, 1))
    assert again(seed=1, size=80, keep_aspect=True) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classic", "vit_tiny_patch16_224"])
def test_the_png_is_that_of_the_official_inference(tmp_path, name):
    """Its steps, written out: float tensor, resize, mean and std, head, softmax, bilinear, cut."""
    weights, head = None, a_head()
    if name != "classic":
        weights, head = tmp_path / "weights.pth", PatchHead(192)
        torch.save(timm.create_model(name).state_dict(), weights)
    backbone = load_backbone(name, weights=weights)
    segmenter = Segmenter(head, name, 96, weights=weights)
    official = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize((96, 96), antialias=True),
            transforms.Normalize(backbone.mean, backbone.std),
        ]
    )
    equal = total = 0
    for index, size in enumerate([(300, 200), (90, 130), (96, 96), (801, 77)]):
        photo = Image.open(picture(tmp_path / f"in/{index}.png", index, size))
        with torch.no_grad():
            features = functional.normalize(backbone(official(photo)[None])[0], dim=1)
            share = head(features)[0].softmax(dim=1)[:, 1].reshape(1, 1, 6, 6)
            upsampled = functional.interpolate(share, size[::-1], mode="bilinear")[0, 0]
        expected = (upsampled.clamp(0, 1).numpy() * 255).astype(np.uint8)
        assert run([tmp_path / f"in/{index}.png"], tmp_path / "out", segmenter).predicted == 1
        found = np.asarray(Image.open(tmp_path / f"out/{index}_saliency.png"))
        equal += (found == expected).sum()
        total += found.size
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert equal >= 0.999 * total


def test_batches_are_of_one_shape(tmp_path):
    class Watching(Segmenter):
        def start_batch(self, batch):
            shapes.append(tuple(batch.shape))
            return super().start_batch(batch)

    shapes: list[tuple[int, ...]] = []
    for index in range(10):
        picture(tmp_path / f"in/{index}.png", index, (64, 32) if index % 2 else (32, 64))
    segmenter = Watching(a_head(), "classic", 64, keep_aspect=True, batch_size=3)
    assert run([tmp_path / "in"], tmp_path / "out", segmenter) == PredictionSummary(predicted=10)
    assert sorted(shapes) == [
        *[(2, 3, 32, 64), (2, 3, 64, 32)],
        *[(3, 3, 32, 64), (3, 3, 64, 32)],
    ]
    found = np.asarray(Image.open(tmp_path / "out/3_saliency.png"))
    expected = segmenter(tmp_path / "in/3.png").numpy()
    assert np.abs(found - 255 * expected).max() < 1


def test_many_shapes_do_not_pile_up(tmp_path):
    class Watching(Segmenter):
        def start_batch(self, batch):
            held.append(prepared[0] - sum(map(len, done)))
            done.append(batch)
            return super().start_batch(batch)

        def preprocess(self, image):
            prepared[0] += 1
            return super().preprocess(image)

    held, done, prepared = [], [], [0]
    for index in range(40):
        picture(tmp_path / f"in/{index:02}.png", index, (160, 8 + 4 * (7 * index % 40)))
    segmenter = Watching(a_head(), "classic", 160, keep_aspect=True, batch_size=3)
    assert run([tmp_path / "in"], tmp_path / "out", segmenter) == PredictionSummary(predicted=40)
    assert max(held) <= 2 * 3 + 2 * 3 + 2


def test_files_of_others_are_never_replaced(photos_in, tmp_path):
    out = tmp_path / "out"
    truth = picture(out / "a_mask.png")
    before = truth.read_bytes()
    assert run([photos_in], out, binary=0.5) == PredictionSummary(predicted=3)
    assert truth.read_bytes() == before
    name = records(out, "predictions.jsonl")["a.jpg"]["saliency"]
    assert name.startswith("a-")
    assert name.endswith("_saliency.png")
    assert (out / name).is_file()
    assert run([photos_in], out, binary=0.5) == PredictionSummary(skipped=3)
    named = picture(tmp_path / "same/a_saliency.png")
    with pytest.raises(ValueError, match=r"`out` must not hold the inputs: a_saliency\.png would"):
        run([named, picture(tmp_path / "same/a.png")], tmp_path / "same")


@pytest.mark.slow
def test_a_killed_run_goes_on(head_in, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for index in range(60):
        picture(folder / f"{index:02}.png", seed=index)
    arguments = ("predict", folder, "--head", head_in, "--out", out, "--size", 64, "--batch", 1)
    where = "selfment.models.segmenter:Segmenter.start_batch"
    command = mortal.command(tmp_path, where, 12, *arguments, "--binary", 0.5)
    assert processes.run([sys.executable, *command]).returncode == -signal.SIGKILL
    written = list(out.glob("[!.]*.png"))
    assert 10 <= len(written) <= 22
    for path in written:
        Image.open(path).load()
    summary = run([folder], out, Segmenter(head_in, size=64), binary=0.5)
    assert 5 <= summary.skipped <= 11
    assert summary == PredictionSummary(predicted=60 - summary.skipped, skipped=summary.skipped)
    assert len(list(out.glob("[!.]*.png"))) == 120
    assert all(record["error"] is None for record in records(out, "predictions.jsonl").values())
    fresh = tmp_path / "fresh"
    run([folder], fresh, Segmenter(head_in, size=64), binary=0.5)
    for path in fresh.glob("*.png"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_broken_image_is_exit_code_1(capsys, photos_in, head_in, tmp_path):
    bad = photos_in / "bad.png"
    bad.write_bytes((photos_in / "sub/b.png").read_bytes()[:200])
    command = ("predict", photos_in, "--head", head_in, "--out", tmp_path / "out", "--size", 64)
    code, _, err = call(capsys, *command)
    assert code == 1
    assert f"cannot read {bad}: " in err
    assert f"3 segmented, 0 already done, 1 failed; see {tmp_path}/out/predictions.jsonl" in err
    assert "Traceback" not in err
    bad.unlink()
    code, _, err = call(capsys, *command)
    assert code == 0
    assert "0 segmented, 3 already done, 0 failed" in err


def test_options_reach_the_segmenter(capsys, photos_in, head_in, tmp_path):
    options = ("--size", 96, "--keep-aspect", "--binary", 0.4, "--overlay", "--batch", 2)
    command = ("predict", photos_in / "a.jpg", "--head", head_in, "--out", tmp_path / "out")
    assert call(capsys, *command, *options, "--device", "cpu")[0] == 0
    saliency = Segmenter(a_head(), "classic", 96, keep_aspect=True)(photos_in / "a.jpg").numpy()
    found = np.asarray(Image.open(tmp_path / "out/a_saliency.png"))
    assert np.array_equal(found, np.floor(np.float32(255) * saliency))
    assert (tmp_path / "out/a_mask.png").is_file()
    assert (tmp_path / "out/overlays/a_overlay.jpg").is_file()


def test_errors_are_one_sentence_and_exit_code_2(capsys, photos_in, head_in, tmp_path):
    def error(*options, head=head_in):
        code, _, err = call(
            capsys, "predict", photos_in, "--out", tmp_path / "out", "--head", head, *options
        )
        assert code == 2
        return err.splitlines()[-1]

    assert error("--binary", 1) == (
        "selfment predict: `binary` must be a threshold in [0, 1): got 1.0"
    )
    assert error("--size", 50).startswith("selfment predict: `size` must be a multiple of 16")
    assert error("--threads", 0) == "selfment predict: `threads` must be an integer >= 1: got 0"
    assert error(head="none.pt").endswith("'none.pt' does not exist")
    assert error("--dtype", "float16").startswith(
        "selfment predict: the backbone 'classic' has no such option"
    )
    save_head(tmp_path / "other", PatchHead(7), HeadInfo("vit_small", size=768))
    assert error("--backbone", "classic", head=tmp_path / "other") == (
        "selfment predict: `backbone` must be the one that the head was trained on, 'vit_small': "
        "got 'classic'"
    )
    torch.save(a_head().state_dict(), tmp_path / "bare.pt")
    assert "`backbone` must be given" in error(head=tmp_path / "bare.pt")


@pytest.mark.slow
def test_two_processes_share_the_work(photos_in, head_in, tmp_path):
    out = tmp_path / "out"
    for index in range(4):
        picture(photos_in / f"more{index}.png", seed=index)
    command = [sys.executable, "-m", "selfment", "predict", str(photos_in), "--size", "64"]
    command += ["--head", str(head_in), "--out", str(out), "--threads", "1"]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                processes.started(
                    command,
                    env={**os.environ, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank},
                    stderr=subprocess.PIPE,
                )
            )
            for rank in ("0", "1")
        ]
        said = [process.communicate(timeout=processes.LIMIT)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "4 segmented, 0 already done, 0 failed" in said[0]
    assert "3 segmented, 0 already done, 0 failed" in said[1]
    # The last to end has merged the records.
    assert [path.name for path in out.glob("*.jsonl")] == ["predictions.jsonl"]
    assert len(records(out, "predictions.jsonl")) == 7
    alone = tmp_path / "alone"
    assert run([photos_in], alone, Segmenter(head_in, size=64)) == PredictionSummary(predicted=7)
    for path in alone.rglob("*.png"):
        assert path.read_bytes() == (out / path.relative_to(alone)).read_bytes()
    assert run([photos_in], out, Segmenter(head_in, size=64)) == PredictionSummary(skipped=7)


def killed(records: Records, finish) -> None:
    """In place of ``Records.close``: the run is killed before it."""
    del finish
    records._release()


def test_shares_of_any_number_see_what_others_did(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for index in range(4):
        picture(photos_in / f"more{index}.png", seed=index)
    with monkeypatch.context() as patch:
        patch.setattr("selfment.jobs.records.Records.close", killed)
        assert run([photos_in], out, shard=(1, 3)) == PredictionSummary(predicted=2)
        assert run([photos_in], out, shard=(0, 2)) == PredictionSummary(predicted=3, skipped=1)
        assert run([photos_in], out, shard=(0, 2)) == PredictionSummary(skipped=4)
    assert {path.name for path in out.glob("*.jsonl")} == {
        "predictions.jsonl",
        "predictions-rank0.jsonl",
        "predictions-rank1.jsonl",
    }
    assert run([photos_in], out) == PredictionSummary(predicted=2, skipped=5)
    assert len(records(out, "predictions.jsonl")) == 7
    assert len(list(out.glob("*.jsonl"))) == 1


def test_of_several_records_the_latest_counts(photos_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run([photos_in], out)
    with monkeypatch.context() as patch:
        patch.setattr("selfment.jobs.records.Records.close", killed)
        run([photos_in], out, Segmenter(a_head(1), "classic", 64), shard=(0, 2))
    assert run([photos_in], out, Segmenter(a_head(1), "classic", 64)) == PredictionSummary(1, 2)
    assert run([photos_in], out) == PredictionSummary(predicted=3)


def test_runs_that_share_and_runs_that_do_not(tmp_path):
    path = tmp_path / "predictions.jsonl"
    first, second = (Records(path, "saliency", (rank, 2)) for rank in (0, 1))
    with pytest.raises(ValueError, match="`out` must be used by one run at a time"):
        Records(path, "saliency")
    with pytest.raises(ValueError, match=r"another holds .*predictions-rank1\.jsonl"):
        Records(path, "saliency", (1, 2))
    first.add({"image": "a", "saliency": "a.png"})
    second.add({"image": "b", "saliency": "b.png"})
    first.close()
    assert path.read_text() == ""
    second.close()
    assert {json.loads(line)["image"] for line in path.read_text().splitlines()} == {"a", "b"}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_labels_can_be_shared_too(photos_in, tmp_path):
    out = tmp_path / "out"
    images = find_images([photos_in])
    labeler = PseudoLabeler(size=64)
    parts = [label_images(images, out, labeler, progress=False, shard=(r, 2)) for r in (0, 1)]
    assert [part.labelled for part in parts] == [2, 1]
    assert label_images(images, out, labeler, progress=False).skipped == 3
    assert len((out / "labels.jsonl").read_text().splitlines()) == 3
