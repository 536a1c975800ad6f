"""Models that threads share: each call gets its own result, to the bit."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from threadpoolctl import threadpool_info
from torch import Tensor

from selfment import PatchHead, PseudoLabeler, Segmenter
from selfment.backbones import Attended, Backbone, load_backbone
from selfment.core import regions as partition
from selfment.methods import SelfMask
from selfment.models.head import load_head

VIT = "test_vit"
THREADS, IMAGES = 8, 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(VIT, pretrained=False)
    file: Path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture(autouse=True)
def short_turns() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def picture(seed: int) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 255, (40, 50, 3)).astype(np.uint8)
    pixels[8:24, 10:30] //= 4
    return Image.fromarray(pixels)


def parts(found: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(found, Tensor):
        return [found]
    values = [getattr(found, field.name) for field in fields(found)]
    return [value for value in values if isinstance(value, Tensor)]


def same(found: Any, expected: Any) -> bool:
    pairs = zip(parts(found), parts(expected), strict=True)
    return all(torch.equal(a.nan_to_num(-7), b.nan_to_num(-7)) for a, b in pairs)


def wrong_answers(call: Callable[[int], Any], calls: int) -> list[int]:
    """The numbers of the calls, by 8 threads at once, that differ from those of one thread."""
    expected = [call(image) for image in range(IMAGES)]
    start = threading.Barrier(THREADS)

    def work(thread: int) -> list[int]:
        start.wait(timeout=60)
        numbers = range(thread, calls, THREADS)
        return [n for n in numbers if not same(call(n % IMAGES), expected[n % IMAGES])]

    with ThreadPoolExecutor(THREADS) as pool:
        return sorted(n for found in pool.map(work, range(THREADS)) for n in found)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["tokens", "keys"])
@pytest.mark.parametrize("way", ["call", "attend"])
def test_a_backbone(way: str, features: str, checkpoint: Path) -> None:
    backbone = load_backbone(VIT, weights=checkpoint, features=features)
    images = [backbone.preprocess(picture(seed), 64)[None] for seed in range(IMAGES)]
    run: Callable[[Tensor], Any] = backbone if way == "call" else backbone.attend
    assert wrong_answers(lambda image: run(images[image]), 125) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"features": "keys"},
        {"features": "keys", "method": "found"},
        {"features": "keys", "method": "selfmask"},
        {"method": "selfment-cls"},
        {"method": "selfment-kmeans"},
        {"features": "keys", "method": SelfMask(["classic"])},
    ],
)
def test_a_labeler(options: dict[str, Any], checkpoint: Path) -> None:
    labeler = PseudoLabeler(VIT, 64, weights=checkpoint, **options)
    assert wrong_answers(lambda image: labeler(picture(image)), 60) == []


@pytest.mark.parametrize("features", ["tokens", "keys"])
def test_a_segmenter(features: str, checkpoint: Path) -> None:
    head = PatchHead(64)
    segmenter = Segmenter(head, VIT, 64, features=features, weights=checkpoint)
    assert wrong_answers(lambda image: segmenter(picture(image)), 100) == []


def test_a_compiled_segmenter_on_keys(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = torch.compile
    torch.compiler.reset()
    monkeypatch.setattr("selfment.models.segmenter._check_compiler", lambda device: None)
    monkeypatch.setattr(
        "torch.compile", lambda function: compiled(function, backend="eager", fullgraph=True)
    )
    head = PatchHead(64)
    plain = Segmenter(head, VIT, 64, features="keys", weights=checkpoint)
    segmenter = Segmenter(head, VIT, 64, features="keys", weights=checkpoint, compile=True)
    for image in range(2):
        assert torch.equal(segmenter(picture(image)), plain(picture(image)))
    # The code is compiled once for each number of threads that torch uses. `patch` restores the
    # limit; pytest's `monkeypatch` removes it, as torch's configuration has no plain attributes.
    with torch._dynamo.config.patch(recompile_limit=64):
        assert wrong_answers(lambda image: segmenter(picture(image)), 48) == []


@pytest.mark.parametrize("itself", [False, True])
def test_calls_within_calls(itself: bool, checkpoint: Path) -> None:
    outer, inner = (load_backbone(VIT, weights=checkpoint, features="keys") for _ in range(2))
    inner = outer if itself else inner
    first, second = (outer.preprocess(picture(seed), 64)[None] for seed in range(2))
    expected = outer(first), inner(second)
    found: list[Tensor] = []

    def nested(*_: Any) -> None:
        if not found:
            found.append(second)  # no call within this one
            found.append(inner(second))

    hook = outer.model.blocks[-1].norm1.register_forward_hook(nested)  # type: ignore[attr-defined]
    try:
        assert torch.equal(outer(first), expected[0])
    finally:
        hook.remove()
    assert torch.equal(found[1], expected[1])


def test_nothing_of_a_call_stays(checkpoint: Path) -> None:
    backbone = load_backbone(VIT, weights=checkpoint, features="keys")
    batch = backbone.preprocess(picture(0), 64)[None]

    def state() -> dict[str, int]:
        return {name: id(value) for name, value in vars(backbone).items()}

    before = state()
    for run in (backbone, backbone.attend):
        result = run(batch)
        assert isinstance(result, Tensor | Attended)
        assert state() == before


def test_the_first_use_loads_one_backbone(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Backbone] = []

    def counted(*args: Any, **options: Any) -> Backbone:
        loaded.append(load_backbone(*args, **options))
        return loaded[-1]

    monkeypatch.setattr("selfment.models.image_model.load_backbone", counted)
    labeler = PseudoLabeler(VIT, 64, weights=checkpoint)
    start = threading.Barrier(THREADS)

    def work(_: int) -> Backbone:
        start.wait(timeout=60)
        return labeler.backbone

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(work, range(THREADS)))
    assert len(loaded) == 1
    assert all(backbone is loaded[0] for backbone in found)


def test_kmeans_leaves_the_process_as_it_was() -> None:
    """The number of BLAS threads and the filters of warnings are the process's."""
    rows = [np.random.RandomState(seed).standard_normal((60, 4)) for seed in range(IMAGES)]
    before = [pool["num_threads"] for pool in threadpool_info()], list(warnings.filters)

    def call(image: int) -> Tensor:
        return torch.from_numpy(partition.kmeans(rows[image], 3))

    assert wrong_answers(call, 80) == []
    assert before == ([pool["num_threads"] for pool in threadpool_info()], list(warnings.filters))


def test_heads_are_loaded_side_by_side(tmp_path: Path) -> None:
    """Which classes torch may find in a file is a list of the process."""
    for image in range(IMAGES):
        content = {"model_state": PatchHead(4).state_dict(), "args": tmp_path}
        torch.save(content, tmp_path / f"{image}.pth")

    def call(image: int) -> Tensor:
        return load_head(tmp_path / f"{image}.pth")[0].proj[0].weight

    assert wrong_answers(call, 80) == []
