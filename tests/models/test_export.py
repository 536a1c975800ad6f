"""Exported files: the segmenter's saliency, in processes that cannot import selfment."""

from __future__ import annotations

import json
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from helpers import processes
from helpers.commands import call
from helpers.folders import ROOT
from helpers.heads import a_head
from helpers.pictures import picture
from helpers.vits import DINO, TINY, random_state, save
from selfment import PatchHead, Segmenter
from selfment.backbones import ModuleBackbone
from selfment.models import export
from selfment.models.export import export_segmenter
from selfment.models.head import HeadInfo, save_head

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

COLOURS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
needs_torch = pytest.mark.skipif(OLD, reason="ONNX needs torch 2.7")
KINDS = [pytest.param(".onnx", marks=needs_torch), ".pt2"]

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(f"{{name}} must not be needed")

sys.meta_path.insert(0, Blocked())
"""


def small_vit() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=3,
            num_classes=0,
            dynamic_img_size=True,
            reg_tokens=2,
        )
        vit.pos_embed.data.normal_()
    return vit


def small_head() -> PatchHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        head = PatchHead(24)
    for parameter in head.parameters():
        parameter.data *= 4
    return head


def segmenter(size: int = 48, **options) -> Segmenter:
    return Segmenter(small_head(), ModuleBackbone(small_vit(), **COLOURS), size, **options)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    stream = np.random.RandomState(seed)
    coarse = Image.fromarray(stream.randint(0, 256, (7, 9, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def planes(*photos: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("size", [(60, 90), (31, 47), (48, 48)])
def test_the_module_is_the_segmenter(size: tuple[int, int]) -> None:
    ours = segmenter()
    module = ours.to_module()
    photos = [photo(*size, seed) for seed in (0, 1)]
    found = module(planes(*photos))
    assert (found.shape, found.dtype) == ((2, *size), torch.float32)
    assert found.std() > 0.02
    for one, expected in zip(found, ours(photos), strict=True):
        torch.testing.assert_close(one, expected, atol=1e-6, rtol=0)


def test_the_module_has_weights_of_its_own() -> None:
    ours = segmenter()
    pixels = photo(40, 40)
    before = ours(pixels)
    module = ours.to_module()
    count = sum(p.numel() for m in (small_vit(), small_head()) for p in m.parameters())
    assert sum(p.numel() for p in module.parameters()) == count
    for parameter in module.parameters():
        parameter.data.zero_()
    assert torch.equal(ours(pixels), before)
    assert not torch.equal(module(planes(pixels))[0], before)


def test_without_resizing_it_keeps_the_aspect() -> None:
    module = segmenter().to_module(resize=False)
    pixels = photo(56, 80)
    expected = segmenter(80, keep_aspect=True)(pixels)
    torch.testing.assert_close(module(planes(pixels))[0], expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="multiple of 8, the patch size"):
        module(planes(photo(57, 80)))


def test_wrong_photographs_and_arguments(tmp_path: Path) -> None:
    module = segmenter().to_module()
    for wrong in (torch.rand(1, 3, 48, 48), planes(photo(48, 48))[0], planes(photo(9, 9))[:, :1]):
        with pytest.raises(ValueError, match=r"`photo` must be \(B, 3, H, W\) torch.uint8: got"):
            module(wrong)
    with pytest.raises(ValueError, match=r"`keep_aspect` must be False, .* `--size dynamic`"):
        segmenter(keep_aspect=True).to_module()
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=r"`out` must be a file, not a folder: got .*folder\.onnx"):
        export_segmenter(segmenter(), tmp_path / "folder.onnx")
    with pytest.raises(ValueError, match=r"`out` must be a file .onnx or .pt2: got 'model.tflite'"):
        export_segmenter(segmenter(), "model.tflite")
    halves = ModuleBackbone(small_vit(), dtype=torch.bfloat16, **COLOURS)
    with pytest.raises(
        ValueError, match=r"`dtype` must be float32 for an export, .* torch.bfloat16"
    ):
        export_segmenter(Segmenter(small_head(), halves, 48), tmp_path / "model.pt2")
    for name in ("classic", "statistics"):
        with pytest.raises(ValueError, match=f"must be a network .*: {name} is hand-made"):
            export_segmenter(Segmenter(a_head(), name, 64), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.onnx"]


def snippet(start: str) -> str:
    """Returns the Python block of the page that begins so."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    return next(block for block in blocks if block.startswith(start))


def run_blocked(folder: Path, code: str, *names: str) -> None:
    script = BLOCKED.format(names=names) + code
    processes.run([sys.executable, "-c", script], cwd=folder, check=True)


@needs_torch
def test_onnx_runtime_needs_neither_selfment_nor_torch(tmp_path: Path) -> None:
    ours = segmenter()
    assert 0 < export_segmenter(ours, tmp_path / "model.onnx") < 1e-5
    picture(tmp_path / "photo.jpg", size=(90, 60))
    code = snippet("import numpy as np, onnxruntime")
    again = """
np.save("saliency.npy", saliency)
about = session.get_modelmeta().custom_metadata_map
assert about["input"].startswith("(batch, 3, height, width) uint8: RGB photographs in 0..255")
assert '"size": 48' in about["settings"]
assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
"""
    run_blocked(tmp_path, code + again, "selfment", "torch", "timm", "torchvision")
    expected = ours(tmp_path / "photo.jpg").numpy()
    np.testing.assert_allclose(np.load(tmp_path / "saliency.npy"), expected, atol=1e-4)
    assert Image.open(tmp_path / "saliency.png").size == (90, 60)


@pytest.mark.slow
def test_torch_needs_no_selfment(tmp_path: Path) -> None:
    ours = segmenter()
    assert export_segmenter(ours, tmp_path / "model.pt2") < 1e-5
    picture(tmp_path / "photo.jpg", size=(90, 60))
    code = snippet("import torch\nfrom torchvision") + "\ntorch.save(saliency, 'saliency.pt')"
    run_blocked(tmp_path, code, "selfment", "timm")
    expected = ours(tmp_path / "photo.jpg")
    torch.testing.assert_close(torch.load(tmp_path / "saliency.pt"), expected, atol=1e-4, rtol=0)
    about = {"settings": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=about)
    assert json.loads(about["settings"])["size"] == 48


def loaded(path: Path):
    """Returns the function that a file computes."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"photo_uint8": x.numpy()})[0])


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_takes_any_batch_and_size(tmp_path: Path, suffix: str) -> None:
    ours, path = segmenter(), tmp_path / f"model{suffix}"
    export_segmenter(ours, path)
    run = loaded(path)
    for count, height, width in ((1, 48, 48), (3, 20, 70), (1, 200, 33), (2, 6, 9)):
        photos = [photo(height, width, seed) for seed in range(count)]
        expected = torch.stack(ours(photos))
        torch.testing.assert_close(run(planes(*photos)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_dynamic_file_leaves_sizes_as_they_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    assert export_segmenter(segmenter(), path, resize=False) < 1e-5
    run = loaded(path)
    for height, width in ((48, 48), (32, 32), (24, 96), (88, 40)):
        pixels = photo(height, width)
        expected = segmenter(max(height, width), keep_aspect=True)(pixels)
        torch.testing.assert_close(run(planes(pixels))[0], expected, atol=1e-4, rtol=0)


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("older")
    monkeypatch.setattr(
        export, "_as_pt2", lambda *_: (b"new", lambda x: torch.zeros(1, *x.shape[2:]))
    )
    with pytest.raises(
        ValueError,
        match=r"`out` must be within 0.0001 of the segmenter: .* by 1, and is not written",
    ):
        export_segmenter(segmenter(), path)
    nan = torch.tensor(torch.nan)
    monkeypatch.setattr(
        export, "_as_pt2", lambda *_: (b"new", lambda x: nan.expand(1, *x.shape[2:]))
    )
    with pytest.raises(ValueError, match="would differ by nan, and is not written"):
        export_segmenter(segmenter(), path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["older"]


class Choosing(nn.Module):
    """Features by a rule that depends on the pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.avg_pool2d(x, 8)
        return torch.cat([pooled] * 8, 1) if pooled.mean() > 0 else torch.cat([-pooled] * 8, 1)


def test_a_module_that_cannot_be_traced_is_one_sentence(tmp_path: Path) -> None:
    own = ModuleBackbone(Choosing(), patch_size=8, name="choosing", **COLOURS)
    with pytest.raises(
        ValueError, match=r"`backbone` must be one .* own:choosing is not, but raises"
    ):
        export_segmenter(Segmenter(small_head(), own, 48), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_keys_of_timms_models(tmp_path: Path) -> None:
    weights = save(random_state(TINY), tmp_path / "tiny.pth")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = PatchHead(192)
    ours = Segmenter(head, TINY, 96, weights=weights, features="keys", device="cpu")
    assert export_segmenter(ours, tmp_path / "model.pt2") < 1e-5


@pytest.mark.slow
def test_positions_of_dino_for_all_sizes(tmp_path: Path) -> None:
    """It takes a gibibyte, which a process of its own gives back."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(check_positions_of_dino, tmp_path).result()


def check_positions_of_dino(tmp_path: Path) -> None:
    weights = save(random_state(DINO), tmp_path / "dino.pth")
    ours = Segmenter(a_head(), DINO, 96, weights=weights, device="cpu")
    path = tmp_path / "model.pt2"
    assert export_segmenter(ours, path) < 1e-5
    assert export_segmenter(ours, path, resize=False) < 1e-5
    pixels = photo(224, 224)  # the size of the training, whose positions are not resampled
    whole = Segmenter(a_head(), DINO, 224, weights=weights, device="cpu")
    torch.testing.assert_close(loaded(path)(planes(pixels))[0], whole(pixels), atol=1e-4, rtol=0)


class OfOneSize(nn.Module):
    """Features by a number that is computed from the size of the image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.avg_pool2d(x, 8)
        return torch.cat([pooled ** (1 + 1 / float(x.shape[2]))] * 8, 1).nan_to_num()


def test_a_module_that_is_traced_for_one_size_is_one_sentence(tmp_path: Path) -> None:
    own = ModuleBackbone(OfOneSize(), patch_size=8, name="one", **COLOURS)
    ours = Segmenter(small_head(), own, 48)
    assert export_segmenter(ours, tmp_path / "model.pt2") < 1e-5
    sentence = r"own:one is not for all sizes at once, only with `size` in pixels, but raises "
    with pytest.raises(ValueError, match=sentence):
        export_segmenter(ours, tmp_path / "dynamic.pt2", resize=False)
    assert not (tmp_path / "dynamic.pt2").exists()


FACTORY = """
import torch
from timm.models.vision_transformer import VisionTransformer
from selfment.backbones import ModuleBackbone

def vit():
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=3,
                            num_classes=0, dynamic_img_size=True)
    return ModuleBackbone(vit, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""


def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported_vit.py").write_text(FACTORY)
    save_head("run/head", small_head(), HeadInfo("exported_vit:vit", size=48))
    options = ("export", "--head", "run/head", "--backbone", "exported_vit:vit")
    code, out, err = call(capsys, *options, "--size", 48, "--out", "model.pt2")
    assert (code, err) == (0, "")
    assert re.fullmatch(
        r"model.pt2: differs from the segmenter by at most \d.\de[+-]\d\d on two images\n", out
    )
    ours = Segmenter("run/head", "exported_vit:vit", 48)
    found = loaded(tmp_path / "model.pt2")(planes(photo(40, 60)))
    torch.testing.assert_close(found[0], ours(photo(40, 60)), atol=1e-4, rtol=0)

    assert call(capsys, *options, "--size", "dynamic", "--out", "any.pt2")[0] == 0
    assert loaded(tmp_path / "any.pt2")(planes(photo(24, 32))).shape == (1, 24, 32)
    code, _, err = call(capsys, *options, "--size", "any", "--out", "any.pt2")
    assert code == 2
    assert "must be a number of pixels or 'dynamic': got 'any'" in err
    code, _, err = call(capsys, *options, "--size", 50, "--out", "any.pt2")
    assert code == 2
    assert "`size` must be a multiple of 8" in err
    del sys.modules["exported_vit"]
