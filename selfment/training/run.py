"""Training of the segmentation head: features and labels once for each image, then epochs."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..backbones import DTYPES
from ..core import options as params
from ..core.torch_state import as_documented, loading
from ..images.load import ImageEntry, ImageError
from ..models.head import HeadInfo, PatchHead, save_head
from ..models.labeler import PseudoLabeler
from ..util import distributed as _distributed
from ..util.files import output_path
from ..util.words import count_of
from .cache import TensorCache
from .choice import Choice, Counts, choose
from .folder import RunFolder, load_tensorboard
from .loop import LEARNING_RATE, SEED, STEPS, WEIGHT_DECAY, fit
from .masks import MaskFolder
from .samples import LabelledImages

MAX_IMAGES = 1000
_CHECKED = 64  # images at most that a finished head is compared on


@dataclass(frozen=True, kw_only=True)
class TrainingSummary(Counts):
    """The head of a training run, and how much was done."""

    head: Path  #: the folder of the finished head
    steps: int  #: taken by this run
    seconds_per_step: float  #: the median; NaN without a step
    agreement: float  #: intersection over union of the head's foreground and the labels'
    foreground: float  #: the share of the patches that the head calls foreground

    @property
    def is_constant(self) -> bool:
        """True if the head has learned nothing: all of its patches are on one side."""
        return self.foreground < 0.001 or self.foreground > 0.999


def train(
    images: Sequence[ImageEntry],
    out: str | os.PathLike[str],
    labeler: PseudoLabeler,
    *,
    labels: str | os.PathLike[str] | None = None,
    only: Collection[str] | None = None,
    drop_rejected: bool = False,
    epochs: int | None = None,
    max_images: int = MAX_IMAGES,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
    seed: int = SEED,
    cache: str | os.PathLike[str] | None = None,
    use_cache: bool = True,
    cache_limit: int | None = None,
    feature_dtype: str = "float32",
    resume: bool = False,
    progress: bool = True,
) -> TrainingSummary:
    """Labels images once, and trains a head on them; :class:`selfment.Segmenter` uses the head.

    Files of the same content share an entry of the cache, whatever their names. Images that cannot
    be labelled are reported on stderr and left out; an image that has labels but cannot be read
    again ends the run, which can be resumed. Under ``torchrun`` all processes share images and
    steps, and should see the same ``out``.

    Labels can be masks that exist: a folder that ``selfment label`` has written, also if masks in
    it were redrawn since, or one with anybody's masks, see
    :class:`selfment.training.masks.MaskFolder`. They may have any size with the aspect ratio of
    their image, and any format of ground truth that :func:`selfment.evaluate` reads: every object
    is foreground. A mask is averaged over the area of each patch, so that patches on the border of
    an object have labels between 0 and 1.

    Args:
        images: From :func:`selfment.images.find_images`.
        out: The folder that gets ``settings.json``, ``steps.jsonl`` (the losses of each step),
            TensorBoard events, ``epoch-NNN.pt`` after each of the last three epochs, and the
            finished ``head/``.
        labeler: Makes the features, and the labels unless they exist.
        labels: A folder with masks of the images, which are the labels then; the labeler's method
            is not used. Images without a mask are left out and counted.
        only: The names of the images to train on, relative to the folder that was searched, as in
            the records of ``selfment label``; see :func:`selfment.training.read_names`.
        drop_rejected: Leave out the images that the labeler rejected. They are otherwise trained on
            as images that are all background. A rejected image with a mask that has some foreground
            by now does not count as rejected.
        epochs: How often each image is trained on. None: as often as it takes for 3,000 images in
            all, which is what the paper's heads are trained on.
        max_images: How many of the images are used at most; ``seed`` chooses them.
        lr: Learning rate of Adam.
        weight_decay: Of Adam.
        seed: Of the choice of images, of their order and of the head's first weights.
        cache: The folder for features (N x d numbers for each image) and labels; by default
            ``out/cache``.
        use_cache: False: features are computed again in each epoch.
        cache_limit: Bytes that the cache may take; features that do not fit are computed again in
            each epoch. None: no limit.
        feature_dtype: Of the features in the cache: "float32", "float16" or "bfloat16".
        resume: Go on after the last epoch in ``out``, to the same result. The images may lie
            elsewhere by then, under the same names relative to the folder that was searched.
        progress: Show a bar on stderr.

    Raises:
        ValueError: For wrong arguments, among them names in ``only`` that no image has, for an
            ``out`` that holds another training, and where no image can be labelled.
        ImportError: Without TensorBoard.
        selfment.backbones.WeightsError: Where the backbone cannot be loaded.
    """
    _check(epochs, max_images, lr, weight_decay, seed, cache_limit, feature_dtype)
    options: dict[str, Any] = {
        "lr": float(lr),
        "weight_decay": float(weight_decay),
        "seed": int(seed),
    }
    rank, world = _distributed.world()
    if rank == 0:
        load_tensorboard()  # before any work is done
    masks = None if labels is None else MaskFolder(labels)
    if drop_rejected and masks is not None and not masks.has_records:
        raise ValueError(
            "`drop_rejected` must come with the labels of `selfment label`, whose records say what "
            f"was rejected: {masks.path} has none"
        )
    folder = output_path("out", out)
    choice = choose(images, only, masks, max_images, int(seed), drop_rejected)
    progress = progress and rank == 0
    run = RunFolder(folder, rank == 0, resume)
    try:
        store = None
        if use_cache:
            cache = folder / "cache" if cache is None else output_path("cache", cache)
            store = TensorCache(cache, cache_limit, world)
        with _distributed.process_group(labeler.torch_device):
            _check_one_folder(run.finished)
            samples = LabelledImages(choice, labeler, store, feature_dtype, masks, drop_rejected)
            counts = _prepare(samples, choice, run, {**options, "processes": world}, progress)
            epochs = _epochs(epochs, samples, run)
            head, info = _head(labeler, int(seed), run)
            steps = -(-len(samples) // world) * (epochs - run.finished)
            if progress:
                work = f"{count_of(steps, 'step')} on {count_of(len(samples), 'image')}"
                left = epochs - run.finished
                often = "once" if left == 1 else f"{left:,} times"
                print(f"training: {work}, {often} each (--epochs says how often)", file=sys.stderr)
            with tqdm(total=steps, unit="step", disable=not progress) as bar:
                fit(
                    head.to(labeler.torch_device),
                    samples,
                    epochs=epochs,
                    **options,
                    finished=run.finished,
                    optimizer_state=run.checkpoint.get("optimizer_state"),
                    on_step=lambda step: run.log(step, bar),
                    on_epoch=lambda epoch, state: run.save(epoch, head, info, state),
                )
            if rank == 0:
                save_head(folder / "head", head, info)
                run.close()
            _distributed.gathered(None)  # no process leaves before all is written
    finally:
        run.close()
    agreement, foreground = _agreement(head, samples)
    return TrainingSummary(
        **vars(counts),
        head=folder / "head",
        steps=len(run.seconds),
        seconds_per_step=run.median,
        agreement=agreement,
        foreground=foreground,
    )


def _prepare(
    samples: LabelledImages,
    choice: Choice,
    run: RunFolder,
    options: dict[str, Any],
    progress: bool,
) -> Counts:
    """Labels the images and begins the run; returns what became of the images.

    Raises ``ValueError`` where no image is left, and where a resumed run is another one.
    """
    failed = samples.prepare(progress)
    counts = Counts(
        images=len(samples),
        failed=len(failed),
        empty=samples.empty,
        rejected=samples.rejected,
        dropped=samples.dropped,
        unlabelled=len(choice.unlabelled),
        unchosen=choice.unchosen,
        surplus=choice.surplus,
    )
    if not len(samples):
        count = len(choice.images)
        if counts.dropped == count:
            raise ValueError(
                f"`drop_rejected` must leave an image to train on: all {count:,} were rejected"
            )
        dropped = f", and {counts.dropped} were rejected" if counts.dropped else ""
        raise ValueError(
            "`images` must hold one that can be labelled: "
            f"got {count:,}, of which none can{dropped}"
        )
    dtype = str(samples.dtype).removeprefix("torch.")
    settings = {**samples.settings, **options, "feature_dtype": dtype}
    run.begin(settings, samples.names, samples.samples, failed, samples.folder)
    if progress:
        for sentence in [*samples.notes(choice.unlabelled), *counts.sentences()]:
            print(sentence, file=sys.stderr)
    return counts


def _epochs(epochs: int | None, samples: LabelledImages, run: RunFolder) -> int:
    """The number of epochs; raises ``ValueError`` if more are finished already."""
    if epochs is None:
        return max(run.finished, -(-STEPS // len(samples)))
    if run.finished > epochs:
        raise ValueError(
            f"`epochs` must be at least as many as are finished: got {epochs}, {run.folder} has "
            f"{run.finished}"
        )
    return epochs


def _agreement(head: PatchHead, samples: LabelledImages) -> tuple[float, float]:
    """The IoU of the head's foreground with the labels, and its share of the patches.

    Both are of some of the images, without those that cannot be read any more; NaN without any.
    """
    device = next(head.parameters()).device
    both = either = foreground = patches = 0
    for index in range(0, len(samples), -(-len(samples) // _CHECKED)):
        try:
            features, labels = samples[index]
        except ImageError:  # the head is there already: this must not lose it
            continue
        with torch.no_grad(), as_documented(device):
            ours = (head.saliency(features.to(device)) > 0.5).cpu()
        theirs = labels > 0.5
        both += int((ours & theirs).sum())
        either += int((ours | theirs).sum())
        foreground += int(ours.sum())
        patches += len(ours)
    if not patches:
        return math.nan, math.nan
    return both / either if either else 1.0, foreground / patches


def _check_one_folder(finished: int) -> None:
    """Raises ``ValueError`` where the processes see different checkpoints."""
    epochs = _distributed.gathered(finished)
    if len(set(epochs)) > 1:
        raise ValueError(
            "`out` must be the same folder for all processes: they found checkpoints of "
            f"{', '.join(map(str, epochs))} epochs"
        )


def _head(labeler: PseudoLabeler, seed: int, run: RunFolder) -> tuple[PatchHead, HeadInfo]:
    """A new head, or the checkpoint's, and what is saved with it."""
    head = _new_head(labeler.backbone.dim, seed)
    if run.checkpoint:
        head.load_state_dict(run.checkpoint["model_state"])
    # No path of this machine travels with the head.
    public = {name: value for name, value in run.settings.items() if name != "weights"}
    return head, HeadInfo(
        labeler.recorded_name,
        labeler.features,
        labeler.size,
        public,
        labeler.positions,
        labeler.keep_aspect,
    )


def _new_head(dim: int, seed: int) -> PatchHead:
    """The head that ``torch.manual_seed(seed)`` and ``PatchHead(dim)`` make.

    The state of torch's global generators stays as it is.
    """
    with loading():
        head = PatchHead(dim)
        generator = torch.Generator("cpu").manual_seed(seed)
        for layer in (part for part in head.modules() if isinstance(part, nn.Linear)):
            # As torch initialises its linear layers.
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        return head


def _check(
    epochs: int | None,
    max_images: int,
    lr: float,
    weight_decay: float,
    seed: int,
    cache_limit: int | None,
    feature_dtype: str,
) -> None:
    for name, value in (("epochs", 1 if epochs is None else epochs), ("max_images", max_images)):
        params.require(name, value, "an integer >= 1", isinstance(value, Integral) and value >= 1)
    finite = isinstance(lr, Real) and lr < math.inf
    params.require("lr", lr, "a number > 0", finite and lr > 0)
    finite = isinstance(weight_decay, Real) and weight_decay < math.inf
    params.require("weight_decay", weight_decay, "a number >= 0", finite and weight_decay >= 0)
    whole = isinstance(seed, Integral)
    params.require("seed", seed, "an integer from 0 to 2^63 - 1", whole and 0 <= seed < 2**63)
    if cache_limit is not None:
        params.require("cache_limit", cache_limit, "an integer >= 0", cache_limit >= 0)
    params.choice("feature_dtype", feature_dtype, DTYPES)
