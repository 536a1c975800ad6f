"""The command line: each command calls one function of the package."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..backbones import WeightsError
from ..core import native as _native
from ..core import options as params
from ..images.load import ImageEntries, find_images, sample_images
from ..jobs.label import label_images
from ..models.labeler import PseudoLabeler
from ..util import distributed as _distributed
from . import arguments as _arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1, 2 (usage), 130 (Ctrl-C or SIGTERM).

    1: images failed, folders could not be listed, or a data set that is there is not whole. 141,
    without a word: what reads the output has ended, as ``head`` does.
    """
    arguments = _arguments.parser().parse_args(argv)
    try:
        code = _COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return 141
    except (ValueError, WeightsError, OSError, ImportError) as error:
        print(f"selfment {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "" if arguments.command == "eval" else "; what was done is kept"
        print(f"selfment {arguments.command}: interrupted{kept}", file=sys.stderr)
        return 130


def _discard_output() -> None:
    """Lets what is still to be written go nowhere, so that it is not complained about at exit."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


def _label(arguments: argparse.Namespace) -> int:
    images = _images(arguments)
    labeler = _labeler(arguments, objects=arguments.objects)
    with _terminable():
        summary = label_images(
            images,
            arguments.out,
            labeler,
            overlays=arguments.overlay,
            formats=arguments.format,
            refine=arguments.refine,
            fill_holes=arguments.fill_holes,
            largest_component=arguments.largest_component,
            shard=_distributed.world(),
        )
    counts = f"{summary.labelled} labelled, {summary.skipped} already done, {summary.failed} failed"
    print(f"{counts}; see {arguments.out}/labels.jsonl", file=sys.stderr)
    return 1 if _distributed.any_failed(summary.failed + len(images.unlisted)) else 0


def _train(arguments: argparse.Namespace) -> int:
    from ..training.run import train

    images = _images(arguments)
    limit = arguments.cache_limit
    if limit is not None:
        params.number("cache-limit", limit, "a number >= 0", 0 <= limit < float("inf"))
    summary = train(
        images,
        arguments.out,
        _labeler(arguments),
        epochs=arguments.epochs,
        max_images=arguments.max_images,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        seed=arguments.seed,
        cache=arguments.cache,
        use_cache=not arguments.no_cache,
        cache_limit=None if limit is None else round(limit * 1e9),
        feature_dtype=arguments.feature_dtype,
        resume=arguments.resume or _distributed.restarted(),
    )
    if _distributed.world()[0] > 0:
        return 0  # the first process speaks for all
    counts = f"trained on {summary.images} images, {summary.failed} failed"
    print(f"{counts}, {summary.steps} steps; the head is {summary.head}", file=sys.stderr)
    return 1 if summary.failed or images.unlisted else 0


def _predict(arguments: argparse.Namespace) -> int:
    from ..jobs.predict import find_inputs, predict_images
    from ..models.segmenter import Segmenter

    _set_threads(arguments.threads)
    inputs = find_inputs(arguments.inputs, out=arguments.out)
    segmenter = Segmenter.from_pretrained(
        arguments.head,
        backbone=arguments.backbone,
        size=arguments.size,
        features=arguments.features,
        weights=arguments.weights,
        device=arguments.device,
        dtype=arguments.dtype,
        positions=arguments.positions,
        keep_aspect=arguments.keep_aspect,
        batch_size=arguments.batch,
        compile=arguments.compile,
    )
    if segmenter.note:
        print(segmenter.note, file=sys.stderr)
    with _terminable():
        summary = predict_images(
            inputs,
            arguments.out,
            segmenter,
            overlays=arguments.overlay,
            binary=arguments.binary,
            shard=_distributed.world(),
        )
    counts = f"{summary.predicted} segmented, {summary.skipped} already done"
    where = f"{arguments.out}/predictions.jsonl"
    print(f"{counts}, {summary.failed} failed; see {where}", file=sys.stderr)
    return 1 if _distributed.any_failed(summary.failed + len(inputs.unlisted)) else 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which torchrun and schedulers send, ends the run as Ctrl-C does: in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        params.number("threads", threads, "an integer >= 1", threads >= 1)
        torch.set_num_threads(threads)


def _images(arguments: argparse.Namespace) -> ImageEntries:
    if bool(arguments.inputs) == arguments.samples:
        raise ValueError(f"give either the images to {arguments.command}, INPUT..., or --samples")
    _set_threads(arguments.threads)
    _native.cpu()  # what is wrong with it is the run's error, not that of each image
    if arguments.samples:
        return sample_images()
    return find_images(arguments.inputs, out=arguments.out)


def _labeler(arguments: argparse.Namespace, **options: Any) -> PseudoLabeler:
    options |= _label_options(arguments)
    labeler = PseudoLabeler(**options, method=arguments.method, init=arguments.init)
    if labeler.note:
        print(labeler.note, file=sys.stderr)
    return labeler


def _label_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "backbone": arguments.backbone,
        "size": arguments.size,
        "features": arguments.features,
        "weights": arguments.weights,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "positions": arguments.positions,
        "tau": arguments.tau,
        "eps": arguments.eps,
        "graph": arguments.graph,
        "orient": arguments.orient,
        "min_confidence": arguments.min_confidence,
        "batch_size": arguments.batch,
        "backbones": getattr(arguments, "backbones", ()),  # training has no use for them
    }


def _compare(arguments: argparse.Namespace) -> int:
    from ..experiments.compare import compare

    images = _images(arguments)
    found = compare(
        images,
        arguments.gt,
        arguments.out,
        methods=arguments.methods,
        inits=arguments.inits,
        gt_suffix=arguments.gt_suffix,
        allow_missing=arguments.allow_missing,
        workers=arguments.workers,
        **_label_options(arguments),
    )
    print(found.to_text(), end="")
    print(f"see {arguments.out}/comparison.md, .csv, .json and .tex", file=sys.stderr)
    return 1 if images.unlisted else 0


def _eval(arguments: argparse.Namespace) -> int:
    from ..evaluation.folders import FORMATS, evaluate
    from ..evaluation.html import write_html

    if arguments.images is not None and arguments.report is None:
        raise ValueError("`images` must come with a page to show them on, --report F.html")
    report = evaluate(
        arguments.pred,
        arguments.gt,
        protocol=arguments.protocol,
        metrics=arguments.metrics,
        workers=arguments.workers,
        allow_missing=arguments.allow_missing,
        suffix=arguments.suffix,
        gt_suffix=arguments.gt_suffix,
    )
    print(report.to_text(), end="")
    for name in FORMATS:
        path = getattr(arguments, name)
        if path is not None:
            report.save(path, name)
    if arguments.report is not None:
        write_html(report, arguments.report, images=arguments.images)
    for sentence in report.failed:
        print(f"selfment eval: {sentence}", file=sys.stderr)
    return 1 if report.failed else 0


def _data(arguments: argparse.Namespace) -> int:
    from ..evaluation.datasets import check, describe

    found = check(arguments.root)
    print("\n".join(describe(found, arguments.root)))
    if not any(one.there for one in found):
        print(f"no data set lies in {arguments.root}", file=sys.stderr)
        return 1
    return 1 if any(one.there and not one.whole for one in found) else 0


def _reproduce(arguments: argparse.Namespace) -> int:
    from ..experiments.recipes import find_recipe, packaged
    from ..experiments.reproduce import reproduce

    if arguments.list:
        for recipe in packaged():
            print(f"{recipe.name:<16} {recipe.title}")
        return 0
    if None in (arguments.recipe, arguments.data, arguments.out):
        raise ValueError("give RECIPE, --data ROOT and --out DIR, or --list")
    _set_threads(arguments.threads)
    found = reproduce(
        find_recipe(arguments.recipe),
        arguments.data,
        arguments.out,
        limit=arguments.limit,
        weights=arguments.weights,
        device=arguments.device,
        batch_size=arguments.batch,
        workers=arguments.workers,
    )
    print(found.table, end="")
    print(f"see {arguments.out}/results.md and results.json", file=sys.stderr)
    return 1 if found.unlabelled else 0


def _info(arguments: argparse.Namespace) -> int:
    for name, value in _native.info().items():
        print(f"{name:<16} {value}")
    return 0


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "label": _label,
    "train": _train,
    "predict": _predict,
    "compare": _compare,
    "eval": _eval,
    "data": _data,
    "reproduce": _reproduce,
    "info": _info,
}
