"""The scores of a data set: a folder of saliency maps against a folder of masks."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import current_process, get_context

import torch
from tqdm import tqdm

from ..core import options as params
from ..images.load import ImageError
from ..images.maps import read_saliency, read_truth
from ..util.files import nfc
from .datasets import find_masks, split_stray, stray_note
from .pairs import FilePair, check_complete, files_by_stem, match
from .report import Report
from .scores import Evaluator, Scored, score, wanted_scores
from .tables import counted

_CHUNK = 4  # pairs that a process takes at a time
_AHEAD = 128  # chunks whose results wait for an earlier one at most


def evaluate(
    pred: str | os.PathLike[str],
    gt: str | os.PathLike[str],
    *,
    protocol: str = "all",
    metrics: Sequence[str] | None = None,
    workers: int = 1,
    allow_missing: bool = False,
    suffix: str | None = None,
    gt_suffix: str = "",
    progress: bool = True,
) -> Report:
    """Scores the saliency maps in the folder ``pred`` against the masks in the folder ``gt``.

    Both folders are searched recursively for images of any type. The prediction of ``sub/a.png`` is
    ``sub/a``, ``sub/a_saliency`` or ``sub/a_mask``, with any image suffix. Names match whichever
    way Unicode composes their letters. :mod:`selfment.images.maps` says how files are read. The PNG
    files of a labeler with ``objects`` hold numbers of objects, not saliency, and are not to be
    scored. Published data sets have odd files, which are left out with a note: masks in JPEG beside
    a mask of the same name in a lossless format, and masks without an image, where the folders
    around ``gt`` are those of a data set in :data:`selfment.evaluation.datasets.KNOWN`.

    Args:
        pred: The folder of predictions.
        gt: The folder of ground truths.
        protocol: See :data:`selfment.evaluation.scores.PROTOCOLS`.
        metrics: Only these scores of the protocol.
        workers: The number of processes that share the work, this one included. The others start
            afresh where there is enough to do, so that a script that asks for them needs the usual
            ``if __name__ == "__main__"``. The result does not depend on their number, to the bit.
        allow_missing: Score the pairs that are there, where files lack their partner.
        suffix: The end of the predictions' names: "", "_saliency", "_mask" or another one. Files
            with another end are left alone. By default it is the only one of these in the folder,
            and "_saliency" where there are "_saliency" and "_mask".
        gt_suffix: The end of the ground truths' names, "_mask" for ``a_mask.png``. Files without it
            are left alone.
        progress: Show a bar on stderr.

    Returns:
        The scores; ``failed`` has a sentence for each pair that cannot be read or scored.

    Raises:
        ValueError: For wrong arguments; for folders that do not exist or hold no images; for two
            files of one name; for files without their partner, unless ``allow_missing``; and where
            no pair can be read.
        ChildProcessError: Where one of the processes is killed.
    """
    # Before the folders are searched.
    params.require("workers", workers, "an integer >= 1", isinstance(workers, int) and workers >= 1)
    wanted_scores(protocol, metrics)
    pairs, missing, extra = match(pred, gt, suffix, gt_suffix)
    lonely = without_image(gt, missing)
    missing = [name for name in missing if name not in lonely]
    if not allow_missing:
        check_complete(missing, extra)
    report = score_pairs(
        pairs, protocol=protocol, metrics=metrics, workers=workers, progress=progress
    )
    report.missing, report.extra = missing, extra
    if lonely:
        report.notes.append(
            f"ground truth that its data set has no image for, left out: {counted(lonely, 'file')}"
        )
    stray = [p.name for files in files_by_stem(gt, "gt").values() for p in split_stray(files)[1]]
    if stray:
        report.notes.append(stray_note(stray))
    return report


def score_pairs(
    pairs: Sequence[FilePair],
    *,
    protocol: str = "all",
    metrics: Sequence[str] | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Report:
    """Scores pairs of files, in their order; the arguments are those of :func:`evaluate`.

    Raises ``ValueError`` for wrong arguments and where no pair can be read, ``ChildProcessError``
    where one of the processes is killed.
    """
    params.require("workers", workers, "an integer >= 1", isinstance(workers, int) and workers >= 1)
    evaluator = Evaluator(protocol, metrics=metrics)
    failed = []
    results = _scored(pairs, wanted_scores(protocol, metrics), workers)
    bar = tqdm(results, total=len(pairs), unit="image", disable=not progress, file=sys.stderr)
    for pair, result in zip(pairs, bar, strict=True):
        if isinstance(result, str):
            failed.append(result)
        else:
            evaluator.add(pair.name, result, pair.prediction, pair.truth)
    if len(failed) == len(pairs):
        raise ValueError(f"no pair of files can be read: {failed[0]}")
    report = evaluator.report()
    report.failed = failed
    return report


def without_image(gt: str | os.PathLike[str], missing: Sequence[str]) -> list[str]:
    """The ground truths, of those ``missing`` a prediction, that their data set has no image for.

    DUTS-TE has two such masks. A folder ``gt`` of an unknown data set has none.
    """
    data_set = find_masks(gt) if missing else None
    if data_set is None:
        return []
    images = {nfc(os.path.splitext(image.name)[0]) for image in data_set.images}
    return [name for name in missing if name not in images]


def _scored(
    pairs: Sequence[FilePair], wanted: tuple[str, ...], workers: int
) -> Iterator[Scored | str]:
    """The results of all pairs, in their order; a sentence for one that cannot be read."""
    if workers == 1 or len(pairs) < 4 * _CHUNK * workers:
        for pair in pairs:
            yield _score_pair(pair, wanted)
        return
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and script and not os.path.exists(script):
        raise ValueError(
            "`workers` must be 1 in a program that is read from standard input, which other "
            f"processes cannot import: got {workers}"
        )
    if getattr(current_process(), "_inheriting", False):
        # A script without the usual guard runs again in each process that it starts. The first one
        # says so, in a sentence; more than that Python would say from here.
        raise SystemExit(1)
    starts = range(0, len(pairs), _CHUNK)
    chunks = deque(pairs[start : start + _CHUNK] for start in starts)
    ordered: deque[Future[list[Scored | str]]] = deque()
    # Processes that are forked would inherit the locks of threads that they do not have.
    pool = ProcessPoolExecutor(workers - 1, get_context("spawn"), _start_worker)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each process has a core
    try:
        # They take seconds to start, in which this process works on its own.
        ready = [pool.submit(os.getpid) for _ in range(workers - 1)]
        while chunks or ordered:
            waiting = sum(not future.done() for future in ordered)
            for _ in range(2 * sum(future.done() for future in ready) - waiting):
                if chunks:
                    ordered.append(pool.submit(_score_chunk, chunks.popleft(), wanted))
            if ordered and (ordered[0].done() or not chunks or len(ordered) == _AHEAD):
                yield from ordered.popleft().result()
            elif chunks:
                own: Future[list[Scored | str]] = Future()
                own.set_result(_score_chunk(chunks.popleft(), wanted))
                ordered.append(own)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process of `workers` ended before its time: it ran out of memory, or the script "
            'that started it lacks `if __name__ == "__main__"`'
        ) from error
    finally:
        torch.set_num_threads(threads)
        pool.shutdown(wait=False, cancel_futures=True)  # they end while the caller goes on


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the first process's to handle
    torch.set_num_threads(1)


def _score_chunk(pairs: Sequence[FilePair], wanted: tuple[str, ...]) -> list[Scored | str]:
    return [_score_pair(pair, wanted) for pair in pairs]


def _score_pair(pair: FilePair, wanted: tuple[str, ...]) -> Scored | str:
    try:
        saliency, notes = read_saliency(pair.prediction)
        truth, more = read_truth(pair.truth)
        return score(saliency, truth, wanted, [*notes, *more])
    except ImageError as error:
        return str(error)
    except Exception as error:  # one pair that the libraries cannot score costs itself alone
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"cannot score {pair.prediction} against {pair.truth}: {reason}"
