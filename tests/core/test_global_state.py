"""What a caller has set for all of torch and numpy changes no result, and is left as it was."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import selfment
from helpers.cases import smooth
from helpers.heads import a_head
from selfment import Evaluator, PatchHead, PseudoLabeler, Segmenter, reference
from selfment.backbones import Backbone, load_backbone
from selfment.compat import dsm, maskcut, tokencut
from selfment.compat.selfment import unsupervised_saliency_labels
from selfment.images import refine as refinement
from selfment.images.draw import overlay
from selfment.images.load import find_images
from selfment.jobs.label import label_images
from selfment.methods import MultiObject
from selfment.models.head import HeadInfo, load_head, save_head
from selfment.training.loop import fit
from selfment.training.losses import head_loss
from selfment.training.run import train

GRID = (8, 9)
VITS = {
    "test_vit": 64,
    "vit_small_patch16_dinov3.lvd1689m": 32,
    "vit_small_patch16_224.dino": 48,
    "eva02_tiny_patch14_224": 56,
    "vit_small_patch14_reg4_dinov2.lvd142m": 28,
}


# Inputs, made before anything is set.
ROWS = smooth(*GRID, 24)
HALVES = ROWS.half().numpy()
LABELS = torch.arange(len(ROWS)) % 2
PAINTED = LABELS == 1
TOKENS = torch.cat([ROWS[:1], ROWS])[None]
FEATURES = smooth(*GRID, 384)
HEAD = a_head()
UNTRAINED = PatchHead(24)
EMBEDDING, LOGITS = smooth(*GRID, 128, seed=3), smooth(*GRID, 2, seed=5)
SAMPLES = [(smooth(*GRID, 24, seed), smooth(*GRID, 1, seed)[:, 0] > 0) for seed in range(2)]
RAMP = torch.linspace(0, 1, 600).reshape(20, 30)


# The caller's state.


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        # Those that selfment's own lines cause: other packages are not ours to mend.
        warnings.filterwarnings("error", module=r"selfment(\.|$)")
        yield


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "default device meta": lambda: default_device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic algorithms": deterministic,
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_are_errors,
}


# The work.


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    with torch.random.fork_rng(devices=[]):
        for name in VITS:
            torch.manual_seed(0)
            made[name] = folder / f"{name}.pth"
            torch.save(timm.create_model(name, pretrained=False).state_dict(), made[name])
    return made


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 255, (60, 72, 3)).astype(np.uint8)
    pixels[12:36, 15:45] //= 4
    return Image.fromarray(pixels)


def vit(name: str, features: str, checkpoints: dict[str, Path]) -> Any:
    backbone = load_backbone(name, weights=checkpoints[name], features=features)
    batch = backbone.preprocess(picture(), VITS[name])[None]
    return [batch, backbone(batch), backbone.attend(batch)]


def trained() -> Any:
    """A head after two epochs on two images, and its losses."""
    losses: list[float] = []
    with torch.inference_mode(False):
        head = copy.deepcopy(UNTRAINED)
    fit(head, SAMPLES, epochs=2, on_step=lambda step: losses.append(step.total))
    return [*head.state_dict().values(), np.array(losses)]


def a_run(folder: Path) -> Any:
    """What a training writes: settings, losses, weights."""
    for seed in range(2):
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / f"photos/{seed}.png")
    labeler = PseudoLabeler("classic", 64)
    summary = train(
        find_images([folder / "photos"]), folder / "run", labeler, epochs=1, progress=False
    )
    return list(load_head(summary.head)[0].state_dict().values())


def a_folder(folder: Path) -> Any:
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    picture().save(folder / "photos/a.png")
    labeler = PseudoLabeler("classic", 64)
    label_images(
        find_images([folder / "photos"]),
        folder / "out",
        labeler,
        overlays=True,
        refine="bilateral",
        progress=False,
    )
    return [np.asarray(Image.open(folder / "out" / name)) for name in ("a.png", "overlays/a.jpg")]


def saved_head(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    save_head(folder, HEAD, HeadInfo("classic"))
    head = load_head(folder)[0]
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
    segmenter = Segmenter(folder, size=64)
    aspect = Segmenter(folder, size=64, keep_aspect=True)
    return [
        *head.state_dict().values(),
        head.saliency(FEATURES),
        *head(FEATURES),
        segmenter(picture()),
        aspect(picture()),
    ]


def scores() -> Any:
    evaluator = Evaluator()
    maps = [RAMP.numpy(), np.zeros((20, 30), bool)]
    truths = [maps[0] > 0.4, maps[1], np.pad(maps[0] > 0.6, 5)]
    for saliency in (*maps, RAMP):
        for truth in truths:
            evaluator.update(saliency, truth)
    report = evaluator.report()
    assert report.to_markdown()
    return [
        np.array(list(report.scores.values())),
        *(np.array(list(image.scores.values())) for image in report.images),
    ]


def refined() -> Any:
    masks = [SAMPLES[0][1].reshape(GRID), np.zeros(GRID, bool)]
    methods = (None, *refinement.METHODS)
    return [selfment.refine_mask(mask, picture(), name) for mask in masks for name in methods]


def labelled(method: str) -> Any:
    labeler = PseudoLabeler("classic", 64, method=method)
    labels = labeler(picture())
    return [labels, np.asarray(overlay(picture(), labels))]


class Careless(Backbone):
    """A backbone of somebody else's, who did not think of the caller's state."""

    name, patch_size, dim = "careless", 16, 384

    def __call__(self, batch: Tensor) -> Tensor:
        colours = functional.avg_pool2d(batch, 16).flatten(2).transpose(1, 2)
        return colours @ FEATURES[:3] + torch.zeros(384)


def of_another_backbone(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("selfment.models.image_model.load_backbone", lambda *_, **__: Careless())
    objects = PseudoLabeler("careless", 64, method=MultiObject(2))
    return [
        PseudoLabeler("careless", 64)(picture()),
        objects(picture()),
        Segmenter(HEAD, "careless", 64)(picture()),
    ]


def of_cls_tokens(checkpoints: dict[str, Path]) -> Any:
    options: dict[str, Any] = {"weights": checkpoints["test_vit"], "features": "keys"}
    found = PseudoLabeler("test_vit", 64, method="found", **options)
    return [
        found(picture()),
        PseudoLabeler("test_vit", 64, method="selfment-cls", **options)(picture()),
    ]


def drop_ins() -> Any:
    rows, (h, w) = ROWS, GRID
    image = np.asarray(picture().resize((w * 8, h * 8)))
    return [
        *tokencut.ncut(TOKENS, GRID, (8, 8), (3, h * 8, w * 8), 0.2)[1:4],
        *tokencut.saliency_ncut(rows.T, GRID, (8, 8), (h * 8, w * 8), 0.2)[1:],
        *maskcut.maskcut_forward(rows.T, GRID, (8, 8), (h * 8, w * 8), 0.15, 3)[1],
        unsupervised_saliency_labels(rows, h, w),
        dsm.knn_affinity(image / 255).toarray(),
    ]


def of_features(labels: Any) -> Any:
    return [
        labels.pseudo_label(ROWS, GRID, tau="auto"),
        labels.pseudo_label(HALVES, GRID, graph="weighted"),
        labels.joint_label(ROWS, [(4, 9), (4, 9)]),
        labels.ncut(ROWS, k=2),
        labels.ipo(ROWS, LABELS),
    ]


def of_landmarks() -> Any:
    frames = [ROWS, ROWS.flip(0)]
    options: dict[str, Any] = {"landmarks": 60, "eps": 0.01}
    return [selfment.joint_label(frames, GRID, tau=tau, **options) for tau in ("auto", 0.2)]


def parts() -> Any:
    graph = selfment.affinity(ROWS, graph="weighted")
    return [
        selfment.multi_label(ROWS, GRID),
        selfment.regions(ROWS, GRID, k=3),
        selfment.regions(ROWS, GRID, k=3, method="rotation"),
        graph.to_dense(),
        graph.paint(PAINTED).degrees,
    ]


WORK: dict[str, Callable[[dict[str, Path], Path], Any]] = {
    "features alone": lambda *_: of_features(selfment),
    "reference": lambda *_: of_features(reference),
    "cuts by landmarks": lambda *_: of_landmarks(),
    "objects and regions": lambda *_: parts(),
    "losses": lambda *_: head_loss(LOGITS, EMBEDDING, PAINTED),
    "training": lambda *_: trained(),
    "a training run": lambda _, folder: a_run(folder),
    "a folder": lambda _, folder: a_folder(folder),
    "heads and segmenters": lambda _, folder: saved_head(folder),
    "scores": lambda *_: scores(),
    "refinement": lambda *_: refined(),
    "drop-ins": lambda *_: drop_ins(),
    "CLS tokens": lambda files, _: of_cls_tokens(files),
}
for _method in ("selfment", "tokencut", "maskcut", "dsm", "selfmask"):
    WORK[f"method {_method}"] = lambda *_, name=_method: labelled(name)
for _name in VITS:
    for _kind in ("tokens", "keys"):
        WORK[f"{_kind} of {_name}"] = lambda files, _, name=_name, kind=_kind: vit(
            name, kind, files
        )


def arrays(found: Any) -> list[np.ndarray]:
    """All numbers of a result, whatever holds them."""
    if isinstance(found, Tensor):
        return [found.detach().numpy()]
    if isinstance(found, list | tuple):
        return [array for one in found for array in arrays(one)]
    if is_dataclass(found):
        return arrays([getattr(found, field.name) for field in fields(found)])
    return [np.asarray(found)]


def state() -> list[Any]:
    """What a call must leave as it found it."""
    legacy = np.random.get_state(legacy=True)
    return [
        torch.get_rng_state().tolist(),
        [np.asarray(part).tolist() for part in legacy],
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        np.geterr(),
        list(warnings.filters),
    ]


def test_a_head_of_inference_tensors_is_not_trained():
    with torch.inference_mode():
        head = copy.deepcopy(UNTRAINED)
    with pytest.raises(ValueError, match=r"`head` must not be made in torch\.inference_mode"):
        fit(head, SAMPLES, epochs=1)


@pytest.fixture(scope="module")
def expected() -> dict[str, list[np.ndarray]]:
    import torch.utils.tensorboard  # noqa: F401  # whose libraries add filters of warnings

    return {}


@pytest.mark.parametrize("setting", [name for name in STATES if "dtype" not in name])
def test_backbones_of_others_run_without_the_callers_state(setting, monkeypatch):
    expected = arrays(of_another_backbone(monkeypatch))
    with STATES[setting]():
        result = of_another_backbone(monkeypatch)
    for ours, theirs in zip(arrays(result), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("setting", STATES)
@pytest.mark.parametrize("work", WORK)
def test_results_do_not_depend_on(work, setting, checkpoints, expected, tmp_path):
    if work not in expected:
        before = state()
        expected[work] = arrays(WORK[work](checkpoints, tmp_path / "before"))
        assert state() == before
    with STATES[setting]():
        before = state()
        result = WORK[work](checkpoints, tmp_path / "now")
        assert state() == before
    found = arrays(result)
    assert len(found) == len(expected[work])
    for ours, theirs in zip(found, expected[work], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
