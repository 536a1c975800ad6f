"""The head is what it is said to be, and its files load, ours and the published one's."""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from torch.nn import functional

from helpers.cases import noise
from helpers.heads import a_head
from selfment import PatchHead, Segmenter
from selfment.backbones import EMBEDDED, WeightsError
from selfment.models.head import HeadInfo, check_fit, load_head, model_differs, save_head
from selfment.training.losses import head_loss


def same(a: PatchHead, b: PatchHead) -> bool:
    pairs = zip(a.state_dict().items(), b.state_dict().items(), strict=True)
    return all(m == n and torch.equal(x, y) for (m, x), (n, y) in pairs)


def test_forward_equals_its_definition() -> None:
    head = PatchHead(24)
    features = 7 * noise(4, 5, 24)
    state = head.state_dict()
    rows = features / features.norm(dim=1, keepdim=True)
    hidden = (rows @ state["proj.0.weight"].T + state["proj.0.bias"]).clamp(min=0)
    expected = hidden @ state["proj.2.weight"].T + state["proj.2.bias"]
    logits, embedding = head(features)
    torch.testing.assert_close(embedding, expected)
    expected = expected @ state["classifier.weight"].T + state["classifier.bias"]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(head.saliency(features), functional.softmax(expected, 1)[:, 1])
    assert head(features.to(torch.bfloat16)[None])[0].shape == (1, 20, 2)


def test_size_at_the_papers_depth() -> None:
    assert sum(p.numel() for p in PatchHead(4096).parameters()) == 541_186


def test_wrong_depth() -> None:
    message = r"`features` must be \(..., d\) with d = 24, the head's: got \(5, 23\)"
    with pytest.raises(ValueError, match=message):
        PatchHead(24)(torch.zeros(5, 23))


def test_a_folder_for_a_hub(tmp_path: Path) -> None:
    head, info = PatchHead(16), HeadInfo("classic", "tokens", 768, {"lr": 1e-3})
    save_head(tmp_path / "head", head, info)
    loaded, found = load_head(tmp_path / "head")
    assert same(loaded, head)
    assert found == info
    assert not loaded.training
    assert sorted(os.listdir(tmp_path / "head")) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "head/config.json").read_text())["dim"] == 16


def test_a_file_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    head, info = PatchHead(16), HeadInfo("classic", "keys", 768, {"lr": 1e-3})
    save_head(tmp_path / "head", head, info)
    torch.save(head.state_dict(), tmp_path / "head/published.pth")
    torch.save({"model_state": head.state_dict(), "epoch": 3}, tmp_path / "head/published.pt")
    for name in ("model.safetensors", "published.pth", "published.pt"):
        loaded, found = load_head(tmp_path / "head" / name)
        assert same(loaded, head)
        assert found == info
    # What a checkpoint says of itself goes first, and another model's configuration says nothing.
    own = {"model_state": head.state_dict(), "info": {"backbone": "vit_small"}}
    torch.save(own, tmp_path / "head/epoch-001.pt")
    assert load_head(tmp_path / "head/epoch-001.pt")[1] == HeadInfo("vit_small")
    config = tmp_path / "head/config.json"
    for text in ('{"model_type": "dinov2", "size": 5}', "[]"):
        config.write_text(text)
        assert load_head(tmp_path / "head/model.safetensors")[1] == HeadInfo()
    config.unlink()
    assert load_head(tmp_path / "head/model.safetensors")[1] == HeadInfo()
    config.write_text("{")
    with pytest.raises(WeightsError, match=r"must be a folder with a config\.json in JSON"):
        load_head(tmp_path / "head/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 64, 128, 256])
def test_an_embedding_of_another_length(width: int, tmp_path: Path) -> None:
    head = PatchHead(16, width)
    torch.save({"model_state": head.state_dict(), "epoch": 3}, tmp_path / "published.pth")
    save_head(tmp_path / "head", head, HeadInfo("classic"))
    features = torch.randn(5, 16)
    for path in (
        tmp_path / "published.pth",
        tmp_path / "head",
        tmp_path / "head/model.safetensors",
    ):
        loaded, _ = load_head(path)
        assert loaded.embedding == width
        assert same(loaded, head)
        assert torch.equal(loaded.saliency(features), head.saliency(features))
    logits, embedding = head(features)
    assert embedding.shape == (5, width)
    head_loss(logits, embedding, torch.arange(5) % 2 == 0).total.backward()
    assert head.proj[0].weight.grad is not None


@pytest.mark.parametrize("second", [None, torch.zeros(1), torch.zeros(128, 128)])
def test_an_embedding_that_the_file_does_not_hold(second: object, tmp_path: Path) -> None:
    """A column of a million numbers is no head whose second layer would take 4 TB."""
    state = {**PatchHead(1).state_dict(), "proj.0.weight": torch.zeros(10**6, 1)}
    torch.save({**state, "proj.2.weight": second}, tmp_path / "head.pt")
    message = r"does not fit \(proj\.2\.weight must be \(1000000, 1000000\), as proj\.0\.weight"
    with pytest.raises(WeightsError, match=message):
        load_head(tmp_path / "head.pt")


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [True, False])
def test_state_dicts_at_top_level_and_nested(tmp_path: Path, prefix: str, nested: bool) -> None:
    head = PatchHead(16)
    state = {prefix + name: value for name, value in head.state_dict().items()}
    torch.save({"epoch": 3, "model_state": state} if nested else state, tmp_path / "head.pth")
    assert same(load_head(tmp_path / "head.pth")[0], head)


def test_the_format_of_old_torch(tmp_path: Path) -> None:
    head = PatchHead(16)
    content = {"model_state": head.state_dict(), "args": {"lr": 1e-3}}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_head(tmp_path / "old.pth")[0], head)


class Custom:
    """A class of a training script, which is not there where the file is read."""

    def __init__(self) -> None:
        self.value = 1


@pytest.mark.parametrize(
    "args",
    [
        argparse.Namespace(out=PurePosixPath("runs/1"), lr=np.float64(1e-3)),
        {"levels": collections.OrderedDict(a=[1]), "seen": {1, 2}, "fixed": frozenset([3])},
        Custom(),
        argparse.Namespace(nested=argparse.Namespace(device=torch.device("cpu"), custom=Custom())),
    ],
    ids=["namespace", "containers", "custom", "nested"],
)
def test_the_published_checkpoints_args_do_not_matter(tmp_path: Path, args: object) -> None:
    head = PatchHead(16)
    optimizer = torch.optim.Adam(head.parameters())
    content = {
        "epoch": 3,
        "model_state": head.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "args": args,
    }
    torch.save(content, tmp_path / "published.pth")
    loaded, info = load_head(tmp_path / "published.pth")
    assert same(loaded, head)
    assert info == HeadInfo()


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_file_cannot_run_anything(tmp_path: Path) -> None:
    attack = {"model_state": PatchHead(4).state_dict(), "args": Attack(tmp_path / "taken")}
    torch.save(attack, tmp_path / "attack.pth")
    with pytest.raises(WeightsError, match="must be a checkpoint that torch can read"):
        load_head(tmp_path / "attack.pth")
    assert not (tmp_path / "taken").exists()


def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save({"model_state": [1]}, tmp_path / "list.pt")
    broken = PatchHead(8).state_dict()
    del broken["proj.2.bias"]
    torch.save(broken, tmp_path / "broken.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "bad.safetensors").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    save_head(tmp_path / "config", PatchHead(8), HeadInfo())
    (tmp_path / "config/config.json").write_text("{")
    for name, message in (
        ("none.pt", "'.*none.pt' does not exist"),
        ("other.pt", r"proj.0.weight of \(embedding, d\): '.*other.pt' holds 'weight'"),
        ("tensor.pt", "'.*tensor.pt' holds a Tensor"),
        ("list.pt", "'.*list.pt' holds nothing"),
        ("broken.pt", "does not fit .*proj.2.bias"),
        ("text.pt", "that torch can read: '.*text.pt' is not"),
        ("bad.safetensors", "that safetensors can read: '.*bad.safetensors' is not"),
        ("empty", "'.*empty' has no model.safetensors"),
        ("config", "in JSON: that of '.*config' is not"),
    ):
        with pytest.raises(WeightsError, match=message) as raised:
            load_head(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_a_head_that_does_not_fit_names_both_dimensions_and_its_backbone() -> None:
    check_fit(PatchHead(384), HeadInfo("classic"), "classic", 384)
    message = (
        "`head` must fit the backbone: the head, trained on vit_base, takes features of length "
        "768, classic gives 384"
    )
    with pytest.raises(ValueError, match=message):
        check_fit(PatchHead(768), HeadInfo("vit_base"), "classic", 384)


@pytest.mark.parametrize("trained", ["classic", "statistics", "vit_small_patch16_224.dino"])
@pytest.mark.parametrize("used", ["classic", "statistics", "vit_small_patch16_dinov3"])
def test_hand_made_features_belong_to_their_heads(tmp_path: Path, trained: str, used: str) -> None:
    """All of them have the length 384, so that nothing else would show the error."""
    save_head(tmp_path / "head", a_head(), HeadInfo(trained))
    if used == trained or not {trained, used} & {*EMBEDDED}:
        Segmenter(tmp_path / "head", used)
        return
    sentence = f"`backbone` must be the one that the head was trained on, '{trained}': got '{used}'"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Segmenter(tmp_path / "head", used)


MODELS = [
    ("vit_small_patch16_224.dino", "dino_vits16", "tokens", False),
    ("vit_small_patch16_224.dino", "vit_small_patch16_224", "tokens", False),
    ("dinov3_vits16", "vit_small_patch16_dinov3", "tokens", False),
    ("vit_small_patch16_224.dino", "vit_small_patch16_224.augreg_in21k", "tokens", True),
    ("vit_small_patch16_224.dino", "vit_small_patch16_dinov3", "tokens", True),
    ("vit_small_patch16_224.dino", "vit_small_patch16_224.dino", "keys", True),
    (None, "vit_small_patch16_224", "tokens", False),
]


@pytest.mark.parametrize(("trained", "used", "features", "differs"), MODELS)
def test_models_are_compared_by_name_and_kind_of_features(
    trained: str | None, used: str, features: str, differs: bool
) -> None:
    settings = {"backbone": used, "features": features}
    assert model_differs(HeadInfo(trained), settings) is differs
