"""A recipe is reproduced: from photographs to a table, again, and after interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import selfment
from helpers.commands import call
from helpers.recipes import TINY, pictures, recipe_of
from selfment.evaluation import datasets
from selfment.evaluation import folders as evaluation
from selfment.evaluation.datasets import KNOWN
from selfment.experiments import reproduce as reproduction
from selfment.experiments.recipes import read_recipe
from selfment.experiments.reproduce import Reproduction, reproduce


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images are a whole data set."""
    known = {name: replace(one, count=2) for name, one in KNOWN.items()}
    monkeypatch.setattr(datasets, "KNOWN", known)


def run(folder: Path, data: Path, *changes: tuple[str, str], **options: Any) -> Reproduction:
    recipe = read_recipe(recipe_of(folder, TINY, *changes))
    return reproduce(recipe, data, folder / "out", progress=False, **options)


def test_reproduce_from_photographs_to_a_table_and_again(capsys, tmp_path, own, monkeypatch):
    out = tmp_path / "out"
    command = ("reproduce", recipe_of(tmp_path), "--data", own, "--out", out)
    code, printed, err = call(capsys, *command)
    assert (code, "Traceback" in err) == (0, False)
    assert printed == (out / "results.md").read_text()
    results = json.loads((out / "results.json").read_text())
    found = results["sets"]["folder"]
    scores = found["scores"]
    assert list(scores) == ["F_max", "IoU"]
    assert found["difference"] == {"F_max": scores["F_max"] - 0.25}
    assert (found["images"], found["of"], results["limit"]) == (2, 2, None)
    assert (results["training"]["images"], results["training"]["failed"]) == (4, 0)
    assert results["versions"]["selfment"] == selfment.__version__
    assert results["recipe"]["train"]["size"] == results["training"]["settings"]["size"] == 96
    rows = [[c.strip() for c in r.split("|")[1:-1]] for r in printed.splitlines() if r[:1] == "|"]
    assert rows[0] == ["data set", "images", "metric", "ours", "paper", "difference"]
    difference = f"{scores['F_max'] - 0.25:+.3f}"
    assert rows[2:] == [
        ["folder", "2", "F_max", f"{scores['F_max']:.3f}", "0.250", difference],
        ["folder", "2", "IoU", f"{scores['IoU']:.3f}", "-", "-"],
    ]
    assert "multiple of 3 was tested on" in printed
    assert "Limited" not in printed

    # As evaluated by hand: of six pairs in order, each third.
    (tmp_path / "truth").mkdir()
    for stem in "cf":
        (tmp_path / f"truth/{stem}.png").symlink_to(own / f"masks/{stem}.png")
    report = evaluation.evaluate(
        out / "predictions/folder", tmp_path / "truth", protocol="paper", progress=False
    )
    assert {name: report.scores[name] for name in scores} == scores
    trained = json.loads((out / "train/settings.json").read_text())["images"]
    assert [Path(name).stem for name in trained] == list("abde")

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(reproduction, "train", forbidden)
    monkeypatch.setattr(evaluation, "score_pairs", forbidden)
    monkeypatch.setattr(selfment.Segmenter, "backbone", property(forbidden))
    monkeypatch.setattr(selfment.PseudoLabeler, "backbone", property(forbidden))
    assert call(capsys, *command)[:2] == (0, printed)
    assert json.loads((out / "results.json").read_text()) == results


def test_an_interrupted_run_goes_on(tmp_path, own, monkeypatch):
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score_pairs", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, own)
    assert not (tmp_path / "out/results.json").exists()
    monkeypatch.setattr(reproduction, "train", stop)
    assert run(tmp_path, own).results["sets"]["folder"]["scores"]["IoU"] is not None


def test_what_has_changed_is_done_again(tmp_path, own):
    before = run(tmp_path, own).results["sets"]["folder"]
    # Another mask, another score.
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(own / "masks/c.png")
    after = run(tmp_path, own).results["sets"]["folder"]
    assert before["scores"] != after["scores"]
    metrics = run(tmp_path, own, ('["F_max", "IoU"]', '["F_max", "Acc"]')).results["sets"]
    assert list(metrics["folder"]["scores"]) == ["F_max", "Acc"]
    size = run(tmp_path, own, ("[predict]\nsize = 96", "[predict]\nsize = 64")).results
    assert size["prediction"]["size"] == 64


def test_a_missing_prediction_is_noticed(tmp_path, own):
    first = run(tmp_path, own)
    (tmp_path / "out/predictions/folder/c_saliency.png").unlink()
    assert run(tmp_path, own).results == first.results
    (own / "images/c.jpg").write_text("not an image")
    with pytest.raises(
        ValueError,
        match="the data set folder must be segmented whole to be scored: 1 of 2 images failed, see",
    ):
        run(tmp_path, own)


def test_a_mask_that_cannot_be_read_is_noticed(tmp_path, own):
    (own / "masks/f.png").write_text("not an image")
    with pytest.raises(ValueError, match="the data set folder cannot be scored: ") as caught:
        run(tmp_path, own)
    assert str(own / "masks/f.png") in str(caught.value)


def test_images_that_cannot_be_labelled_are_counted(capsys, tmp_path, own):
    (own / "images/a.jpg").write_text("not an image")
    out = tmp_path / "out"
    command = ("reproduce", recipe_of(tmp_path), "--data", own, "--out", out)
    for _ in range(2):
        code, printed, _ = call(capsys, *command)
        assert code == 1
        assert "1 image could not be labelled, and so not be trained on." in printed


def test_another_run_in_the_folder_is_refused(tmp_path, own):
    run(tmp_path, own)
    sentence = "`out` must be new, or of the same recipe and data: in .*, "
    with pytest.raises(ValueError, match=sentence + "train.seed was 1, is 2"):
        run(tmp_path, own, ("seed = 1", "seed = 2"))
    with pytest.raises(ValueError, match=sentence + "number of images was 4, is 1"):
        run(tmp_path, own, limit=1)
    moved = own.rename(tmp_path / "moved")
    (moved / "images/a.jpg").touch()
    run(tmp_path, moved)  # the same images, elsewhere
    with (moved / "images/a.jpg").open("ab") as file:
        file.write(b"0")
    with pytest.raises(ValueError, match=sentence + "digest of images was"):
        run(tmp_path, moved)


def test_a_wrong_size_is_said_before_training(tmp_path, own, monkeypatch):
    monkeypatch.setattr(reproduction, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="`size` must be a multiple of 16"):
        run(tmp_path, own, ("[predict]\nsize = 96", "[predict]\nsize = 100"))


@pytest.fixture
def published(tmp_path: Path, few: None) -> Path:
    """A folder with a training set, and a test set among whose masks others lie."""
    root = tmp_path / "data"
    pictures(root, "DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask", ["a", "b"])
    camo = "CAMO-V.1.0-CVIU2019"
    pictures(root, f"{camo}/Images/Train", f"{camo}/GT", ["train"])
    pictures(root, f"{camo}/Images/Test", f"{camo}/GT", ["c", "d"])
    return root


PUBLISHED = (
    ('set = "folder"', 'set = "DUTS-TR"'),
    ('sets = ["folder"]', 'sets = ["CAMO"]'),
    ("folder = { F_max = 0.25 }", "CAMO = { F_max = 0.25 }"),
    ("[split]\nevery = 3", ""),
)


def test_published_data_sets(tmp_path, published):
    for file in (published / "DUTS-TR/DUTS-TR-Mask").iterdir():
        file.unlink()  # training needs none
    found = run(tmp_path, published, *PUBLISHED)
    assert (found.results["sets"]["CAMO"]["images"], found.unlabelled) == (2, 0)
    assert "| CAMO     | 2      | F_max  | " in found.table
    assert "a head trained on 2 images of DUTS-TR at 96 pixels for 1 epoch, " in found.table


def test_limit(tmp_path, published):
    (published / "CAMO-V.1.0-CVIU2019/Images/Test/d.jpg").unlink()  # need not be whole then
    found = run(tmp_path, published, *PUBLISHED, limit=1)
    assert found.results["limit"] == 1
    assert found.results["training"]["images"] == 1
    assert "| CAMO     | 1 of 2 | F_max  | " in found.table
    assert "**Limited to 1 image of each data set: no scores to report.**" in found.table
    assert [file.name for file in (tmp_path / "out/predictions/CAMO").glob("*.png")] == [
        "c_saliency.png"
    ]


def remove(*names: str) -> Callable[[Path], None]:
    def do(root: Path) -> None:
        for name in names:
            (root / name).rename(root / "gone")

    return do


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            remove("DUTS-TR"),
            "the data set DUTS-TR is missing: its images belong in ROOT/DUTS-TR/DUTS-TR-Image, "
            "its masks in ROOT/DUTS-TR/DUTS-TR-Mask",
        ),
        (
            remove("CAMO-V.1.0-CVIU2019"),
            "the data set CAMO is missing: its images belong in ROOT/CAMO-V.1.0-CVIU2019/Images/"
            "Test, its masks in ROOT/CAMO-V.1.0-CVIU2019/GT",
        ),
        (
            remove("DUTS-TR/DUTS-TR-Image/a.jpg"),
            "the data set DUTS-TR is not whole: 1 of 2 images",
        ),
        (
            remove("CAMO-V.1.0-CVIU2019/GT/c.png"),
            "the data set CAMO is not whole: 1 image without a mask: c.jpg",
        ),
    ],
)
def test_data_sets_that_are_not_whole_are_refused_at_once(
    capsys, tmp_path, published, change, sentence
):
    change(published)
    file = recipe_of(tmp_path, TINY, *PUBLISHED)
    out = tmp_path / "out"
    code, printed, err = call(capsys, "reproduce", file, "--data", published, "--out", out)
    expected = f"selfment reproduce: {sentence.replace('ROOT', str(published))}\n"
    assert (code, printed, err) == (2, "", expected)
    assert not out.exists()


def test_nothing_to_take_is_an_error_even_with_a_limit(tmp_path, own):
    for stem in "cdef":
        (own / f"images/{stem}.jpg").unlink()
    sentence = "the data set folder must have at least 3 pairs of image and mask: got 2"
    with pytest.raises(ValueError, match=sentence):
        run(tmp_path, own, limit=1)


def test_several_processes_are_refused(tmp_path, own, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`WORLD_SIZE` must be 1: a recipe runs in one process"):
        run(tmp_path, own)
