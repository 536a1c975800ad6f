"""Folders of predictions and ground truths: which files are pairs, in how many processes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest

from helpers.commands import call
from helpers.scores import pair, save
from selfment.evaluation import datasets
from selfment.evaluation import folders as evaluation
from selfment.evaluation.folders import evaluate
from selfment.evaluation.pairs import match


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
        "1 mask in JPEG beside one of the same name in a lossless format, not used: a.jpg",
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


def test_missing_files_are_a_usage_error(capsys, folders):
    pred, gt = folders
    (pred / "sub/0_saliency.png").unlink()
    code, out, err = call(capsys, "eval", "--pred", pred, "--gt", gt)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "1 ground truth (sub/0) without a prediction" in err
    assert call(capsys, "eval", "--pred", pred, "--gt", gt, "--allow-missing")[0] == 0


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
