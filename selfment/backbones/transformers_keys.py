"""Converts checkpoints of the library transformers: ViT (DINO), DINOv2 and DINOv3.

They become checkpoints with the keys of the authors' code, which timm can load.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

#: The key of the patch projection in DINOv3, and in the other models.
FIRST_KEYS = ("embeddings.patch_embeddings.weight", "embeddings.patch_embeddings.projection.weight")

_ATTENTION = r"((?:encoder\.)?layer\.\d+)\.attention\.(?:attention\.)?"
_PARTS = {"query": 0, "q_proj": 0, "key": 1, "k_proj": 1, "value": 2, "v_proj": 2}
_PART = re.compile(_ATTENTION + rf"({'|'.join(_PARTS)})\.(weight|bias)")
# The first pattern that matches the whole key is used.
_COMMON = (
    (r"embeddings\.cls_token", r"cls_token"),
    (r"embeddings\.position_embeddings", r"pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(\w+)", r"patch_embed.proj.\1"),
    (r"(?:layernorm|norm)\.(\w+)", r"norm.\1"),
    (r"(?:encoder\.)?layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"(?:encoder\.)?layer\.(\d+)\.norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"(?:encoder\.)?layer\.(\d+)\.layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.attention\.o_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (r"(?:encoder\.)?layer\.(\d+)\.mlp\.weights_in\.(\w+)", r"blocks.\1.mlp.w12.\2"),
    (r"(?:encoder\.)?layer\.(\d+)\.mlp\.weights_out\.(\w+)", r"blocks.\1.mlp.w3.\2"),
)
_GATED = (
    (r"layer\.(\d+)\.mlp\.gate_proj\.(\w+)", r"blocks.\1.mlp.w1.\2"),
    (r"layer\.(\d+)\.mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.w2.\2"),
    (r"layer\.(\d+)\.mlp\.down_proj\.(\w+)", r"blocks.\1.mlp.w3.\2"),
)
_PLAIN = (
    (r"layer\.(\d+)\.mlp\.up_proj\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layer\.(\d+)\.mlp\.down_proj\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
)
# The mask token is for training only; the pooler comes after the features.
_UNUSED = re.compile(r"embeddings\.mask_token|pooler\..*|rope_embeddings\..*")


def from_transformers(state: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict with the keys of the authors' code.

    Queries, keys and values are concatenated, with zeros for a missing bias. An unknown key is not
    changed, so that the model will refuse it.
    """
    rotary = FIRST_KEYS[0] in state  # DINOv3
    gated = any(".mlp.gate_proj." in str(key) for key in state)
    table = (*_COMMON, *(_GATED if gated else _PLAIN))
    registers = "storage_tokens" if rotary else "register_tokens"
    converted: dict[str, Any] = {}
    split: dict[tuple[str, str], dict[int, Tensor]] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            converted[key] = value
        elif part := _PART.fullmatch(key):
            block = f"blocks.{part[1].rpartition('.')[2]}.attn.qkv"
            split.setdefault((block, part[3]), {})[_PARTS[part[2]]] = value
        elif key == "embeddings.register_tokens":
            converted[registers] = value
        elif not _UNUSED.fullmatch(key):
            converted[_renamed(key, table)] = value
    for (block, kind), parts in split.items():
        if kind == "bias":
            parts = {
                i: parts.get(i, torch.zeros_like(next(iter(parts.values())))) for i in range(3)
            }
        converted[f"{block}.{kind}"] = torch.cat([parts[i] for i in sorted(parts)])
    if registers in converted or rotary or any(key.endswith("ls1.gamma") for key in converted):
        # timm recognises DINOv2 and DINOv3 by this key.
        mask = state.get("embeddings.mask_token")
        converted["mask_token"] = torch.zeros(1) if mask is None else mask
    return converted


def _renamed(key: str, table: tuple[tuple[str, str], ...]) -> str:
    """Returns the name of a key by the first pattern that matches, or the key itself."""
    for pattern, name in table:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key
