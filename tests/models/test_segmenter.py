"""Segmenter: saliency by its literal definition, alignment, and the files of heads."""

from __future__ import annotations

import json
import pickle
import shutil

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision import transforms

from helpers.heads import a_head
from selfment import PatchHead, Segmenter
from selfment.backbones import WeightsError, load_backbone
from selfment.backbones.base import Backbone
from selfment.images.load import ImageError
from selfment.models.head import HeadInfo, save_head


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3)).astype(np.uint8)
    pixels[: height // 2] //= 3
    return Image.fromarray(pixels)


class Colours(Backbone):
    """The mean colour of each patch; green gives what is not finite."""

    name, patch_size, dim = "colours", 16, 3

    def __call__(self, batch):
        means = functional.avg_pool2d(batch, 16)
        means = torch.where(means[:, 1:2] > 0.9, torch.nan, means)
        return means.flatten(2).transpose(1, 2)


@pytest.fixture
def colours(monkeypatch):
    """A head that tells red from blue, and the backbone that it is for."""
    monkeypatch.setattr("selfment.models.image_model.load_backbone", lambda name, **_: Colours())
    head = PatchHead(3)
    for parameter in head.parameters():
        parameter.data.zero_()
    head.proj[0].weight.data[0, 0] = head.proj[2].weight.data[0, 0] = 1
    head.classifier.weight.data[1, 0], head.classifier.bias.data[1] = 6, -3
    return head


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_backbone_head_softmax_and_interpolation(dtype):
    head = a_head().to(dtype)
    picture = noise(50, 70)
    found = Segmenter(head, "classic", 96)(picture)
    backbone = load_backbone("classic")
    official = transforms.Compose(
        [transforms.ToTensor(), transforms.Resize((96, 96), antialias=True)]
    )
    rows = backbone(official(picture)[None])[0].to(dtype)
    rows = rows / rows.norm(dim=1, keepdim=True)
    state = head.state_dict()
    hidden = (rows @ state["proj.0.weight"].T + state["proj.0.bias"]).clamp(min=0)
    embedding = hidden @ state["proj.2.weight"].T + state["proj.2.bias"]
    logits = embedding @ state["classifier.weight"].T + state["classifier.bias"]
    grid = (logits.exp() / logits.exp().sum(1, keepdim=True))[:, 1].reshape(1, 1, 6, 6).float()
    expected = functional.interpolate(grid, (50, 70), mode="bilinear", align_corners=False)[0, 0]
    assert found.shape == (50, 70)
    assert (found.dtype, found.device.type) == (torch.float32, "cpu")
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_a_list_gives_what_each_image_gives(keep_aspect):
    segmenter = Segmenter(a_head(), "classic", 64, keep_aspect=keep_aspect, batch_size=3)
    pictures = [noise(*size) for size in ((30, 50), (50, 30), (31, 51), (64, 64), (20, 64))]
    found = segmenter(pictures)
    assert [tuple(one.shape) for one in found] == [(p.height, p.width) for p in pictures]
    for one, picture in zip(found, pictures, strict=True):
        torch.testing.assert_close(one, segmenter(np.asarray(picture)), atol=1e-6, rtol=0)
    assert segmenter([]) == []


def test_saliency_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(30, 50).save(tmp_path / "a.png", exif=exif)
    segmenter = Segmenter(a_head(), "classic", 64)
    upright = segmenter(noise(30, 50).transpose(Image.Transpose.ROTATE_270))
    torch.testing.assert_close(segmenter(tmp_path / "a.png"), upright)
    with pytest.raises(ImageError, match="cannot read"):
        segmenter(tmp_path / "b.png")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(90, 240), (240, 90)])
@pytest.mark.parametrize("keep_aspect", [False, True])
def test_an_edge_lands_where_it_is_in_the_image(colours, keep_aspect, size):
    # In its aspect ratio the shorter side is padded from 90 to 96 pixels, and the edge at 48 lies
    # between two patches; it does too where the image is squashed, at 128 of 240.
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    red = (slice(None), slice(48)) if width == 90 else (slice(48), slice(None))
    pixels[red] = (255, 0, 0)
    saliency = Segmenter(colours, "classic", 240, keep_aspect=keep_aspect)(pixels)
    line = saliency[120] if width == 90 else saliency[:, 120]
    assert line[0] > 0.9
    assert line[-1] < 0.1
    assert int((line > 0.5).sum()) == 48


def test_a_ramp_stays_a_ramp_where_the_padding_is_cut_off(colours):
    segmenter = Segmenter(colours, "classic", 160, keep_aspect=True)
    pixels, content = segmenter.preprocess(noise(37, 80))
    assert (pixels.shape, content) == ((3, 80, 160), (74, 160))
    centres = 16 * torch.arange(5) + 8.0
    grid = (centres / 80)[:, None].expand(5, 10)
    found = segmenter.to_image(grid, content, (40, 100))
    expected = (torch.arange(100) + 0.5) * 74 / 100 / 80
    torch.testing.assert_close(found[:, 7], expected.clamp(8 / 80, 72 / 80), atol=1e-6, rtol=0)


def test_both_ways_of_interpolating_agree():
    segmenter = Segmenter(a_head(), "classic", 96)
    grid = torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    whole = segmenter.to_image(grid, (96, 96), (70, 50))
    nearly = segmenter.to_image(grid.double(), (96, 96 - 1e-6), (70, 50))
    torch.testing.assert_close(whole, nearly, atol=1e-5, rtol=0)


def test_features_that_are_not_finite_are_no_saliency(colours):
    with pytest.raises(ValueError, match="`features` must be finite"):
        Segmenter(colours, "classic", 64)(Image.new("RGB", (20, 20), (0, 255, 0)))


def test_a_head_of_another_length(tmp_path):
    save_head(tmp_path, PatchHead(1024), HeadInfo("vit_large_patch16_dinov3", size=768))
    segmenter = Segmenter(tmp_path, Colours(), 64)
    message = (
        "`head` must fit the backbone: the head, trained on vit_large_patch16_dinov3, takes "
        "features of length 1024, colours gives 3"
    )
    with pytest.raises(ValueError, match=message):
        segmenter(noise(20, 20))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`backbone` must be given: the head does not say"):
        Segmenter(PatchHead(384))
    with pytest.raises(ValueError, match="`size` must be an integer >= 1: got 0"):
        Segmenter(PatchHead(384), "classic", 0)
    with pytest.raises(ValueError, match=r"`size` must be a multiple of 16.*got 100"):
        Segmenter(PatchHead(384), "classic", 100)(noise(20, 20))
    with pytest.raises(ValueError, match="`features` must be 'tokens' or 'keys': got 'tokns'"):
        _ = Segmenter(PatchHead(384), "classic", features="tokns").backbone


def test_the_callers_head_is_left_alone():
    head = a_head().train()
    segmenter = Segmenter(head, "classic", 64)
    before = segmenter(noise(20, 20))
    assert head.training
    assert head.classifier.weight.requires_grad
    head.classifier.bias.data += 3
    assert torch.equal(segmenter(noise(20, 20)), before)


def test_a_pickle_has_no_backbone():
    segmenter = Segmenter(a_head(), "classic", 64)
    assert segmenter._backbone is None
    expected = segmenter(noise(20, 30))
    copied = pickle.loads(pickle.dumps(segmenter))
    assert copied._backbone is None
    assert torch.equal(copied(noise(20, 30)), expected)


def test_settings_name_the_heads_weights():
    head = a_head()
    settings = Segmenter(head, "classic", 64).settings
    assert Segmenter(a_head(), "classic", 64).settings == settings
    head.proj[0].bias.data[5] += 1e-3
    assert Segmenter(head, "classic", 64).settings != settings
    assert json.loads(json.dumps(settings)) == settings


def test_compile_compiles_backbone_and_head(monkeypatch):
    compiled = []

    def fake(function):
        compiled.append(function)
        return function

    monkeypatch.setattr("torch.compile", fake)
    monkeypatch.setattr("selfment.models.segmenter._check_compiler", lambda device: None)
    found = Segmenter(a_head(), "classic", 64, compile=True)(noise(20, 20))
    assert torch.equal(found, Segmenter(a_head(), "classic", 64)(noise(20, 20)))
    assert [part(torch.zeros(1, 3, 32, 32)).shape for part in compiled] == [(1, 2, 2)]


def test_from_pretrained_takes_folders_and_checkpoints(tmp_path):
    first = Segmenter(a_head(), "classic", 64)
    expected = first(noise(20, 30))
    first.save_pretrained(tmp_path / "head")
    content = {"model_state": a_head().state_dict(), "info": {"backbone": "classic"}, "epoch": 3}
    torch.save(content, tmp_path / "epoch-003.pt")
    for name in (tmp_path / "head", str(tmp_path / "epoch-003.pt")):
        again = Segmenter.from_pretrained(name, size=64)
        assert again.backbone_name == "classic"
        assert torch.equal(again(noise(20, 30)), expected)
    # The weights alone know their backbone by the configuration beside them.
    again = Segmenter.from_pretrained(tmp_path / "head/model.safetensors", size=64)
    assert again.backbone_name == "classic"
    assert torch.equal(again(noise(20, 30)), expected)
    card = (tmp_path / "head/README.md").read_text()
    assert card.startswith("---\nlibrary_name: selfment\n")
    assert "`classic`" in card
    (tmp_path / "head/README.md").write_text("mine")
    again.save_pretrained(tmp_path / "head")
    assert (tmp_path / "head/README.md").read_text() == "mine"


def test_from_pretrained_takes_repositories_of_the_hub(tmp_path, monkeypatch):
    segmenter = Segmenter(a_head(), "classic", 64)
    segmenter.save_pretrained(tmp_path / "remote")
    asked = []

    def download(repository, file, *, revision=None):
        asked.append((repository, file, revision))
        (tmp_path / "cache").mkdir(exist_ok=True)
        return str(shutil.copy(tmp_path / "remote" / file, tmp_path / "cache" / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = Segmenter.from_pretrained("someone/a-head.v2", revision="main", size=64)
    assert torch.equal(found(noise(20, 20)), segmenter(noise(20, 20)))
    assert set(asked) == {
        ("someone/a-head.v2", name, "main") for name in ("config.json", "model.safetensors")
    }
    # A path that exists is never looked up, nor is the name of a file.
    asked.clear()
    monkeypatch.chdir(tmp_path)
    shutil.copytree("remote", "someone/here")
    Segmenter.from_pretrained("someone/here")
    with pytest.raises(WeightsError, match=r"'runs/epoch-1\.pt' does not exist"):
        Segmenter.from_pretrained("runs/epoch-1.pt")
    assert not asked


def test_a_repository_that_cannot_be_had(monkeypatch):
    def download(repository, file, *, revision=None):
        raise ConnectionError("a long story\nof several lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    message = (
        r"`head` must be a file, a folder or a repository of the Hugging Face hub with config.json "
        r"and model.safetensors: 'no/where' at revision 'v1' is no path here and cannot be "
        r"downloaded \(ConnectionError\)$"
    )
    with pytest.raises(WeightsError, match=message):
        Segmenter.from_pretrained("no/where", revision="v1")
