"""The scores are those of their definitions and of PySODMetrics; outputs and oddities."""

from __future__ import annotations

import csv
import json
import warnings

import cv2
import numpy as np
import py_sod_metrics
import pytest
import torch
from PIL import Image

from helpers.commands import call
from helpers.scores import literal_f_max, literal_tokencut, pair, save
from selfment.evaluation.folders import evaluate
from selfment.evaluation.metrics import accuracy, f_max, iou
from selfment.evaluation.report import FORMATS
from selfment.evaluation.scores import PROTOCOLS, Evaluator
from selfment.images.load import ImageError
from selfment.images.maps import read_saliency


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
