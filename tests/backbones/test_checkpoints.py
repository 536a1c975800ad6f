"""Training checkpoints are searched for a ViT, which is compared with the model before it loads."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from helpers.vits import (
    DINO,
    DINO8,
    DINOV2,
    DINOV3,
    DINOV3_BIAS,
    DINOV3_GATED,
    REGISTERS,
    TINY,
    State,
    features,
    prefixed,
    random_state,
    save,
)
from selfment.backbones import WeightsError, load_backbone


def chunked(state: State) -> State:
    """Returns blocks as DINOv2's training stores them: each in one of four chunks."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}", key): value
        for key, value in state.items()
    }


HEAD = {"head.mlp.0.weight": torch.ones(3, 2), "head.last_layer.weight_g": torch.ones(3, 1)}


class Unknown:
    """A class that cannot be imported in another process."""


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


@pytest.mark.slow
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
        ({}, "no weights are left without a classifier; it holds no ViT that is known: nothing"),
        ({"head.weight": torch.ones(2, 3)}, "no weights are left without a classifier"),
        ([torch.ones(2)], "with a state dict: .* holds an object of the type list"),
    ],
)
def test_what_a_file_holds_is_said(content, message, tmp_path):
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(TINY, weights=save(content, tmp_path / "a.pth"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "asked", "problem"),
    [
        (DINOV2, REGISTERS, "it has 0 register tokens, the model 4"),
        (REGISTERS, DINOV2, "it has 4 register tokens, the model 0"),
        (TINY, DINO, "its features have the width 192, those of the model 384"),
    ],
)
def test_shapes_that_differ_are_named(held, asked, problem, tmp_path):
    path = save(random_state(held), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=re.escape(f"({problem}; it fits {held})")):
        load_backbone(asked, weights=path)


def test_weights_that_are_not_finite(tiny, tmp_path):
    weight = tiny["blocks.0.attn.qkv.weight"].clone()
    weight[0, 0] = float("nan")
    path = save({**tiny, "blocks.0.attn.qkv.weight": weight}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"\(blocks.0.attn.qkv.weight holds NaN or infinity\)"):
        load_backbone(TINY, weights=path)


@pytest.mark.parametrize(
    ("name", "other"), [("a.pth", "a.safetensors"), ("a.safetensors", "a.bin")]
)
def test_the_content_of_a_file_counts_not_its_name(name, other, tiny, expected, tmp_path):
    misnamed = Path(save(tiny, tmp_path / name)).rename(tmp_path / other)
    assert torch.equal(features(TINY, misnamed), expected)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_biases_that_are_zero_may_be_left_out(tmp_path, capfd):
    path = save(random_state(DINOV3), tmp_path / "a.pth")
    assert torch.equal(features(DINOV3, path), features(DINOV3_BIAS, path))
    out, err = capfd.readouterr()
    assert "q_bias" not in out + err


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
