"""Checkpoints of backbones: in every format, compared with the model before they are loaded."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from selfment import PseudoLabeler
from selfment.backbones import WeightsError, load_backbone
from selfment.backbones.names import timm_name

timm = pytest.importorskip("timm")

TINY, DINO, DINO8 = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224.dino",
    "vit_small_patch8_224.dino",
)
DINOV2, REGISTERS = (f"vit_small_patch14_{kind}dinov2.lvd142m" for kind in ("", "reg4_"))
DINOV3, DINOV3_BIAS = (f"vit_small_patch16_dinov3{kind}.lvd1689m" for kind in ("", "_qkvb"))
DINOV3_GATED = "vit_small_plus_patch16_dinov3_qkvb.lvd1689m"

State = dict[str, torch.Tensor]


def random_state(name: str) -> State:
    """Random weights with the keys of the authors' code."""
    model = timm.create_model(name, pretrained=False, num_classes=0)
    stream = torch.Generator().manual_seed(0)
    state = {
        key: torch.randn(value.shape, generator=stream) * (0.05 if value.ndim > 1 else 0.3)
        for key, value in model.state_dict().items()
    }
    if "dinov3" in name:
        return _of_dinov3(state)
    if "dinov2" in name:
        state["mask_token"] = torch.zeros(1, model.embed_dim)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        cls = torch.randn(1, 1, model.embed_dim, generator=stream)
        state["pos_embed"] = torch.cat([cls, state["pos_embed"]], dim=1)
    return state


def _of_dinov3(state: State) -> State:
    """The authors' keys: biases of all three, in one, with a mask over those of the keys."""
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    names |= {"fc1_g": "w1", "fc1_x": "w2"} | (
        {"fc2": "w3"} if any("fc1_g" in k for k in state) else {}
    )
    found = {"mask_token": torch.zeros(1, 384)}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        block, _, last = key.rpartition(".")
        if last == "q_bias":
            found[f"{block}.qkv.bias"] = torch.cat([value, value * 0, state[f"{block}.v_bias"]])
        elif last != "v_bias":
            found[key] = value
        if key.endswith("qkv.weight"):
            ones, zeros = torch.ones(384), torch.zeros(384)
            found[f"{block}.bias_mask"] = torch.cat([ones, zeros, ones])
            found.setdefault(f"{block}.bias", torch.zeros(3 * 384))
    return found


def save(state: Any, path: Path) -> Path:
    torch.save(state, path)
    return path


def features(name: str, path: Path, patches: tuple[int, int] = (3, 5)) -> torch.Tensor:
    backbone = load_backbone(name, weights=path)
    side = [count * backbone.patch_size for count in patches]
    return backbone(torch.randn(1, 3, *side, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def tiny() -> State:
    return random_state(TINY)


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory) -> torch.Tensor:
    return features(TINY, save(tiny, tmp_path_factory.mktemp("plain") / "plain.pth"))


def prefixed(state: State, prefix: str, **others: Any) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()} | others


def chunked(state: State) -> State:
    """Blocks as trainings of DINOv2 keep them: each in one of four lists."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}", key): value
        for key, value in state.items()
    }


HEAD = {"head.mlp.0.weight": torch.ones(3, 2), "head.last_layer.weight_g": torch.ones(3, 1)}


class Unknown:
    """A class that no other process knows."""


CONTAINERS = {
    "a full checkpoint of DINO": lambda state, other: {
        "student": prefixed(other, "module.backbone."),
        "teacher": prefixed(state, "backbone.", **HEAD),
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": []},
        "epoch": 100,
        "args": Namespace(arch="vit_tiny", lr=0.0005),
    },
    "a teacher with wrapped keys": lambda state, other: {
        "teacher": prefixed(state, "module.backbone.", **HEAD),
        "student": prefixed(other, "module.backbone."),
    },
    "a teacher of DINOv2, in chunks": lambda state, other: {
        "teacher": prefixed(chunked(state), "backbone.", **{"dino_head.mlp.0.weight": HEAD})
    },
    "student and teacher in one": lambda state, other: {
        "model": prefixed(other, "student.backbone.") | prefixed(state, "teacher.backbone.")
    },
    "Lightning": lambda state, other: {
        "state_dict": prefixed(state, "model.", **{"criterion.weight": torch.ones(3)}),
        "pytorch-lightning_version": "2.5.0",
        "hyper_parameters": {"model": Unknown()},
        "loops": {"fit_loop": {"state_dict": {}}},
    },
    "a moving average": lambda state, other: {"state_dict": other, "state_dict_ema": state},
    "DistributedDataParallel": lambda state, other: {"model": prefixed(state, "module.")},
    "torch.compile": lambda state, other: prefixed(state, "_orig_mod."),
    "a classifier": lambda state, other: {"model": {**state, "head.weight": torch.ones(10, 192)}},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_checkpoints_of_trainings(kind, tiny, expected, tmp_path):
    other = {key: value + 1 for key, value in tiny.items()}
    content = CONTAINERS[kind](tiny, other)
    assert torch.equal(features(TINY, save(content, tmp_path / "a.ckpt")), expected)


def test_two_vits_of_equal_rank(tiny, tmp_path):
    content = prefixed(tiny, "module.base_encoder.") | prefixed(tiny, "module.momentum_encoder.")
    message = "2 ViTs, 'model.module.base_encoder' and 'model.module.momentum_encoder': keep the"
    with pytest.raises(WeightsError, match=message):
        load_backbone(TINY, weights=save({"model": content}, tmp_path / "a.pth"))


def test_a_dictionary_that_holds_itself(tmp_path):
    content: dict[str, Any] = {"proj.0.weight": torch.ones(2, 3)}
    content |= {f"{number}": content for number in range(300)}
    path = save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=f"must be a checkpoint of {TINY}: .* does not fit"):
        load_backbone(TINY, weights=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"proj.0.weight": torch.ones(2, 3)}, "holds no ViT that is known: 'proj.0.weight'"),
        ({}, "holds no ViT that is known: nothing"),
        ([torch.ones(2)], "with a state dict: .* holds an object of the type list"),
    ],
)
def test_what_a_file_holds_is_said(content, message, tmp_path):
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(TINY, weights=save(content, tmp_path / "a.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["visual.conv1.weight", "conv1.weight"])
def test_patches_of_clip_are_compared(key, tmp_path):
    state = {
        key: torch.ones(768, 3, 32, 32),
        key[:-12] + "positional_embedding": torch.ones(50, 768),
    }
    state["visual.class_embedding"] = torch.ones(768)
    message = "its patches have 32 x 32 pixels, those of the model 16 x 16"
    with pytest.raises(WeightsError, match=message):
        load_backbone("vit_base_patch16_clip_224.openai", weights=save(state, tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("held", "asked", "fits"),
    [
        (DINO8, DINO, DINO8),
        (DINO, DINO8, DINO),
        (DINOV2, DINO, "vit_small_patch14_dinov2"),
        (DINOV2, REGISTERS, DINOV2),
        (REGISTERS, DINOV2, REGISTERS),
        (TINY, DINO8, TINY),
        (DINO8, DINOV3, DINO8),
        (DINOV3_BIAS, DINOV3, DINOV3_BIAS),
        (DINOV3_GATED, DINOV3_BIAS, DINOV3_GATED),
    ],
)
def test_the_model_that_fits_is_named(held, asked, fits, tmp_path):
    path = save(random_state(held), tmp_path / "a.pth")
    message = rf"`weights` must be a checkpoint of {re.escape(asked)}: .* does not fit \((.*)\)$"
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(asked, weights=path)
    assert re.search(rf"; it fits {re.escape(fits)}\)$", str(caught.value))
    patch = [int(re.search(r"patch(\d+)", name)[1]) for name in (held, asked)]
    if patch[0] != patch[1]:
        sides = [f"{side} x {side}" for side in patch]
        assert f"(its patches have {sides[0]} pixels, those of the model {sides[1]};" in str(
            caught.value
        )


def test_biases_that_are_zero_may_be_left_out(tmp_path, capfd):
    path = save(random_state(DINOV3), tmp_path / "a.pth")
    assert torch.equal(features(DINOV3, path), features(DINOV3_BIAS, path))
    out, err = capfd.readouterr()
    assert "q_bias" not in out + err


def test_biases_of_keys_are_not_left_out(tmp_path):
    state = random_state(DINOV3_BIAS)
    state["blocks.1.attn.qkv.bias"][400] = 1.0
    masked = features(DINOV3_BIAS, save(state, tmp_path / "a.pth"))
    state["blocks.1.attn.qkv.bias"][400] = 0.0
    assert torch.equal(features(DINOV3_BIAS, save(state, tmp_path / "a.pth")), masked)
    state["blocks.1.attn.qkv.bias"][400] = 1.0
    del state["blocks.1.attn.qkv.bias_mask"]
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias is not zero for keys"):
        load_backbone(DINOV3_BIAS, weights=save(state, tmp_path / "a.pth"))


def test_the_periods_of_the_file_are_used(tmp_path):
    state = random_state(DINOV3)
    plain = load_backbone(DINOV3, weights=save(state, tmp_path / "a.pth"))
    own = plain.model.rope.periods.clone()
    state["rope_embed.periods"] = own.bfloat16()
    backbone = load_backbone(DINOV3, weights=save(state, tmp_path / "a.pth"))
    assert torch.equal(backbone.model.rope.periods, own.bfloat16().float())
    batch = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(2))
    rounded = backbone(batch)
    assert not torch.equal(rounded, plain(batch))
    state["rope_embed.periods"] = own
    backbone = load_backbone(DINOV3, weights=save(state, tmp_path / "a.pth"))
    assert torch.equal(backbone(batch), plain(batch))


@pytest.mark.parametrize(
    ("periods", "message"),
    [
        (torch.ones(8), r"rope_embed\.periods has the shape \(8,\)"),
        (torch.zeros(16), r"rope_embed\.periods must be finite and positive"),
        (torch.full((16,), float("nan")), r"rope_embed\.periods must be finite and positive"),
    ],
)
def test_periods_that_are_none(periods, message, tmp_path):
    state = random_state(DINOV3) | {"rope_embed.periods": periods}
    with pytest.raises(WeightsError, match=message):
        load_backbone(DINOV3, weights=save(state, tmp_path / "a.pth"))


def to_transformers(state: State, kind: str) -> State:
    """The keys that the library transformers gives to the same weights."""
    layer = "layer" if kind == "dinov3" else "encoder.layer"
    gated = any(".mlp.w1." in key for key in state)
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "attn.proj": "attention.output.dense",
    }
    if kind == "vit":
        names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    if kind == "dinov3":
        names |= {
            "patch_embed.proj": "embeddings.patch_embeddings",
            "attn.proj": "attention.o_proj",
        }
        names |= {"storage_tokens": "embeddings.register_tokens"}
        names |= {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
        names |= {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj"} if gated else {}
        names |= {"mlp.w3": "mlp.down_proj"} if gated else {}
    parts = [f"attention.attention.{part}" for part in ("query", "key", "value")]
    if kind == "dinov3":
        parts = [f"attention.{part}_proj" for part in "qkv"]
    found = {}
    for key, value in state.items():
        if key.startswith("norm."):
            key = key if kind == "dinov3" else f"layer{key}"
        if key.endswith("bias_mask"):
            continue
        key = re.sub(r"^blocks", layer, key)
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if ".attn.qkv." in key:
            for part, rows in zip(parts, value.chunk(3), strict=True):
                if not (kind == "dinov3" and part == "attention.k_proj" and rows.ndim == 1):
                    found[key.replace("attn.qkv", part)] = rows.clone()
        else:
            found[key] = value
    return found


FORMATS = {
    DINO: ("vit", ""),
    DINOV2: ("dinov2", ""),
    REGISTERS: ("dinov2", "dinov2_with_registers."),
    DINOV3_BIAS: ("dinov3", ""),
    DINOV3: ("dinov3", "model."),
    DINOV3_GATED: ("dinov3", ""),
}


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


def test_a_folder_of_the_hub(tiny, expected, tmp_path):
    save(tiny, tmp_path / "pytorch_model.bin")
    assert torch.equal(features(TINY, tmp_path), expected)
    stat = (tmp_path / "pytorch_model.bin").stat()
    labeler = PseudoLabeler(TINY, 64, weights=tmp_path)
    assert labeler.settings["weights"] == [str(tmp_path), stat.st_size, stat.st_mtime_ns]


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


def test_comparing_copies_no_weights(monkeypatch, tmp_path):
    path = save(random_state(TINY), tmp_path / "a.pth")
    create = timm.create_model

    def checked(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        assert all(value.is_meta for value in model.parameters())
        return model

    monkeypatch.setattr(timm, "create_model", checked)
    with pytest.raises(WeightsError, match="does not fit"):
        load_backbone("vit_giant_patch14_dinov2", weights=path)
