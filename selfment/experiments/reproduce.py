"""From a recipe to a table: train, predict, evaluate, and compare with the paper."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core import native as _native
from ..core import options as params
from ..evaluation.datasets import DataSet, ImagePair, find_folder, find_set
from ..evaluation.tables import Table
from ..images.load import ImageEntry
from ..jobs.predict import predict_images
from ..models.head import WEIGHTS_NAME
from ..models.labeler import PseudoLabeler
from ..models.segmenter import Segmenter
from ..training.run import train
from ..util import distributed as _distributed
from ..util.files import RealPaths, not_writable, output_path, sha256_of, write_atomically
from ..util.lines import without_checksum
from ..util.words import count_of
from .recipes import FOLDER, Recipe

_COLUMNS = ("data set", "images", "metric", "ours", "paper", "difference")


@dataclass(frozen=True)
class Reproduction:
    """The results of a recipe."""

    results: dict[str, Any]  #: the content of ``results.json``
    table: str  #: the content of ``results.md``
    unlabelled: int  #: images that could not be labelled, and were not trained on


@dataclass(frozen=True)
class _TestSet:
    """A data set that is tested on."""

    name: str
    pairs: Sequence[ImagePair]
    count: int  # of the pairs without a limit


def reproduce(
    recipe: Recipe,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    limit: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
    batch_size: int = 8,
    workers: int = 1,
    progress: bool = True,
) -> Reproduction:
    """Trains, predicts and evaluates as ``recipe`` says; see :mod:`selfment.experiments.recipes`.

    Args:
        recipe: The settings of the experiment.
        data: The folder of all data sets, in the layouts of :mod:`selfment.evaluation.datasets`.
            The set "folder" is ``data/images`` with ``data/masks``.
        out: The folder that gets ``train``, as :func:`selfment.training.train` writes it,
            ``predictions/SET``, ``results.json`` and ``results.md``. Results that it holds from the
            same run are not computed again.
        limit: Use only so many images of each data set, the first by name; a data set may be
            incomplete then.
        weights: A file of weights for the backbone.
        device: Of the backbone; CUDA by default where there is a device.
        batch_size: Images in one pass of the backbone.
        workers: The number of processes that evaluate.
        progress: Show bars on stderr.

    Raises:
        ValueError: For a data set that is missing or incomplete, and for an ``out`` of another run,
            before anything is computed; for images that cannot be segmented.
        Exception: What training, prediction and evaluation raise.
    """
    if limit is not None:
        params.require("limit", limit, "an integer >= 1", isinstance(limit, int) and limit >= 1)
    params.require("workers", workers, "an integer >= 1", isinstance(workers, int) and workers >= 1)
    params.require("data", os.fspath(data), "a folder of data sets", Path(data).is_dir())
    processes = _distributed.world()[1]
    params.require("WORLD_SIZE", processes, "1: a recipe runs in one process", processes == 1)
    images = _training_images(recipe, data, limit)
    tests = [_test(recipe, name, data, limit) for name in recipe.evaluate.sets]
    folder = output_path("out", out)
    _native.cpu()  # what is wrong with it is the run's error, not that of each image
    backbone: dict[str, Any] = {
        "features": recipe.backbone.features,
        "weights": weights,
        "device": device,
        "dtype": None if recipe.backbone.dtype == "float32" else recipe.backbone.dtype,
        "batch_size": batch_size,
    }
    _train(recipe, images, folder, backbone, progress)
    segmenter = Segmenter(
        folder / "train" / "head", recipe.backbone.name, recipe.predict.size, **backbone
    )
    about = json.loads((folder / "train" / "settings.json").read_text(encoding="utf-8"))
    results: dict[str, Any] = {
        "recipe": asdict(recipe),
        "limit": limit,
        "versions": _native.info(),
        "training": {
            "images": len(about["images"]),
            "failed": len(about["failed"]),
            "settings": about["settings"],
        },
        "prediction": segmenter.settings,
        "sets": {},
    }
    for test in tests:
        if progress:
            print(f"{test.name}: {_count(len(test.pairs), 'image')}", file=sys.stderr)
        files = _predict(test, folder / "predictions" / test.name, segmenter, progress)
        scores = _scores(recipe, test, files, workers, progress)
        paper = recipe.paper.get(test.name, {})
        results["sets"][test.name] = {
            "images": len(test.pairs),
            "of": test.count,
            "scores": scores,
            "paper": dict(paper),
            "difference": {name: _less(scores[name], value) for name, value in paper.items()},
        }
    table = _table(results)
    _write_json(folder / "results.json", results)
    write_atomically(folder / "results.md", lambda file: file.write(table.encode()), durable=True)
    return Reproduction(results, table, len(about["failed"]))


def _training_images(recipe: Recipe, data: str | os.PathLike[str], limit: int | None) -> list[Path]:
    data_set = _find(recipe.train.set, data)
    if recipe.train.set == FOLDER:
        _require_whole(data_set, data_set.problems, limit)
        return [pair.image for pair in _part(recipe, data_set, tested=False)[:limit]]
    # Training needs no masks, so that a set without them will do.
    _require_whole(data_set, data_set.image_problems, limit)
    if not data_set.images:
        raise ValueError(f"the data set {data_set.name} must hold images: got none")
    return list(data_set.images[:limit])


def _test(recipe: Recipe, name: str, data: str | os.PathLike[str], limit: int | None) -> _TestSet:
    data_set = _find(name, data)
    _require_whole(data_set, data_set.problems, limit)
    pairs = _part(recipe, data_set, tested=True)
    return _TestSet(name, pairs[:limit], data_set.count or len(pairs))


def _find(name: str, data: str | os.PathLike[str]) -> DataSet:
    return find_folder(data, FOLDER) if name == FOLDER else find_set(name, data)


def _require_whole(data_set: DataSet, problems: list[str], limit: int | None) -> None:
    if not data_set.there:
        raise ValueError(f"the data set {data_set.name} is {problems[0]}")
    if problems and limit is None:
        raise ValueError(f"the data set {data_set.name} is not whole: {'; '.join(problems)}")


def _part(recipe: Recipe, data_set: DataSet, tested: bool) -> list[ImagePair]:
    """All pairs of a data set; of the set "folder" those that are tested on, or all others."""
    every = recipe.every if data_set.name == FOLDER else None
    pairs = list(data_set.pairs)
    if every is not None:
        pairs = [pair for i, pair in enumerate(pairs, 1) if (i % every == 0) == tested]
    if not pairs:
        raise ValueError(
            f"the data set {data_set.name} must have at least {every or 1} pairs of image and "
            f"mask: got {len(data_set.pairs)}"
        )
    return pairs


def _train(
    recipe: Recipe, images: list[Path], folder: Path, backbone: dict[str, Any], progress: bool
) -> None:
    """Trains a head, or finds the one that an earlier run has trained."""
    # It ends here, and with it its backbone: two may be more than a device can hold.
    labeler = PseudoLabeler(recipe.backbone.name, recipe.train.size, **backbone)
    if progress and labeler.note:
        print(labeler.note, file=sys.stderr)
    settings = {
        **{f"backbone.{key}": value for key, value in asdict(recipe.backbone).items()},
        **{f"train.{key}": value for key, value in asdict(recipe.train).items()},
        "weights": labeler.settings["weights"],
        "number of images": len(images),
        "digest of images": _digest([(path.name, sha256_of(path)) for path in images]),
    }
    file = folder / "settings.json"
    if (folder / "train" / "settings.json").exists():
        before = _read_json(file)
        for name in settings:
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"`out` must be new, or of the same recipe and data: in {folder}, {name} was "
                    f"{before.get(name)!r}, is {settings[name]!r}"
                )
        if (folder / "train" / "head" / WEIGHTS_NAME).is_file():
            return
    labeler.backbone.grid(recipe.predict.size)  # what is wrong with it should not come last
    try:
        _write_json(file, settings)
    except OSError as error:
        raise not_writable("out", "folder", folder, error) from error
    train(
        [ImageEntry(path.absolute(), f"{path.stem}.png") for path in images],
        folder / "train",
        labeler,
        epochs=recipe.train.epochs,
        max_images=recipe.train.max_images,
        seed=recipe.train.seed,
        feature_dtype=recipe.train.feature_dtype,
        resume=True,
        progress=progress,
    )


def _predict(test: _TestSet, folder: Path, segmenter: Segmenter, progress: bool) -> list[Path]:
    """The saliency files of all pairs."""
    images = [pair.image.absolute() for pair in test.pairs]
    entries = [ImageEntry(path, f"{path.stem}.png") for path in images]
    summary = predict_images(entries, folder, segmenter, progress=progress)
    if summary.failed:
        raise ValueError(
            f"the data set {test.name} must be segmented whole to be scored: {summary.failed:,} of "
            f"{count_of(len(images), 'image')} failed, see {folder}/predictions.jsonl"
        )
    # By the records, for a name can be taken by an image of the same stem from elsewhere.
    names, real = {}, RealPaths()
    for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        if content := without_checksum(line):
            record = json.loads(content)
            names[record["path"]] = record["saliency"]
    return [folder / names[real(os.fspath(path))] for path in images]


def _scores(
    recipe: Recipe, test: _TestSet, files: list[Path], workers: int, progress: bool
) -> dict[str, float | None]:
    """The scores of a data set, or those that an earlier run has computed from the same files.

    None for one that is not a number.
    """
    from ..evaluation.folders import score_pairs
    from ..evaluation.pairs import FilePair

    used = [
        _stamp(path)
        for pair, file in zip(test.pairs, files, strict=True)
        for path in (file, pair.mask)
    ]
    key = _digest([__version__, asdict(recipe.evaluate), used])
    store = files[0].parent / "scores.json"
    before = _read_json(store)
    if before.get("key") == key:
        found: dict[str, float | None] = before["scores"]
        return found
    report = score_pairs(
        [
            FilePair(pair.stem, file, pair.mask)
            for pair, file in zip(test.pairs, files, strict=True)
        ],
        protocol=recipe.evaluate.protocol,
        metrics=list(recipe.evaluate.metrics),
        workers=workers,
        progress=progress,
    )
    if report.failed:
        raise ValueError(f"the data set {test.name} cannot be scored: {report.failed[0]}")
    scores = {
        name: value if math.isfinite(value := float(report.scores[name])) else None
        for name in recipe.evaluate.metrics
    }
    _write_json(store, {"key": key, "scores": scores})
    return scores


def _table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    recipe, limit, training = results["recipe"], results["limit"], results["training"]
    rows = []
    for name, found in results["sets"].items():
        whole = found["images"] == found["of"]
        images = f"{found['images']:,}" if whole else f"{found['images']:,} of {found['of']:,}"
        for metric, ours in found["scores"].items():
            paper, difference = (found[key].get(metric) for key in ("paper", "difference"))
            values = (_text(ours, ".3f"), _text(paper, ".3f"), _text(difference, "+.3f"))
            rows.append((name, images, metric, *values))
    table = Table("", _COLUMNS, rows).to_markdown().rstrip("\n")
    trained, versions = recipe["train"], results["versions"]
    notes = [
        f"{recipe['backbone']['name']}, a head trained on {_count(training['images'], 'image')} of "
        f"{trained['set']} at {trained['size']} pixels for {_count(trained['epochs'], 'epoch')}, "
        f"predictions at {recipe['predict']['size']} pixels; protocol "
        f"{recipe['evaluate']['protocol']}; selfment {versions['selfment']}, torch "
        f"{versions['torch']}, timm {versions['timm']}."
    ]
    if limit is not None:
        notes.append(
            f"**Limited to {_count(limit, 'image')} of each data set: no scores to report.**"
        )
    if training["failed"]:
        failed = _count(training["failed"], "image")
        notes.append(f"{failed} could not be labelled, and so not be trained on.")
    if recipe["every"] is not None:
        notes.append(
            f"Of {FOLDER}, each pair whose place in the order of the names is a multiple of "
            f"{recipe['every']} was tested on, and the others were trained on."
        )
    head = [f"# {recipe['title']}", f"Recipe `{recipe['name']}`. Source: {recipe['source']}."]
    return "\n\n".join([*head, table, *notes]) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _less(ours: float | None, paper: float) -> float | None:
    return None if ours is None else ours - paper


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _stamp(path: Path) -> list[Any]:
    """Returns numbers that change if a file does."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(file, lambda stream: stream.write(text.encode()), durable=True)
