"""Folders of predictions against folders of ground truth: scores, names, oddities, outputs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import cv2
import numpy as np
import py_sod_metrics
import pytest
import torch
from PIL import Image

from helpers.commands import call
from helpers.scores import literal_f_max, literal_tokencut, pair, save
from selfment.evaluation import datasets
from selfment.evaluation import folders as evaluation
from selfment.evaluation.folders import evaluate
from selfment.evaluation.metrics import accuracy, f_max, iou
from selfment.evaluation.pairs import match
from selfment.evaluation.report import FORMATS
from selfment.evaluation.scores import PROTOCOLS, Evaluator
from selfment.images.load import ImageError
from selfment.images.maps import read_saliency


@pytest.fixture
def pairs():
    """Six pairs: two ordinary ones, a flat map, an empty and a full mask, a low maximum."""
    found = [pair(0), pair(1, (40, 17)), pair(2), pair(3), pair(4), pair(5)]
    found[2][0][:] = 90
    found[3][1][:] = 0
    found[4][1][:] = 255
    found[5] = (found[5][0] // 3, found[5][1])
    return found


@pytest.fixture
def folders(pairs, tmp_path):
    for index, (saliency, truth) in enumerate(pairs):
        save(tmp_path / f"pred/sub/{index}_saliency.png", saliency)
        save(tmp_path / f"gt/sub/{index}.png", truth)
    return tmp_path / "pred", tmp_path / "gt"


def library(pairs):
    """PySODMetrics as its users run it: each pair after the other, then the results."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f = py_sod_metrics.Fmeasure()
        steps = {
            "f": f,
            "e": py_sod_metrics.Emeasure(),
            "s": py_sod_metrics.Smeasure(),
            "w": py_sod_metrics.WeightedFmeasure(),
            "m": py_sod_metrics.MAE(),
        }
        for saliency, truth in pairs:
            for metric in steps.values():
                metric.step(saliency, truth)
    found = {key: metric.get_results() for key, metric in steps.items()}
    return {
        "Sm": found["s"]["sm"],
        "wFm": found["w"]["wfm"],
        "MAE": found["m"]["mae"],
        "maxEm": found["e"]["em"]["curve"].max(),
        "meanEm": found["e"]["em"]["curve"].mean(),
        "adpEm": found["e"]["em"]["adp"],
        "maxFm": found["f"]["fm"]["curve"].max(),
        "meanFm": found["f"]["fm"]["curve"].mean(),
        "adpFm": found["f"]["fm"]["adp"],
    }, found["f"]["pr"]


def test_library_scores_of_files_arrays_tensors_and_images_are_the_library_s(pairs, folders):
    expected, curve = library(pairs)
    report = evaluate(*folders, protocol="pysod", progress=False)
    assert report.scores == expected
    assert tuple(report.scores) == PROTOCOLS["pysod"]
    np.testing.assert_array_equal(report.curves["pysod"].precision, curve["p"][::-1])
    np.testing.assert_array_equal(report.curves["pysod"].recall, curve["r"][::-1])
    kinds = (
        np.asarray,
        torch.from_numpy,
        Image.fromarray,
        lambda values: torch.from_numpy(values)[None].float() / 255,
        lambda values: values / 255,
    )
    for kind in kinds:
        evaluator = Evaluator("pysod")
        for saliency, truth in pairs:
            evaluator.update(kind(saliency), kind(truth))
        assert evaluator.report().scores == expected
    for given, image in zip(pairs, report.images, strict=True):
        assert image.scores == library([given])[0]


def test_paper_scores_are_means_of_the_images(pairs, folders):
    report = evaluate(*folders, protocol="paper", progress=False)
    maps = [(torch.from_numpy(s).double() / 255, torch.from_numpy(t) > 0) for s, t in pairs]
    expected = np.mean([literal_f_max(*each) for each in maps])
    assert report.scores["F_max"] == pytest.approx(expected, rel=1e-12)
    assert report.scores["IoU"] == np.mean([iou(*each) for each in maps])
    assert report.scores["Acc"] == np.mean([accuracy(*each) for each in maps])
    assert [image.scores["F_max"] for image in report.images] == [f_max(*each) for each in maps]
    assert report.curves["paper"].f.max() < report.scores["F_max"]  # another definition


def test_tokencut_is_the_maximum_of_the_mean_curve(pairs, folders):
    curves = []
    for saliency, truth in pairs:
        precision, recall = literal_tokencut(saliency / 255, truth)
        below = 0.3 * precision + recall
        curves.append(1.3 * precision * recall / np.where(below == 0, 1, below))
    report = evaluate(*folders, protocol="tokencut", progress=False)
    expected = np.mean(curves, axis=0).max()
    assert report.scores["maxF_tokencut"] == pytest.approx(expected, rel=1e-12)
    assert tuple(report.scores) == ("maxF_tokencut", "IoU", "Acc")


def test_all_holds_every_protocol(folders):
    everything = evaluate(*folders, progress=False)
    assert tuple(everything.scores) == PROTOCOLS["all"]
    assert len(everything.scores) == 13
    for protocol in ("paper", "pysod", "tokencut"):
        for key, score in evaluate(*folders, protocol=protocol, progress=False).scores.items():
            assert score == everything.scores[key]
    some = evaluate(*folders, metrics=["maxFm", "IoU"], progress=False)
    assert list(some.scores) == ["IoU", "maxFm"]
    assert some.scores["maxFm"] == everything.scores["maxFm"]
    assert all(list(image.scores) == ["IoU", "maxFm"] for image in some.images)


def test_sizes_differ(tmp_path):
    saliency, truth = pair(0)[0], pair(0, (48, 62))[1]
    report = Evaluator()
    report.update(saliency, truth)
    scores = report.report().scores
    picture = Image.fromarray(truth)
    small = np.asarray(picture.resize(saliency.shape[::-1], Image.Resampling.BILINEAR))
    assert scores["F_max"] == f_max(saliency, small / 255 > 0.5)
    assert scores["IoU"] == iou(saliency, small / 255 > 0.5)
    large = cv2.resize(saliency, (62, 48), interpolation=cv2.INTER_LINEAR)
    expected, _ = library([(large, truth)])
    assert {key: scores[key] for key in expected} == expected
    notes = " ".join(report.report().notes)
    assert "ground truth resized to the prediction for F_max, IoU, Acc, maxF_tokencut" in notes
    assert "prediction resized to the ground truth for Sm, wFm" in notes


def test_any_two_sizes_are_scored_as_pillow_resizes():
    """Masks as files have them, and as floats; none of the resized values leaves [0, 1]."""
    sizes = np.random.default_rng(0).integers(20, 501, (60, 4))
    for index, (height, width, other_height, other_width) in enumerate(sizes.tolist()):
        saliency = pair(index, (height, width))[0]
        truth = pair(index, (other_height, other_width))[1]
        picture = Image.fromarray(truth).resize((width, height), Image.Resampling.BILINEAR)
        resized = np.asarray(picture)
        given = truth if index % 2 else truth.astype(np.float32) / 255
        found = Evaluator("paper").update(saliency, given).scores
        assert found["F_max"] == f_max(saliency, resized / 255 > 0.5)
        assert found["IoU"] == iou(saliency, resized / 255 > 0.5)
        positive = np.count_nonzero(resized)
        curves = Evaluator("tokencut")
        curves.update(saliency, given)
        assert curves.report().curves["tokencut"].recall[0] == pytest.approx(
            np.count_nonzero((saliency > 0) & (resized > 0)) / positive
        )


class Awaited(ProcessPoolExecutor):
    """Waits for its processes to start, so that they get their share of a little work."""

    def submit(self, function, *arguments):
        future = super().submit(function, *arguments)
        if function is os.getpid:
            assert future.result(timeout=600) != os.getpid()
        return future


class Broken(ProcessPoolExecutor):
    """Like one whose processes have been killed."""

    def submit(self, function, *arguments):
        raise BrokenProcessPool


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch):
    for index in range(40):
        saliency, truth = pair(index % 7, (6 + index % 5, 9))
        save(tmp_path / f"pred/{index}.png", saliency)
        save(tmp_path / f"gt/{index}.png", truth)
    (tmp_path / "pred/0.png").write_bytes(b"broken")
    folders = tmp_path / "pred", tmp_path / "gt"
    one = evaluate(*folders, progress=False)
    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", Awaited)
    two = evaluate(*folders, workers=2, progress=False)
    assert one.scores == two.scores
    assert one.images == two.images
    assert one.to_json() == two.to_json()
    assert (len(one.images), len(one.failed)) == (39, 1)
    for key, curve in one.curves.items():
        np.testing.assert_array_equal(curve.f, two.curves[key].f)
    monkeypatch.setattr(evaluation, "ProcessPoolExecutor", Broken)
    with pytest.raises(ChildProcessError, match="a process of `workers` ended before its time"):
        evaluate(*folders, workers=2, progress=False)


def touch(folder, *names):
    for name in names:
        save(folder / name, np.eye(4, dtype=np.uint8) * 255)
    return folder


def test_names_match_by_path_and_stem(tmp_path):
    gt = touch(tmp_path / "gt", "a.png", "sub/a.bmp", "b.c.png", "sub/deep/x_mask.png")
    pred = touch(tmp_path / "pred", "a.png", "sub/a.jpg", "b.c.png", "sub/deep/x_mask.png")
    pairs, missing, extra = match(pred, gt)
    assert [found.name for found in pairs] == ["a", "b.c", "sub/a", "sub/deep/x_mask"]
    assert [found.prediction.name for found in pairs] == ["a.png", "b.c.png", "a.jpg", "x_mask.png"]
    assert (missing, extra) == ([], [])


@pytest.mark.parametrize(
    ("names", "suffix", "taken", "missing", "extra"),
    [
        (["a_saliency.png", "b_saliency.png"], None, "_saliency", [], []),
        (["a_mask.png", "b_mask.png"], None, "_mask", [], []),
        (["a_saliency.png", "a_mask.png", "b_saliency.png"], None, "_saliency", [], []),
        (["a_saliency.png", "a_mask.png", "b_mask.png"], None, "_saliency", ["b"], []),
        (["a_saliency.png", "a_mask.png", "b_mask.png"], "_mask", "_mask", [], []),
        (["a.png", "a_mask.png", "c.png"], "", "", ["b"], ["c"]),
        (["a-cut.png", "b-cut.png", "overlays/a.jpg"], "-cut", "-cut", [], []),
        (["a_saliency.png", "c_saliency.png"], None, "_saliency", ["b"], ["c_saliency"]),
    ],
)
def test_kinds_of_predictions(tmp_path, names, suffix, taken, missing, extra):
    gt, pred = touch(tmp_path / "gt", "a.png", "b.png"), touch(tmp_path / "pred", *names)
    pairs, *others = match(pred, gt, suffix)
    assert all(found.prediction.stem == f"{found.name}{taken}" for found in pairs)
    assert others == [missing, extra]


@pytest.mark.parametrize(
    ("pred", "gt", "sentence"),
    [
        (
            ["a.png", "a.jpg"],
            ["a.png"],
            "`pred` must hold one file of each stem: got a.jpg",
        ),
        (
            ["a.png"],
            ["a.png", "a.bmp"],
            "`gt` must hold one file of each stem: got a.bmp and",
        ),
        (
            ["a.png", "a_mask.png"],
            ["a.png"],
            "of one kind: got 'a' and 'a_mask'; name the",
        ),
        (["x.png"], ["a.png"], "must hold files named after those in `gt`: got 'x' and the like"),
        (["a.png"], ["a.png", "b.png"], "1 ground truth (b) without a prediction; to score"),
        (["a.png", "c.png"], ["a.png"], "1 prediction (c) without a ground truth; to score"),
        (
            ["0.png", *(f"x{k}.png" for k in range(6))],
            [f"{k}.png" for k in range(8)],
            "7 ground truths (1, 2, 3, 4, 5, ...) without a prediction and 6 predictions (x0, x1, "
            "x2, x3, x4, ...) without a ground truth",
        ),
        ([], ["a.png"], "holds no image"),
        (None, ["a.png"], "`pred` must be a folder that exists: got"),
    ],
)
def test_folders_that_do_not_match(tmp_path, pred, gt, sentence):
    touch(tmp_path / "gt", *gt)
    if pred is not None:
        (tmp_path / "pred").mkdir()
        touch(tmp_path / "pred", *pred)
    with pytest.raises(ValueError, match=r".") as raised:
        evaluate(tmp_path / "pred", tmp_path / "gt", progress=False)
    assert sentence in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_missing_files_may_be_allowed(tmp_path):
    gt = touch(tmp_path / "gt", "a.png", "b.png")
    pred = touch(tmp_path / "pred", "a.png", "c.png")
    report = evaluate(pred, gt, allow_missing=True, progress=False)
    assert (report.missing, report.extra) == (["b"], ["c"])
    assert [image.name for image in report.images] == ["a"]
    assert "note: ground truth without a prediction, left out: 1 file (b)\n" in report.to_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"protocol": "coco"}, "`protocol` must be 'paper' or 'pysod' or 'tokencut' or 'all': got"),
        ({"metrics": ["F"]}, "in protocol all: got 'F'"),
        ({"metrics": ["Sm"], "protocol": "paper"}, "among F_max, IoU, Acc in protocol paper: got"),
        ({"metrics": []}, "`metrics` must name at least one score: got none"),
        ({"workers": 0}, "`workers` must be an integer >= 1: got 0"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, sentence):
    folder = touch(tmp_path / "gt", "a.png")
    with pytest.raises(ValueError, match=r".") as raised:
        evaluate(folder, folder, progress=False, **arguments)
    assert sentence in str(raised.value)


def test_evaluator_errors():
    with pytest.raises(ValueError, match="a report needs at least one image: got none"):
        Evaluator().report()
    with pytest.raises(ValueError, match=r"`pred` must lie in \[0, 1\]"):
        Evaluator().update(np.full((3, 3), 2.0), np.ones((3, 3)))
    with pytest.raises(TypeError, match="`gt` must hold floats, bools or uint8: got int64"):
        Evaluator().update(np.ones((3, 3)), np.ones((3, 3), dtype=np.int64))


def test_names_of_the_evaluator_s_images():
    evaluator = Evaluator("paper")
    truth = np.eye(5, dtype=bool)
    assert evaluator.update(truth, truth).scores["IoU"] == 1
    evaluator.update(truth, truth, "second")
    assert [image.name for image in evaluator.report().images] == ["0", "second"]


def test_odd_masks_are_noted(tmp_path):
    disk = np.zeros((20, 20), np.uint8)
    disk[5:15, 5:15] = 255
    odd = {
        "binary": disk,
        "bits": disk // 255,
        "grey": np.where(disk, 200, 7).astype(np.uint8),
        "inverted": 255 - disk // 2 * 2,
        "none": 0 * disk,
    }
    odd["inverted"] = 255 - np.pad(disk[7:13, 7:13], 7)
    for name, values in odd.items():
        save(tmp_path / f"gt/{name}.png", values)
        save(tmp_path / f"pred/{name}.png", disk if name != "binary" else disk // 255)
    report = evaluate(tmp_path / "pred", tmp_path / "gt", progress=False)
    assert sorted(report.notes) == [
        "ground truth has no foreground: 1 image (none)",
        "ground truth is not binary, each protocol has its own threshold: 1 image (grey)",
        "ground truth looks inverted, foreground is most of it and of its border: 1 image "
        "(inverted)",
        "ground truth of 0 and 1, scaled to 0 and 255: 1 image (bits)",
        "prediction of 0 and 1, of 255, taken as it is: 1 image (binary)",
    ]
    scores = {image.name: image.scores for image in report.images}
    assert scores["bits"]["IoU"] == scores["bits"]["maxFm"] == 1
    assert scores["binary"]["IoU"] == 0


def test_what_the_library_cannot_score_is_noted(tmp_path):
    saliency, truth = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)
    saliency[4, 2:5] = truth[7, 2:5] = 255  # no row is below the mask's centre
    evaluator = Evaluator()
    evaluator.update(saliency, truth, "low")
    report = evaluator.report()
    assert np.isnan(report.scores["Sm"])
    assert "Sm is not a number: 1 image (low)" in report.notes
    assert json.loads(report.to_json())["scores"]["Sm"] is None


def test_predictions_are_read_as_grey(tmp_path):
    saliency, _ = pair(0)
    grey = Image.fromarray(saliency)
    clear = Image.new("L", grey.size, 0)
    Image.merge("LA", (grey, clear)).save(tmp_path / "alpha.png")
    Image.merge("RGB", (grey, grey, grey)).save(tmp_path / "rgb.png")
    Image.fromarray(saliency.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    grey.convert("P").save(tmp_path / "palette.png")
    for name in ("alpha", "rgb", "deep", "palette"):
        np.testing.assert_array_equal(read_saliency(tmp_path / f"{name}.png")[0], saliency)
    grey.point(lambda v: 255 * (v > 127), "1").save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_saliency(tmp_path / "bits.png")[0], 255 * (saliency > 127))
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        read_saliency(tmp_path / "none.png")


def test_a_data_set_is_scored_as_it_is_downloaded(tmp_path, monkeypatch, capsys):
    """DUTS-TR has masks in JPEG beside others, DUTS-TE more masks than images."""
    known = {"DUTS-TE": replace(datasets.KNOWN["DUTS-TE"], count=2)}
    monkeypatch.setattr(datasets, "KNOWN", known)
    gt = tmp_path / "DUTS-TE" / "DUTS-TE-Mask"
    for index, name in enumerate("abxy"):
        saliency, truth = pair(index)
        save(gt / f"{name}.png", truth)
        if name in "ab":
            save(tmp_path / f"DUTS-TE/DUTS-TE-Image/{name}.jpg", saliency)
            save(tmp_path / f"pred/{name}.png", saliency)
    save(gt / "a.jpg", pair(3)[0])
    code, out, err = call(capsys, "eval", "--pred", tmp_path / "pred", "--gt", gt)
    assert (code, out.splitlines()[0]) == (0, "protocol all, 2 images")
    assert "Traceback" not in err
    report = evaluate(tmp_path / "pred", gt, progress=False)
    assert [image.truth.name for image in report.images] == ["a.png", "b.png"]
    assert report.missing == []
    for note in (
        "ground truth that its data set has no image for, left out: 2 files (x, y)",
        "1 mask in JPEG beside one of the same name without its losses, not used: a.jpg",
    ):
        assert note in report.notes
        assert note in out
    (tmp_path / "pred/b.png").unlink()  # which has an image
    with pytest.raises(ValueError, match=r": 1 ground truth \(b\) without a prediction; to score"):
        evaluate(tmp_path / "pred", gt, progress=False)
    (tmp_path / "DUTS-TE/DUTS-TE-Image/b.jpg").unlink()  # and now the set is not whole
    with pytest.raises(ValueError, match=r"3 ground truths \(b, x, y\) without a prediction"):
        evaluate(tmp_path / "pred", gt, progress=False)


def test_a_pair_that_cannot_be_scored_costs_itself_alone(capsys, folders, monkeypatch):
    score = evaluation.score

    def fail(saliency, truth, *rest):
        if truth.shape == (40, 17):
            raise ArithmeticError("as a library\nmay")
        return score(saliency, truth, *rest)

    monkeypatch.setattr(evaluation, "score", fail)
    pred, gt = folders
    report = evaluate(pred, gt, progress=False)
    assert len(report.images) == 5
    prediction, truth = pred / "sub/1_saliency.png", gt / "sub/1.png"
    assert report.failed == [f"cannot score {prediction} against {truth}: as a library may"]
    code, _, err = call(capsys, "eval", "--pred", pred, "--gt", gt)
    assert code == 1
    assert f"selfment eval: {report.failed[0]}" in err


@pytest.mark.parametrize("shapes", [((1, 1), (1, 1)), ((1, 40), (40, 1)), ((2, 3), (300, 1))])
def test_tiny_pairs_are_scored(tmp_path, shapes):
    for folder, shape in zip(("pred", "gt"), shapes, strict=True):
        save(tmp_path / folder / "a.png", np.full(shape, 255, np.uint8))
    report = evaluate(tmp_path / "pred", tmp_path / "gt", progress=False, protocol="paper")
    assert report.scores["IoU"] == 1


@pytest.mark.parametrize(("top", "noted"), [(2, True), (25, True), (26, False)])
def test_predictions_far_below_white_are_noted(top, noted):
    evaluator = Evaluator("paper")
    saliency, truth = pair(0)
    image = evaluator.update((saliency > 127) * np.uint8(top), truth)
    assert ("prediction of less than a tenth of white, taken as it is" in image.notes) == noted


def many(root):
    for index in range(40):  # enough for two processes
        saliency, truth = pair(0)
        save(root / f"pred/{index}.png", saliency)
        save(root / f"gt/{index}.png", truth)
    return (
        "from selfment.evaluation import evaluate\n"
        f"found = evaluate({str(root / 'pred')!r}, {str(root / 'gt')!r}, workers=2, "
        "progress=False, protocol='paper')\n"
        "print(len(found.images))\n"
    )


def test_processes_need_a_program_that_can_be_read_again(tmp_path):
    found = subprocess.run(
        [sys.executable, "-"], input=many(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.splitlines()[-1] == (
        "ValueError: `workers` must be 1 in a program that is read from standard input, which "
        "other processes cannot import: got 2"
    )


@pytest.mark.slow
def test_a_script_without_a_guard_works_or_is_told_once(tmp_path):
    (tmp_path / "script.py").write_text(many(tmp_path))
    found = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300
    )
    assert "bootstrapping" not in found.stderr
    if found.returncode:  # the first process had not done all the work when the others ended
        assert found.stderr.splitlines()[-1].startswith("ChildProcessError: a process of `workers`")
        assert found.stdout == ""
    else:
        assert (found.stdout, found.stderr) == ("40\n", "")


def test_broken_files_are_left_out(capsys, folders):
    pred, gt = folders
    (pred / "sub/1_saliency.png").write_text("no image")
    content = (gt / "sub/3.png").read_bytes()
    (gt / "sub/3.png").write_bytes(content[: len(content) // 2])
    report = evaluate(pred, gt, progress=False)
    assert [image.name for image in report.images] == ["sub/0", "sub/2", "sub/4", "sub/5"]
    assert report.failed[0].endswith("1_saliency.png: not an image that Pillow knows")
    assert str(gt / "sub/3.png") in report.failed[1]
    code, out, err = call(capsys, "eval", "--pred", pred, "--gt", gt)
    assert code == 1
    assert "note: pairs that cannot be read, left out: 2\n" in out
    assert "selfment eval: cannot read " in err
    assert "Traceback" not in err
    for file in pred.rglob("*.png"):
        file.write_text("no image")
    with pytest.raises(ValueError, match="no pair of files can be read: cannot read"):
        evaluate(pred, gt, progress=False)


def test_command(capsys, folders, tmp_path):
    pred, gt = folders
    options = [part for name in FORMATS for part in (f"--{name}", tmp_path / f"out/scores.{name}")]
    code, out, _ = call(capsys, "eval", "--pred", pred, "--gt", gt, *options)
    report = evaluate(pred, gt, progress=False)
    assert code == 0
    assert out == report.to_text()
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["protocol", "score", "F_max"]
    for name in FORMATS:
        text = (tmp_path / f"out/scores.{name}").read_text()
        assert text == getattr(report, f"to_{name}")()
        assert "all" in text
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        f"scores.{name}" for name in FORMATS
    )


def test_outputs_hold_the_scores(folders):
    report = evaluate(*folders, progress=False)
    content = json.loads(report.to_json())
    assert content["protocol"] == "all"
    assert content["scores"] == report.scores
    assert [image["scores"] for image in content["images"]] == [i.scores for i in report.images]
    rows = list(csv.DictReader(report.to_csv().splitlines()))
    assert [row["row"] for row in rows] == ["data set"] + ["image"] * 6
    assert {key: float(rows[0][key]) for key in report.scores} == report.scores
    assert {key: float(rows[3][key]) for key in report.scores} == report.images[2].scores
    markdown = report.to_markdown().splitlines()
    assert markdown[0] == "protocol all, 6 images"
    assert {line.count("|") for line in markdown[2:]} == {14}
    latex = report.to_latex()
    assert r"F\_max & IoU" in latex
    assert {line.count("&") for line in latex.splitlines() if line.endswith(r"\\")} == {12}
    with pytest.raises(ValueError, match="`format` must be 'json' or"):
        report.save("x", "xml")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--protocol", "coco"], "argument --protocol: invalid choice: 'coco'"),
        (["--metrics", "F"], "`metrics` must be among F_max"),
        (["--suffix", "_x"], "must hold files named after those in `gt`"),
        (["--images", "."], "`images` must come with a page"),
        (["--json", "/dev/null/x"], "/dev/null"),
        (["--workers", "0"], "`workers` must be an integer >= 1"),
    ],
)
def test_usage_errors_are_one_sentence(capsys, folders, arguments, sentence):
    pred, gt = folders
    code, _, err = call(capsys, "eval", "--pred", pred, "--gt", gt, *arguments)
    assert code == 2
    assert sentence in err.splitlines()[-1]


def test_missing_files_are_a_usage_error(capsys, folders):
    pred, gt = folders
    (pred / "sub/0_saliency.png").unlink()
    code, out, err = call(capsys, "eval", "--pred", pred, "--gt", gt)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "1 ground truth (sub/0) without a prediction" in err
    assert call(capsys, "eval", "--pred", pred, "--gt", gt, "--allow-missing")[0] == 0
