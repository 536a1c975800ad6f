"""The segmentation head: two linear layers and a classifier on frozen patch features; its files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbones import EMBEDDED, WeightsError
from ..backbones.base import check_memory
from ..backbones.checkpoints import read_inert
from ..backbones.names import timm_name
from ..core.arrays import check_dense, check_device
from ..core.torch_state import loading, without_autocast
from ..util.files import atomic_file, check_file

EMBEDDING = 128  #: length of the embedding that the contrastive loss takes

#: The files of a folder or a hub repository that holds a head.
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"

_MODEL_TYPE = "selfment-patch-head"  # in the configuration


class PatchHead(nn.Module):
    """From (..., d) patch features to an embedding and foreground logits (paper, section 3.3).

    ``Linear(d, c), ReLU, Linear(c, c)`` gives the embedding, ``Linear(c, 2)`` on it the logits of
    background and foreground. Features are L2-normalised inside. The parameters are float32,
    whatever torch's default dtype is.
    """

    def __init__(self, dim: int, embedding: int = EMBEDDING) -> None:
        """Makes a head with torch's random weights.

        Args:
            dim: d, the length of a patch feature.
            embedding: c, the length of the embedding; 128 in the paper.
        """
        super().__init__()
        self.dim = dim
        self.embedding = embedding
        self.proj = nn.Sequential(
            nn.Linear(dim, embedding, dtype=torch.float32),
            nn.ReLU(),
            nn.Linear(embedding, embedding, dtype=torch.float32),
        )
        self.classifier = nn.Linear(embedding, 2, dtype=torch.float32)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., 2) and embedding (..., c) of features (..., d).

        Both are in the head's dtype and computed in it, under autocast, too. Raises ``ValueError``
        for features of another length and ``TypeError`` for those that are no dense tensor.
        """
        check_dense(features, "features")
        weight = self.classifier.weight
        check_device(features, "features", weight.device, "the head")
        if features.ndim < 1 or features.shape[-1] != self.dim:
            raise ValueError(
                f"`features` must be (..., d) with d = {self.dim}, the head's: "
                f"got {tuple(features.shape)}"
            )
        with without_autocast(features.device):
            rows = functional.normalize(features.to(weight.dtype), dim=-1)
            embedding = self.proj(rows)
            return self.classifier(embedding), embedding

    def saliency(self, features: Tensor) -> Tensor:
        """The foreground's probability (...) in [0, 1] of features (..., d)."""
        logits: Tensor = self(features)[0]
        return logits.softmax(-1)[..., 1]


@dataclass(frozen=True)
class HeadInfo:
    """Describes a head besides its weights; None stands for what its file does not say."""

    backbone: str | None = None  #: as :func:`selfment.backbones.load_backbone` takes it
    features: str = "tokens"
    size: int | None = None  #: side in pixels of the images that it was trained on
    settings: dict[str, Any] = field(default_factory=dict)  #: of the training, ready for JSON
    positions: str = "authors"  #: as :func:`selfment.backbones.load_backbone` takes it
    keep_aspect: bool = False  #: True if it was trained on images in their aspect ratios


def check_fit(head: PatchHead, info: HeadInfo, backbone: str, dim: int) -> None:
    """Raises ``ValueError`` unless the head takes features of length ``dim`` of a backbone."""
    if head.dim != dim:
        trained = f", trained on {info.backbone}," if info.backbone else ""
        raise ValueError(
            f"`head` must fit the backbone: the head{trained} takes features of length "
            f"{head.dim}, {backbone} gives {dim}"
        )


def check_backbone(info: HeadInfo, name: str) -> None:
    """Raises ``ValueError`` if a head was trained on hand-made features, or is used with them.

    Unlike models, these have one name each, and their features are unlike those of any model.
    """
    trained = info.backbone
    if trained is not None and trained != name and not {trained, name}.isdisjoint(EMBEDDED):
        raise ValueError(
            f"`backbone` must be the one that the head was trained on, {trained!r}: got {name!r}"
        )


def model_differs(info: HeadInfo, settings: Mapping[str, Any]) -> bool:
    """Returns whether a head seems to be used with other features than it was trained on.

    ``settings``: of the model that it is used with. Names and kinds of features are compared, and
    of models of one's own the hashes of the weights, where both are known. A name without a tag,
    such as ``vit_small_patch16_224``, stands for one with any tag.
    """
    if info.backbone is None:
        return False
    trained, used = (of.get("own") or {} for of in (info.settings, settings))
    if known := {"name", "model"} & trained.keys() & used.keys():
        return any(trained[key] != used[key] for key in known)
    names = [timm_name(name) or name for name in (info.backbone, settings["backbone"])]
    (model, _, tag), (used_model, _, used_tag) = (name.partition(".") for name in names)
    same_tag = tag == used_tag or not tag or not used_tag
    return model != used_model or not same_tag or info.features != settings["features"]


def save_head(folder: str | os.PathLike[str], head: PatchHead, info: HeadInfo) -> None:
    """Writes ``model.safetensors`` and ``config.json`` into a folder, each atomically.

    The folder can be uploaded to a model hub as it is; :func:`load_head` reads it.
    """
    from safetensors.torch import save

    state = {name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}
    config = {"model_type": _MODEL_TYPE, "dim": head.dim, **asdict(info)}
    # The weights last: a folder without them is no head.
    text = json.dumps(config, indent=2) + "\n"
    for name, data in (CONFIG_NAME, text.encode()), (WEIGHTS_NAME, save(state, {"format": "pt"})):
        with atomic_file(Path(folder) / name, durable=True) as file:
            file.write(data)


def load_head(path: str | os.PathLike[str]) -> tuple[PatchHead, HeadInfo]:
    """The head in a folder of :func:`save_head`, in a checkpoint of the training, or published.

    A checkpoint file may hold the head's state dict itself or under ``model_state``, with
    ``info`` beside it where it is ours. For a file without ``info``, such as the
    ``model.safetensors`` of a folder, the ``config.json`` of a head in its folder is read, too. The
    length of the embedding is that of the weights. Files are read without running anything that
    they contain. Raises :class:`selfment.backbones.WeightsError` for a path that does not exist,
    cannot be read or holds something else.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return _from_folder(Path(name))
    state, info = _read(name)
    return _from_state(state, info or _config_beside(Path(name)), name)


def read_checkpoint(name: str) -> dict[str, Any]:
    """Returns the content of a torch file; objects of unknown classes are inert placeholders.

    Raises :class:`selfment.backbones.WeightsError`.
    """
    if not os.path.isfile(name):
        raise WeightsError(f"`head` must be a checkpoint or a folder: {name!r} does not exist")
    try:
        content = read_inert(name)
    except Exception as error:  # torch, pickle and zip have errors of their own
        raise WeightsError(
            f"`head` must be a checkpoint that torch can read: {name!r} is not "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"`head` must be a checkpoint with a state dict: {name!r} holds a "
            f"{type(content).__name__}"
        )
    return content


def _read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if name.endswith(".safetensors"):
        return _read_safetensors(name), {}
    content = read_checkpoint(name)
    info = content.get("info", {})
    state = content.get("model_state", content)
    return state if isinstance(state, dict) else {}, info if isinstance(info, dict) else {}


def _read_safetensors(name: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        check_file(name)
        state: dict[str, Any] = load_file(name)
    except Exception as error:  # of the safetensors library, and of the file system
        raise WeightsError(
            f"`head` must be a checkpoint that safetensors can read: {name!r} is not ({error})"
        ) from error
    return state


def _from_folder(folder: Path) -> tuple[PatchHead, HeadInfo]:
    missing = [n for n in (WEIGHTS_NAME, CONFIG_NAME) if not (folder / n).is_file()]
    if missing:
        raise WeightsError(
            f"`head` must be a folder with {WEIGHTS_NAME} and {CONFIG_NAME}: {os.fspath(folder)!r} "
            f"has no {missing[0]}"
        )
    state = _read_safetensors(os.fspath(folder / WEIGHTS_NAME))
    return _from_state(state, _config_of(folder), os.fspath(folder))


def _config_of(folder: Path) -> dict[str, Any]:
    """The configuration in a folder; empty if it is no JSON object."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise WeightsError(
            f"`head` must be a folder with a {CONFIG_NAME} in JSON: that of {os.fspath(folder)!r} "
            f"is not ({error})"
        ) from error
    return config if isinstance(config, dict) else {}


def _config_beside(file: Path) -> dict[str, Any]:
    """The configuration in the folder of a head's file; empty if there is none, or another's."""
    if not (file.parent / CONFIG_NAME).is_file():
        return {}
    config = _config_of(file.parent)
    return config if config.get("model_type") == _MODEL_TYPE else {}


def _from_state(
    state: dict[str, Any], info: dict[str, Any], name: str
) -> tuple[PatchHead, HeadInfo]:
    # DistributedDataParallel and torch.compile put a prefix before every key.
    for prefix in ("module.", "_orig_mod."):
        if state and all(str(key).startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    first = state.get("proj.0.weight")
    if not isinstance(first, Tensor) or first.ndim != 2:
        keys = ", ".join(map(repr, list(state)[:3])) or "nothing"
        raise WeightsError(
            "`head` must hold a PatchHead, with proj.0.weight of (embedding, d): "
            f"{name!r} holds {keys}"
        )
    try:
        check_memory(state)
        width, dim = first.shape
        second = state.get("proj.2.weight")
        # Before so large a head is made: a file may hold a long column, and not its square.
        if not isinstance(second, Tensor) or second.shape != (width, width):
            raise ValueError(f"proj.2.weight must be ({width}, {width}), as proj.0.weight says")
        with loading():
            head = PatchHead(dim, width)
            head.load_state_dict(state)
    except Exception as error:  # torch meets any key and value
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise WeightsError(
            f"`head` must hold a PatchHead: {name!r} does not fit ({reason})"
        ) from error
    known = {f.name for f in fields(HeadInfo)}
    return head.eval(), HeadInfo(**{key: value for key, value in info.items() if key in known})
