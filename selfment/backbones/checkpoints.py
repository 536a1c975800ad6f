"""Reads checkpoints of backbones: finds the files at a path and the state dict of the ViT in them.

Nothing that the files contain is executed.
"""

from __future__ import annotations

import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.torch_state import SETTINGS
from .base import WeightsError, check_memory
from .transformers_keys import FIRST_KEYS, from_transformers

_INDEX = ".index.json"  # after the name of a checkpoint that is split into several files
_NAMES = ("model.safetensors", "pytorch_model.bin")
_FIRST_KEYS = ("patch_embed.proj.weight", *FIRST_KEYS)
_DEPTH = 4  # levels of nested dictionaries that are searched; a dictionary may contain itself
#: If a file contains several ViTs, the one whose path has the first of these parts is used.
_PREFERRED = (r"teacher", r".*_ema|ema", r"encoder")


def files_of(path: str) -> list[str]:
    """Returns the files that the weights at ``path`` consist of; none if there is no checkpoint.

    Args:
        path: a file, or a folder of the Hugging Face hub: with ``model.safetensors`` or
            ``pytorch_model.bin``, or with the index and the parts of one of them.

    Raises:
        WeightsError: an index cannot be read.
    """
    if os.path.isfile(path):
        return [path]
    for name in _NAMES:
        if os.path.isfile(file := os.path.join(path, name)):
            return [file]
        if os.path.isfile(index := file + _INDEX):
            return [index, *_parts(index)]
    return []


def read_vit(path: str, name: str) -> dict[str, Any]:
    """Returns the state dict of the ViT at ``path``, with the keys of timm or the authors' code.

    Full training checkpoints are searched for the ViT: the teacher is preferred to the student, and
    the moving average to the weights. Prefixes that a wrapper adds to the keys (``module.``,
    ``backbone.``, ``model.``) are removed, and keys of the library transformers are converted.

    Args:
        path: as in :func:`files_of`.
        name: the model whose weights these should be, for error messages.

    Raises:
        WeightsError: the path has no checkpoint, or a file cannot be read, contains several ViTs of
            equal rank, or has tensors that are larger than their data.
    """
    files = files_of(path)
    if not files:
        there = "is a folder without " + " or ".join(_NAMES)
        raise WeightsError(
            f"`weights` must be a checkpoint file of {name}, or a folder of the Hugging Face hub: "
            f"{path!r} {there if os.path.isdir(path) else 'does not exist'}"
        )
    content: dict[str, Any] = {}
    for file in files:
        if not file.endswith(_INDEX):
            content |= _read(file)
    try:
        state = _conventional(_choose(content))
        check_memory(state)
    except Exception as error:  # any key, and any value, can be in a file
        raise WeightsError(
            f"`weights` must be a checkpoint of {name}: {path!r} does not fit "
            f"({error or type(error).__name__})"
        ) from error
    return state


def read_config(path: str) -> dict[str, Any]:
    """Reads the ``config.json`` of a folder of the Hugging Face hub; empty if there is none.

    Raises:
        WeightsError: the file is not JSON.
    """
    file = os.path.join(path, "config.json")
    if not os.path.isfile(file):
        return {}
    try:
        with open(file, encoding="utf-8") as stream:
            config = json.load(stream)
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(
            f"`weights` must be a checkpoint with a config.json in JSON: {file!r} is not ({error})"
        ) from error
    return config if isinstance(config, dict) else {}


def describe(state: dict[str, Any]) -> str:
    """Describes a state dict in a few words: the size of its ViT, or its first keys."""
    weight = state.get(_FIRST_KEYS[0])
    patch = patch_of(state)
    if patch is None or not isinstance(weight, Tensor):
        keys = ", ".join(map(repr, list(state)[:3])) or "nothing"
        known = "" if patch else "no ViT that is known: "
        return f"{known}{keys[:120]}{' and others' if len(state) > 3 else ''}"
    blocks = {key.split(".")[1] for key in map(str, state) if key.startswith("blocks.")}
    return (
        f"a ViT with patches of {patch} x {patch} pixels, {len(blocks)} blocks and the width "
        f"{weight.shape[0]}"
    )


def patch_of(state: dict[str, Any]) -> int | None:
    """Returns the patch side in pixels of a ViT's state dict, or None if it is unknown."""
    # The image encoder of CLIP has its own names until timm converts them.
    keys = [_FIRST_KEYS[0], "visual.conv1.weight", "module.visual.conv1.weight"]
    keys += ["conv1.weight"] if "positional_embedding" in state else []
    weight = next((state[key] for key in keys if key in state), None)
    if not isinstance(weight, Tensor) or weight.ndim not in (2, 4):
        return None
    if weight.ndim == 4:
        return int(weight.shape[-1])
    return round(math.sqrt(weight.shape[1] / 3))  # a linear layer in old releases of timm


def read_inert(file: str) -> Any:
    """Loads a torch file; objects of unknown classes become inert placeholders.

    Objects that a training script saved beside the weights, such as its command line, are not
    executed. Raises errors of torch, pickle and zip.
    """
    with SETTINGS.held():  # the list of safe classes belongs to the process
        unknown = []
        if zipfile.is_zipfile(file):  # torch's format since 1.6
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        # The file is opened here because torch would interpret its name.
        with (
            torch.serialization.safe_globals([(_Inert, name) for name in unknown]),
            open(file, "rb") as stream,
        ):
            return torch.load(stream, map_location="cpu", weights_only=True)


class _Inert:
    """Replaces an object of a class that is not loaded: accepts any state and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _parts(index: str) -> list[str]:
    """Returns the files that an index names, all of them in its folder."""
    try:
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
        if any(os.path.basename(name) != name for name in names):
            raise ValueError("it names files in other folders")
        files = [os.path.join(os.path.dirname(index), name) for name in names]
        if absent := [file for file in files if not os.path.isfile(file)]:
            raise ValueError(f"{absent[0]!r} does not exist")
    except Exception as error:  # any JSON can be there
        raise WeightsError(
            f"`weights` must be a checkpoint with an index in JSON of its parts: {index!r} is not "
            f"({error or type(error).__name__})"
        ) from error
    return files


def _is_safetensors(file: str) -> bool:
    """Returns whether a file has the format of safetensors: JSON after a length of 8 bytes."""
    with open(file, "rb") as stream:
        return stream.read(9)[8:] == b"{"


def _read(file: str) -> dict[str, Any]:
    try:
        if _is_safetensors(file):
            from safetensors.torch import load_file

            return load_file(file)
        content = read_inert(file)
    except Exception as error:  # torch, pickle, zip and safetensors each have errors of their own
        raise WeightsError(
            f"`weights` must be a checkpoint that torch or safetensors can read: {file!r} is not "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            "`weights` must be a checkpoint with a state dict: "
            f"{file!r} holds an object of the type {type(content).__name__}"
        )
    return content


def _choose(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict of the only ViT in a file, or of the preferred one."""
    vits = {path: (state, prefix) for state, prefix, path in _vits(content)}
    if not vits:  # it may be of a family with other keys, which timm converts
        for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
            if isinstance(inner := content.get(key), dict):
                return inner
        return content
    ranks = {path: _rank(path) for path in vits}
    best = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        names = " and ".join(repr(path.rstrip(".") or "the keys themselves") for path in best[:4])
        raise ValueError(f"it holds {len(best)} ViTs, {names}: keep the one that you mean")
    state, prefix = vits[best[0]]
    if not prefix:
        return state
    return {k[len(prefix) :]: v for k, v in state.items() if str(k).startswith(prefix)}


def _vits(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yields the dictionary, the prefix of its keys and the path of each ViT in a file."""
    seen: set[int] = set()  # a dictionary can contain itself, or another many times
    level = [("", content)]
    for _ in range(_DEPTH):
        inner = []
        for path, state in level:
            if id(state) in seen:
                continue
            seen.add(id(state))
            for key, value in state.items():
                if isinstance(value, dict):
                    inner.append((f"{path}{key}.", value))
                ending = next((end for end in _FIRST_KEYS if str(key).endswith(end)), None)
                if isinstance(value, Tensor) and isinstance(key, str) and ending is not None:
                    prefix = key.removesuffix(ending)
                    if not prefix or prefix.endswith("."):
                        yield state, prefix, path + prefix
        level = inner


def _rank(path: str) -> int:
    """Returns the rank of a ViT by its path; the lowest is preferred."""
    parts = path.split(".")
    for rank, wanted in enumerate(_PREFERRED):
        if any(re.fullmatch(wanted, part) for part in parts):
            return rank
    return len(_PREFERRED)


def _conventional(state: dict[str, Any]) -> dict[str, Any]:
    """Converts keys of the library transformers, and of training code of DINOv2 or DINOv3."""
    if any(key in state for key in FIRST_KEYS):
        return from_transformers(state)
    # Training code of DINOv2 and DINOv3 stores blocks in chunks; remove the chunk's number.
    return {
        re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", key) if isinstance(key, str) else key: value
        for key, value in state.items()
    }
