"""State dicts of ViTs with random weights in the formats of the authors, and their files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from selfment.backbones import fitting, load_backbone

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
    """Returns random weights with the keys of the authors' code."""
    model = fitting._plan(name)  # only its shapes are used
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
    """Converts to DINOv3's keys: one bias for queries, keys and values, with a mask for keys."""
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


def prefixed(state: State, prefix: str, **others: Any) -> dict[str, Any]:
    return {f"{prefix}{key}": value for key, value in state.items()} | others


def to_transformers(state: State, kind: str) -> State:
    """Converts keys to those of the library transformers."""
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
