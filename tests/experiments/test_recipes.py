"""Recipes: what their files may hold, and what `reproduce` makes of them."""

from __future__ import annotations

import pytest

from helpers.commands import call
from helpers.recipes import TINY, recipe_of
from selfment.experiments.recipes import RecipeError, find_recipe, packaged, read_recipe


def test_packaged_recipes():
    recipes = {recipe.name: recipe for recipe in packaged()}
    assert list(recipes) == ["cod", "offline", "saliency", "saliency-small"]
    cod, offline = recipes["cod"], recipes["offline"]
    assert cod.evaluate.sets == ("CHAMELEON", "CAMO", "COD10K", "NC4K")
    assert cod.paper == {
        "CHAMELEON": {"Sm": 0.910},
        "CAMO": {"Sm": 0.869, "wFm": 0.792},
        "COD10K": {"Sm": 0.873},
        "NC4K": {"Sm": 0.902},
    }
    assert (offline.backbone.name, offline.train.set, offline.every) == ("classic", "folder", 3)
    for name in ("saliency", "saliency-small"):
        sets = recipes[name].evaluate.sets
        assert sets == ("ECSSD", "DUTS-TE", "HKU-IS", "PASCAL-S", "DUT-OMRON")
        assert recipes[name].evaluate.metrics == ("F_max", "IoU", "Acc")
        assert not recipes[name].paper
    for name in ("cod", "saliency", "saliency-small"):
        table = recipes[name].train
        trained = (table.set, table.size, table.epochs, table.max_images, table.seed)
        assert trained == ("DUTS-TR", 768, 3, 1000, 111)


def test_timm_has_their_backbones():
    timm = pytest.importorskip("timm")
    known = {"classic", *timm.list_models("*dinov3*", pretrained=True)}
    assert {recipe.backbone.name for recipe in packaged()} - known == set()


def test_a_recipe_by_name_and_by_path(tmp_path):
    assert find_recipe("offline") in packaged()
    assert find_recipe(recipe_of(tmp_path)).title == "a tiny one"
    names = "cod, offline, saliency, saliency-small"
    sentence = f"`recipe` must be one of {names} or the path of a .toml file: got 'codd'"
    with pytest.raises(RecipeError, match=sentence):
        find_recipe("codd")
    with pytest.raises(RecipeError, match=r"cannot read absent\.toml: No such file or directory"):
        find_recipe("absent.toml")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("epochs = 1", "epoch = 1", "`train.epoch` is unknown: the keys there are set, size, "),
        ("epochs = 1", "", "`train.epochs` must be an integer from 1 to 2^63 - 1: it is missing"),
        ("epochs = 1", "epochs = 0", "`train.epochs` must be an integer from 1 to 2^63 - 1: got 0"),
        ("epochs = 1", "epochs = true", "`train.epochs` must be an integer from 1 to 2^63 - 1: "),
        ("seed = 1", 'seed = "1"', "`train.seed` must be an integer from 0 to 2^63 - 1: got '1'"),
        ('title = "a tiny one"', "", "`title` must be a string that is not empty: it is missing"),
        ('title = "a tiny one"', "title = 7", "`title` must be a string that is not empty: got 7"),
        ('title = "a tiny one"', 'tittle = "x"', "`tittle` is unknown: the keys there are title, "),
        ("[predict]\nsize = 96", "", "`predict` must be a table: it is missing"),
        ("[predict]\nsize = 96", "[predict]", "`predict.size` must be an integer from 1"),
        ("[train]", "[[train]]", "`train` must be a table: got [{"),
        ('set = "folder"', 'set = "DUTS"', "`train.set` must be one of ECSSD, DUTS-TE, DUTS-TR, "),
        (
            '"classic"',
            '"classic"\nfeatures = "values"',
            "`backbone.features` must be one of tokens, keys: got 'values'",
        ),
        (
            'sets = ["folder"]',
            'sets = ["ECSSD", "ECSSE"]',
            "`evaluate.sets` must be a list of some of ECSSD, ",
        ),
        ('sets = ["folder"]', 'sets = "folder"', "each once: got 'folder'"),
        ('sets = ["folder"]', "sets = []", "each once: got []"),
        ('["F_max", "IoU"]', '["IoU", "IoU"]', "each once: got ['IoU', 'IoU']"),
        (
            '["F_max", "IoU"]',
            '["F_max", "Sm"]',
            "`evaluate.metrics` must be a list of some of F_max, IoU, Acc, each once: "
            "got ['F_max', 'Sm']",
        ),
        (
            'protocol = "paper"',
            'protocol = "own"',
            "`evaluate.protocol` must be one of paper, pysod, tokencut, all: got 'own'",
        ),
        (
            "{ F_max = 0.25 }",
            "{ F_max = 88.3 }",
            "`paper.folder.F_max` must be a number from 0 to 1: got 88.3",
        ),
        (
            "{ F_max = 0.25 }",
            "{ Sm = 0.9 }",
            "`paper.folder.Sm` is unknown: the keys there are F_max, IoU",
        ),
        ("folder = { F", "ECSSD = { F", "`paper.ECSSD` is unknown: the keys there are folder"),
        ("every = 3", "every = 1", "`split.every` must be an integer from 2"),
        ("[split]\nevery = 3", "", "`split` must be given if 'folder' is both trained and tested"),
        ('set = "folder"', 'set = "DUTS-TR"', "= 'DUTS-TR', evaluate.sets = ['folder'] with it"),
        ("[split]", "[split", "must be TOML: "),
    ],
)
def test_wrong_recipes_are_one_sentence(capsys, tmp_path, old, new, sentence):
    file = recipe_of(tmp_path, TINY, (old, new))
    with pytest.raises(RecipeError) as caught:
        read_recipe(file)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("tiny.toml")
    code, out, err = call(capsys, "reproduce", file, "--data", tmp_path, "--out", tmp_path / "out")
    assert (code, out, err) == (2, "", f"selfment reproduce: {caught.value}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give RECIPE, --data ROOT and --out DIR, or --list"),
        (["offline", "--data", "."], "give RECIPE, --data ROOT and --out DIR, or --list"),
        (["nothing", "--data", ".", "--out", "x"], "`recipe` must be one of cod, "),
        (
            ["offline", "--data", "no", "--out", "x"],
            "`data` must be a folder of data sets: got 'no",
        ),
        (
            ["offline", "--data", ".", "--out", "x", "--workers", "0"],
            "`workers` must be an integer",
        ),
        (["offline", "--data", ".", "--out", "x", "--limit", "0"], "`limit` must be an integer >="),
    ],
)
def test_usage_errors_are_one_sentence(capsys, arguments, sentence):
    code, out, err = call(capsys, "reproduce", *arguments)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert sentence in err


def test_list(capsys):
    code, out, err = call(capsys, "reproduce", "--list")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [one.name for one in packaged()]
