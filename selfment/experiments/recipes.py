"""Recipes: TOML files that describe an experiment, from training to scores.

Some reproduce a table of the paper; users can write their own:

title = "a sentence on the experiment"
source = "the table that it reproduces"

[backbone]
name = "classic"          # or "statistics", or any timm ViT
features = "tokens"       # the default; or "keys"
dtype = "float32"         # the default; or "bfloat16", "float16"

[train]
set = "DUTS-TR"           # a data set, or "folder": one's own, with images/ and masks/
size = 768                # pixels
epochs = 3
max_images = 1000
seed = 111
feature_dtype = "float32" # the default, of the cache; or "bfloat16", "float16"

[predict]
size = 1280               # pixels

[evaluate]
sets = ["ECSSD"]
protocol = "paper"
metrics = ["F_max", "IoU"]

[paper]                   # optional: values to compare with
ECSSD = { F_max = 0.9 }

[split]                   # for "folder", which is then trained and tested on
every = 3                 # in the order of the names, each third pair is tested on
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..backbones import DTYPES, FEATURES
from ..evaluation.datasets import KNOWN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The name of one's own data set in a recipe.
FOLDER = "folder"

_PACKAGED = Path(__file__).with_name("recipe_files")


class RecipeError(ValueError):
    """A recipe that cannot be used: one sentence with the file's name."""


@dataclass(frozen=True)
class BackboneTable:
    """``[backbone]``: as :func:`selfment.backbones.load_backbone` takes it."""

    name: str
    features: str = "tokens"
    dtype: str = "float32"


@dataclass(frozen=True)
class TrainTable:
    """``[train]``: as :func:`selfment.training.train` takes it, and the data set."""

    set: str
    size: int
    epochs: int
    max_images: int
    seed: int
    feature_dtype: str = "float32"


@dataclass(frozen=True)
class PredictTable:
    """``[predict]``: as :class:`selfment.Segmenter` takes it."""

    size: int


@dataclass(frozen=True)
class EvaluateTable:
    """``[evaluate]``: as :func:`selfment.evaluation.evaluate` takes it, and the data sets."""

    sets: tuple[str, ...]
    protocol: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """An experiment: training, prediction, evaluation, and the paper's scores."""

    name: str  #: of the file, without the suffix
    title: str
    source: str
    backbone: BackboneTable
    train: TrainTable
    predict: PredictTable
    evaluate: EvaluateTable
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  #: by set and metric
    every: int | None = None  #: in a folder of one's own, each such pair is tested on


class _Rule(NamedTuple):
    text: str  # completes "must be" in an error
    holds: Callable[[Any], bool]
    required: bool = True


def packaged() -> list[Recipe]:
    """The recipes that come with selfment, sorted by name."""
    return [find_recipe(name) for name in _names()]


def find_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """A packaged recipe by its name, or one's own by the path of its ``.toml`` file.

    Raises :class:`RecipeError`.
    """
    text = os.fspath(recipe)
    if text.endswith(".toml"):
        return read_recipe(text)
    names = _names()
    if text not in names:
        raise RecipeError(
            f"`recipe` must be one of {', '.join(names)} or the path of a .toml file: got {text!r}"
        )
    return read_recipe(_PACKAGED / f"{text}.toml")


def read_recipe(file: str | os.PathLike[str]) -> Recipe:
    """The recipe in a TOML file. Raises :class:`RecipeError` for the first mistake."""
    path = Path(file)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {os.fspath(file)}: {error.strerror or error}") from error
    except ValueError as error:  # of TOML, and of UTF-8
        raise RecipeError(f"{path.name} must be TOML: {error}") from error
    except RecursionError:
        raise RecipeError(f"{path.name} must be TOML of fewer levels") from None
    try:
        return _recipe(path.stem, content)
    except ValueError as error:
        raise RecipeError(f"{path.name}: {error}") from None


def _names() -> list[str]:
    return sorted(file.stem for file in _PACKAGED.glob("*.toml"))


def _recipe(name: str, content: dict[str, Any]) -> Recipe:
    from ..evaluation.scores import PROTOCOLS

    _check("", content, _TOP)
    for table, rules in _TABLES.items():
        if table in content:
            _check(f"{table}.", content[table], rules)
    protocols = tuple(PROTOCOLS)
    protocol = content["evaluate"].get("protocol")
    of_protocol = PROTOCOLS[protocol if protocol in protocols else "all"]
    rules = {"sets": _some(_SETS), "protocol": _one(protocols), "metrics": _some(of_protocol)}
    _check("evaluate.", content["evaluate"], rules)
    evaluate = {key: _tuple(value) for key, value in content["evaluate"].items()}
    paper = content.get("paper", {})
    sets, metrics = evaluate["sets"], evaluate["metrics"]
    _check("paper.", paper, {one: _Rule("a table", _is_table, False) for one in sets})
    for one, values in paper.items():
        share = _Rule("a number from 0 to 1", _is_share, False)
        _check(f"paper.{one}.", values, dict.fromkeys(metrics, share))
    train = TrainTable(**content["train"])
    every = content.get("split", {}).get("every")
    if (every is None) != (train.set != FOLDER or FOLDER not in sets):
        raise ValueError(
            f"`split` must be given if {FOLDER!r} is both trained and tested on, and only then: "
            f"got train.set = {train.set!r}, evaluate.sets = {list(sets)!r} "
            f"{'without' if every is None else 'with'} it"
        )
    return Recipe(
        name,
        content["title"],
        content["source"],
        BackboneTable(**content["backbone"]),
        train,
        PredictTable(**content["predict"]),
        EvaluateTable(**evaluate),
        paper,
        every,
    )


def _check(place: str, table: dict[str, Any], rules: Mapping[str, _Rule]) -> None:
    """Checks keys and values of a table; ``place`` is a prefix of its keys."""
    for key in table:
        if key not in rules:
            known = ", ".join(rules)
            raise ValueError(f"`{place}{key}` is unknown: the keys there are {known}")
    for key, rule in rules.items():
        if key not in table and rule.required:
            raise ValueError(f"`{place}{key}` must be {rule.text}: it is missing")
        if key in table and not rule.holds(table[key]):
            raise ValueError(f"`{place}{key}` must be {rule.text}: got {table[key]!r}")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _whole(low: int) -> _Rule:
    return _Rule(
        f"an integer from {low} to 2^63 - 1",
        # Exactly: to Python, true and false are integers.
        lambda value: type(value) is int and low <= value < 2**63,
    )


def _one(allowed: tuple[str, ...], required: bool = True) -> _Rule:
    return _Rule(f"one of {', '.join(allowed)}", lambda value: value in allowed, required)


def _some(allowed: tuple[str, ...]) -> _Rule:
    return _Rule(
        f"a list of some of {', '.join(allowed)}, each once",
        lambda value: (
            isinstance(value, list)
            and bool(value)
            and all(one in allowed for one in value)
            and all(value.count(one) == 1 for one in value)
        ),
    )


_SETS = (*KNOWN, FOLDER)
_TEXT = _Rule("a string that is not empty", _is_text)
_TABLE = _Rule("a table", _is_table)
_OPTIONAL = _TABLE._replace(required=False)
_TOP = {
    **{"title": _TEXT, "source": _TEXT},
    **dict.fromkeys(("backbone", "train", "predict", "evaluate"), _TABLE),
    **{"paper": _OPTIONAL, "split": _OPTIONAL},
}
_TABLES = {
    "backbone": {"name": _TEXT, "features": _one(FEATURES, False), "dtype": _one(DTYPES, False)},
    "train": {
        "set": _one(_SETS),
        "size": _whole(1),
        "epochs": _whole(1),
        "max_images": _whole(1),
        "seed": _whole(0),
        "feature_dtype": _one(DTYPES, False),
    },
    "predict": {"size": _whole(1)},
    "split": {"every": _whole(2)},
}
