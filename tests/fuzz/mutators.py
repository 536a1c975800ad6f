"""Mutates checkpoints so that they remain readable; blind changes rarely pass a checksum."""

from __future__ import annotations

import contextlib
import io
import random
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

# Names that readers of other projects' checkpoints search for.
_NAMES = (
    *("encoder", "mask_token", "model", "model_ema", "module", "state_dict", "storage_tokens"),
    *("beit3.encoder.layers.0.ffn.A.fc1.weight", "blocks.0.attn.q_proj.weight", "rope.freqs"),
    *("blocks.0.attn.qkv.bias", "blocks.0.attn.wq.weight", "blocks.0.ffn.w12.weight"),
    *("conv1.weight", "head.weight", "patch_embed.proj.weight", "pos_embed"),
    *("module.visual.class_embedding", "module.visual.trunk.pos_embed", "visual.class_embedding"),
    *("preprocessor.patchifier.proj.weight", "vision_encoder.mask_token", "visual.conv1.weight"),
    *("radio_model.model.patch_generator.embedder.weight", "visual.pos_embed"),
    "visual.trunk.pos_embed",
)
_DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)
_OTHERS = (None, 3, "x", [], {}, (torch.ones(2),), {"weight": torch.ones(2)})


def mutate_checkpoint(data: bytes, most: int, seed: int) -> bytes:
    """Changes the tensors, a part of the container, or any bytes of a checkpoint.

    The result has at most ``most`` bytes. In an unreadable file only bytes are changed.
    """
    from atheris import Mutate

    drawn = random.Random(seed)
    change = drawn.choice((_tensors, _part, _part, None))
    if change is not None:
        try:
            changed = change(data, lambda part: bytes(Mutate(part, len(part) + 64)), drawn)
            if len(changed) <= most:
                return changed
        except Exception:  # already broken by an earlier change
            pass
    return bytes(Mutate(data, most))


def _part(data: bytes, mutate: Callable[[bytes], bytes], drawn: random.Random) -> bytes:
    """Changes a record of a zip archive, or the header or the tensors of safetensors."""
    if data[:2] != b"PK":
        end = 8 + int.from_bytes(data[:8], "little")
        header, body = data[8:end], data[end:]
        if drawn.random() < 0.8:
            header = mutate(header)
        else:
            body = mutate(body)
        return len(header).to_bytes(8, "little") + header + body
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in records if name.endswith(".pkl")]
    name = drawn.choice([*records, *(pickles * len(records))])
    records[name] = mutate(records[name])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    return stream.getvalue()


def _tensors(data: bytes, mutate: Callable[[bytes], bytes], drawn: random.Random) -> bytes:
    """Renames, reshapes, retypes, replaces, adds or removes tensors."""
    try:
        content: Any = load(data)
    except SafetensorError:
        content = torch.load(io.BytesIO(data), weights_only=True)
    state = content
    for _ in range(3):  # a dictionary may contain itself
        inner = [value for value in state.values() if isinstance(value, dict)]
        state = drawn.choice(inner or [state])
    for _ in range(drawn.randint(1, 3)):
        key = drawn.choice(list(state))
        shape = [drawn.choice((0, 1, 2, 3, 4, 5, 10, 16)) for _ in range(drawn.randrange(5))]
        match drawn.randrange(7):
            case 0:
                state[drawn.choice(_NAMES)] = state.pop(key)
            case 1:
                state[drawn.choice((key, *_NAMES))] = torch.ones(shape)
            case 2:
                if state[key].numel() < 1 << 16:
                    state[key] = state[key].to(drawn.choice(_DTYPES))
            case 3:
                state[key] = drawn.choice(_OTHERS)
            case 4:  # one element represents all of a larger tensor
                shape.append(1 << drawn.randrange(50))
                state[drawn.choice((key, *_NAMES))] = torch.ones(()).expand(shape)
            case 5:
                prefix = drawn.choice(("_orig_mod.", "encoder.", "module.", "visual.trunk."))
                renamed = {prefix + name: value for name, value in state.items()}
                state.clear()
                state.update(renamed)
            case _:
                del state[key]
    if drawn.random() < 0.5:
        with contextlib.suppress(Exception):  # safetensors stores only tensors that share no memory
            return save(content)
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=drawn.random() < 0.8)
    return stream.getvalue()
