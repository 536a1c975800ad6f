"""Checkpoints of transformers, folders of the Hugging Face hub, and names of hubs."""

from __future__ import annotations

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from helpers.vits import (
    DINO,
    DINO8,
    DINOV2,
    DINOV3,
    DINOV3_BIAS,
    DINOV3_GATED,
    REGISTERS,
    TINY,
    features,
    prefixed,
    random_state,
    save,
    to_transformers,
)
from selfment import PseudoLabeler
from selfment.backbones import WeightsError, load_backbone
from selfment.backbones.names import timm_name

FORMATS = {
    DINO: ("vit", ""),
    DINOV2: ("dinov2", ""),
    REGISTERS: ("dinov2", "dinov2_with_registers."),
    DINOV3_BIAS: ("dinov3", ""),
    DINOV3: ("dinov3", "model."),
    DINOV3_GATED: ("dinov3", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_checkpoints_of_transformers(name, tmp_path):
    state = random_state(name)
    plain = features(name, save(state, tmp_path / "plain.pth"))
    kind, prefix = FORMATS[name]
    converted = prefixed(to_transformers(state, kind), prefix)
    if kind == "vit":
        converted["pooler.dense.weight"] = torch.ones(384, 384)
    if prefix:
        converted["classifier.weight"] = torch.ones(10, 768)
    save_file(converted, tmp_path / "model.safetensors")
    assert torch.equal(features(name, tmp_path / "model.safetensors"), plain)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6}))
    assert torch.equal(features(name, tmp_path), plain)


def test_swiglu_of_transformers():
    from selfment.backbones.transformers_keys import from_transformers

    state = {
        "embeddings.patch_embeddings.projection.weight": torch.ones(4, 3, 2, 2),
        "encoder.layer.3.mlp.weights_in.weight": torch.ones(8, 4),
        "encoder.layer.3.mlp.weights_out.bias": torch.ones(4),
        "encoder.layer.3.layer_scale1.lambda1": torch.ones(4),
    }
    assert set(from_transformers(state)) == {
        "patch_embed.proj.weight",
        "blocks.3.mlp.w12.weight",
        "blocks.3.mlp.w3.bias",
        "blocks.3.ls1.gamma",
        "mask_token",
    }


@pytest.mark.slow
def test_a_folder_of_the_hub(tiny, expected, tmp_path):
    save(tiny, tmp_path / "pytorch_model.bin")
    assert torch.equal(features(TINY, tmp_path), expected)
    stat = (tmp_path / "pytorch_model.bin").stat()
    labeler = PseudoLabeler(TINY, 64, weights=tmp_path)
    assert labeler.settings["weights"] == [tmp_path.name, stat.st_size, stat.st_mtime_ns]


def test_a_folder_with_parts(tiny, expected, tmp_path):
    keys = sorted(tiny)
    parts = {"a.safetensors": keys[:50], "b.safetensors": keys[50:]}
    for name, held in parts.items():
        save_file({key: tiny[key] for key in held}, tmp_path / name)
    files = {key: name for name, held in parts.items() for key in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert torch.equal(features(TINY, tmp_path), expected)
    assert PseudoLabeler(TINY, 64, weights=tmp_path).settings["weights"][1] > 4 * 5_000_000
    for text, message in (
        ('{"weight_map": {"a": "../a.safetensors"}}', "it names files in other folders"),
        ('{"weight_map": {"a": "c.safetensors"}}', "c.safetensors' does not exist"),
        ("[]", "with an index in JSON of its parts"),
        ('{"weight_map": {"a": 3}}', "with an index in JSON of its parts"),
    ):
        index.write_text(text)
        with pytest.raises(WeightsError, match=message):
            load_backbone(TINY, weights=tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"num_attention_heads": 12}', "says num_attention_heads = 12, the model has 3"),
        ("{", "with a config.json in JSON: .* is not"),
    ],
)
def test_a_folder_of_another_model(config, message, tiny, tmp_path):
    save(tiny, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        load_backbone(TINY, weights=tmp_path)


def test_a_folder_without_a_checkpoint(tmp_path):
    message = "is a folder without model.safetensors or pytorch_model.bin"
    with pytest.raises(WeightsError, match=message):
        load_backbone(TINY, weights=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dino_vits8", DINO8),
        ("dino_vitb16", "vit_base_patch16_224.dino"),
        ("dinov2_vits14", DINOV2),
        ("dinov2_vitb14_reg", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("dinov3_vits16", DINOV3),
        ("dinov3_vit7b16", "vit_7b_patch16_dinov3.lvd1689m"),
        ("facebook/dino-vits16", DINO),
        ("facebook/dinov2-small", DINOV2),
        ("facebook/dinov2-with-registers-giant", "vit_giant_patch14_reg4_dinov2.lvd142m"),
        ("facebook/dinov3-vitl16-pretrain-sat493m", "vit_large_patch16_dinov3.sat493m"),
        ("facebook/dinov3-vits16plus-pretrain-lvd1689m", "vit_small_plus_patch16_dinov3.lvd1689m"),
        ("timm/vit_small_patch14_dinov2.lvd142m", DINOV2),
        ("hf_hub:timm/vit_small_patch14_dinov2.lvd142m", DINOV2),
    ],
)
def test_names_of_hubs_get_the_name_in_timm(name, expected):
    assert timm.is_model(expected)
    assert expected in timm.list_pretrained(f"{expected.split('.')[0]}.*")
    message = f"got {name!r}, which timm calls {expected}"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(name)


def test_names_of_timm_are_no_names_of_hubs():
    assert not any(map(timm_name, timm.list_models(pretrained=True)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_7b_patch16_dinov3.lvd1689m", "cannot be downloaded"),
        ("vit_tiny_patch16_384", "cannot be downloaded"),
        ("vit_small_patch16_18x2_224", "timm has no weights of vit_small_patch16_18x2_224: pass"),
    ],
)
def test_a_model_without_weights_is_not_built(name, message, monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(name)
    assert "\n" not in str(caught.value)
