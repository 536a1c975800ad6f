"""Each Python snippet of README.md and docs/*.md runs as it is printed."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

from helpers import training, videos
from helpers.folders import ROOT
from selfment import PatchHead, PseudoLabeler, Segmenter
from selfment.backbones import WeightsError
from selfment.images import find_images
from selfment.jobs import label_images
from selfment.models.export import export_segmenter
from selfment.shards import label_shards

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Snippets with one of these texts need the library: they are skipped where it is missing.
LIBRARIES = {
    '"clip.mp4"': "av",
    '"guided"': "kornia",
    "regions(": "sklearn",
    'protocol="all"': "py_sod_metrics",
    "annotations.json": "pycocotools",
    "import webdataset": "webdataset",
    "import datasets": "datasets",
    "model.onnx": "onnxruntime",
    "model.pt2": "transformers",
}
#: Snippets with one of these texts are run by another test.
ELSEWHERE = {"ray.data.": "tests/jobs/test_ray.py"}
#: Snippets with one of these texts end with the error where the weights are missing.
WEIGHTS = {"vit_small_patch16_dinov3": WeightsError}
#: Snippets with one of these texts need a head on a network, as `classic` cannot be exported.
#: They take seconds.
EXPORTED = ("model.onnx", "model.pt2")

pytestmark = pytest.mark.skipif(not PAGES[0].exists(), reason="needs the source tree")


class Snippet(NamedTuple):
    """A Python snippet of a page."""

    page: Path
    line: int  # of its first line in the page, from 1
    code: str


def snippets() -> list[Any]:
    """Returns a parameter for each snippet, marked ``slow`` where it is."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(1)) + 1
            marks = [pytest.mark.slow] if any(part in match[1] for part in EXPORTED) else []
            name = f"{page.name}:{line}"
            found.append(pytest.param(Snippet(page, line, match[1]), marks=marks, id=name))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with the files that snippets read."""
    folder = tmp_path_factory.mktemp("snippets")
    photos = training.pictures(folder / "photos", 3)
    shutil.copyfile(photos / "00.png", folder / "photo.jpg")  # the suffix decides nothing
    for name in ("masks", "saliency"):
        (folder / name).mkdir()
        for index in range(2):
            noise = np.random.RandomState(index).rand(32, 32)
            noise[8:20, 8:20] += 1
            level = 255 * (noise > 1) if name == "masks" else 120 * noise
            Image.fromarray(level.astype(np.uint8)).save(folder / name / f"{index}.png")
    features = np.random.RandomState(0).randn(48, 48, 32)
    features[10:30, 15:35] += 3
    (folder / "features").mkdir()
    for path in (folder / "features.npy", folder / "features/00.npy"):
        np.save(path, features.reshape(2304, 32).astype(np.float32))
    training.run(photos, folder / "run")
    return folder


@pytest.fixture(autouse=True)
def as_a_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs a test in that folder, on one thread, without the hub and without image viewers."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(ImageShow, "_viewers", [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("snippet", snippets())
def test_a_snippet_runs_as_printed(snippet: Snippet) -> None:
    for text, library in LIBRARIES.items():
        if text in snippet.code and find_spec(library) is None:
            pytest.skip(f"{library} is missing")
    for text, test in ELSEWHERE.items():
        if text in snippet.code:
            pytest.skip(f"{test} runs it")
    if "model.onnx" in snippet.code and OLD:
        pytest.skip("ONNX needs torch 2.7")
    prepare(snippet.code)
    # Lines before the snippet make the line of an error that of the page.
    code = compile("\n" * (snippet.line - 1) + snippet.code, str(snippet.page), "exec")
    with outcome(snippet.code):
        exec(code, {"__name__": "__main__"})


def test_snippets_are_found() -> None:
    pages = {parameter.values[0].page.name for parameter in snippets()}
    assert {"README.md", "backbones.md", "deploy.md", "quickstart.md", "server.md"} <= pages
    code = "".join(parameter.values[0].code for parameter in snippets())
    for text in (*LIBRARIES, *WEIGHTS, *EXPORTED):
        assert text in code, f"no snippet has {text!r} any more"


def prepare(code: str) -> None:
    """Makes the files that take long only for the snippets that read them."""
    if '"clip.mp4"' in code:
        videos.video(Path("clip.mp4"))
    if "annotations.json" in code:
        shutil.rmtree("labels", ignore_errors=True)  # of other snippets
        labeler = PseudoLabeler(size=96)
        label_images(find_images("photos"), "labels", labeler, formats=("coco",), progress=False)
    shutil.rmtree("shards", ignore_errors=True)  # of other snippets
    if "images/00000.tar" in code:
        Path("images").mkdir()
        with tarfile.open("images/00000.tar", "w") as tar:
            for path in sorted(Path("photos").iterdir()):
                tar.add(path, f"{path.stem}.jpg")  # the suffix decides nothing
    for library, out, to in (("webdataset", "shards", "tar"), ("datasets", "tables", "parquet")):
        if f"import {library}" in code:
            inputs = "images" if "images/00000.tar" in code else "photos"
            label_shards(inputs, out, PseudoLabeler(size=96), to=to, progress=False)
    if not any(text in code for text in EXPORTED):
        return
    segmenter = Segmenter(PatchHead(24), f"hf:{tiny_vit()}", 96, device="cpu")
    segmenter.save_pretrained("run/head")
    for name in ("model.onnx", "model.pt2"):
        if f'"{name}"' in code:
            export_segmenter(segmenter, name)


def tiny_vit() -> Path:
    """Writes a DINOv2 with random weights as transformers does, and returns its folder."""
    import transformers

    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, patch_size=32, image_size=64
    )
    transformers.Dinov2Model(config).save_pretrained("tiny")
    colours = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Path("tiny/preprocessor_config.json").write_text(json.dumps(colours))
    return Path("tiny")


def outcome(code: str) -> AbstractContextManager[Any]:
    """Returns the context in which a snippet runs: an error is due where weights are missing."""
    for text, error in WEIGHTS.items():
        if text in code:
            return pytest.raises(error, match="cannot be downloaded")
    return nullcontext()
