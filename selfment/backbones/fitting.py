"""Compares checkpoints with timm models, and loads them: the model that fits is named in errors."""

from __future__ import annotations

import difflib
import math
import re
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .checkpoints import describe, patch_of

MODULES = ("vision_transformer", "deit", "eva")
_TRIES = 24  # a checkpoint is compared with at most so many models: each takes up to 0.3 s
_PERIODS = "rope_embed.periods"  # a key of DINOv3, in the authors' checkpoints
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # keys of DINOv2, DINOv3 and timm
# The word for a width in the names of models: models with another word are not compared.
_WORDS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 4096: "7b"}


def create(name: str, **kwargs: Any) -> Any:
    """Creates the timm model ``name`` without a classifier, for images of any size."""
    return timm.create_model(name, num_classes=0, dynamic_img_size=True, **kwargs)


def load(name: str, state: dict[str, Any], config: dict[str, Any]) -> Any:
    """Creates the timm model ``name`` and loads the weights of a checkpoint.

    The model keeps the file's grid of position embeddings, so that they are resampled only once, to
    the input; rotary embeddings have the file's periods.

    Args:
        name: a name in timm.
        state: as :func:`selfment.backbones.checkpoints.read_vit` returns it.
        config: as :func:`selfment.backbones.checkpoints.read_config` returns it, for the
            properties that the shapes of weights do not determine.

    Raises:
        ValueError: the checkpoint does not fit this model. The sentence says why, and names a model
            that fits, if there is one.
    """
    state = _without_classifier(name, state)
    plan = _plan(name)
    problem = _problem(name, plan, state)
    if problem is None and (difference := _difference(plan, config)):
        raise ValueError(difference)
    if problem is not None:
        other = _fitting(name, state)
        instead = f"it holds {describe(state)}" if other is None else f"it fits {other}"
        raise ValueError(f"{problem}; {instead}")
    model = _load(name, plan, state)
    for key, weight in model.named_parameters():
        # The sum is quick; if it is not finite, that may be an overflow of the sum alone.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
    if _PERIODS in state:
        model.rope.periods.copy_(state[_PERIODS])
    return model


class _RatesOnCPU(TorchFunctionMode):
    """Creates the drop-path rates on the CPU.

    timm reads their values while it builds a model, which is impossible on the meta device.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func is torch.linspace:
            options = {"device": "cpu", **options}
        return func(*args, **options)


def _plan(name: str) -> Any:
    """Creates the model on the meta device, without memory for its weights."""
    with torch.device("meta"), _RatesOnCPU():
        return create(name)


def _without_classifier(name: str, state: dict[str, Any]) -> dict[str, Any]:
    # With a classifier in the file timm would load the rest without comparing names.
    config: Any = timm.get_pretrained_cfg(name)
    heads = (config and config.classifier) or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return {key: value for key, value in state.items() if not str(key).startswith(prefixes)}


def _load(name: str, plan: Any, state: dict[str, Any], device: str = "cpu") -> Any:
    if not _has_qkv_bias(plan) and "storage_tokens" in state:
        # They are all zero, as _problem has checked; timm would print that it ignores them.
        state = {key: value for key, value in state.items() if not key.endswith("qkv.bias")}
    options = _image_size(plan, state)
    if isinstance(plan, VisionTransformer):
        options["weight_init"] = "skip"  # no random numbers: the file's weights replace them
    source = {"state_dict": state, "num_classes": 0, "custom_load": False, "source": ""}
    with torch.device(device), _RatesOnCPU():
        model = create(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    del model.pretrained_cfg["state_dict"]  # otherwise timm keeps this copy of the weights
    return model


def _image_size(plan: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Returns timm's option for the image size with the grid of the file's position embeddings."""
    positions = state.get("pos_embed")
    if not isinstance(plan, VisionTransformer) or plan.pos_embed is None:
        return {}
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        return {}
    # DINOv2 with registers has the CLS token's position in the file but not in the model.
    prefix = 0 if plan.no_embed_class else plan.num_prefix_tokens
    prefix = 1 if "register_tokens" in state else prefix
    patches = positions.shape[1] - prefix
    side = math.isqrt(max(0, patches))
    if side * side != patches or side == 0 or (side, side) == plan.patch_embed.grid_size:
        return {}
    return {"img_size": side * plan.patch_embed.patch_size[0]}


def _problem(name: str, plan: Any, state: dict[str, Any]) -> str | None:
    """Returns why the checkpoint does not fit the model, or None; no weights are copied."""
    if not state:  # timm would download the weights of this name
        return "no weights are left without a classifier"
    patch, own = patch_of(state), plan.patch_embed.patch_size[0]
    if patch is not None and patch != own:
        return f"its patches have {patch} x {patch} pixels, those of the model {own} x {own}"
    if problem := _shape_problem(plan, state) or _dinov3_problem(plan, state):
        return problem
    shapes = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in state.items()}
    try:
        _load(name, plan, shapes, "meta")
    except Exception as error:  # timm's filters can raise anything
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[1] if len(lines) > 1 else (lines or [type(error).__name__])[0]
        return detail if len(detail) <= 160 else detail[:157] + "..."
    return None


def _shape_problem(plan: Any, state: dict[str, Any]) -> str | None:
    """Returns a problem of shapes, or None: another width, or another number of registers."""
    weight = state.get("patch_embed.proj.weight")
    if isinstance(weight, Tensor) and weight.ndim > 0 and weight.shape[0] != plan.embed_dim:
        return f"its features have the width {weight.shape[0]}, those of the model {plan.embed_dim}"
    tokens = [state[key] for key in _REGISTERS if isinstance(state.get(key), Tensor)]
    count = tokens[0].shape[1] if tokens and tokens[0].ndim == 3 else 0
    own = getattr(plan, "reg_token", None)
    own_count = 0 if own is None else own.shape[1]
    if "cls_token" in state and count != own_count:
        return f"it has {count} register tokens, the model {own_count}"
    return None


def _difference(plan: Any, config: dict[str, Any]) -> str | None:
    """Returns how the model differs from a configuration of transformers, or None."""
    attention, rope = getattr(plan.blocks[0], "attn", None), getattr(plan, "rope", None)
    own = {
        "num_attention_heads": getattr(attention, "num_heads", None),
        "rope_theta": getattr(rope, "temperature", None),
    }
    for key, value in own.items():
        if value is not None and config.get(key, value) != value:
            return f"its config.json says {key} = {config[key]!r}, the model has {value!r}"
    return None


def _dinov3_problem(plan: Any, state: dict[str, Any]) -> str | None:
    """Returns a problem of a DINOv3 checkpoint that timm would ignore silently, or None."""
    if "storage_tokens" not in state:
        return None
    without = not _has_qkv_bias(plan)
    for key, bias in state.items():
        if key.endswith(".qkv.bias") and isinstance(bias, Tensor) and bias.ndim == 1:
            queries, keys, values = bias.tensor_split(3)
            mask = state.get(f"{key}_mask")
            if isinstance(mask, Tensor) and mask.shape == bias.shape:
                # NaN counts as 0: timm has no biases of keys in any case.
                keys = (bias * mask.nan_to_num()).tensor_split(3)[1]
            if keys.any():
                return f"{key} is not zero for keys, of which the model has no bias"
            if without and (queries.any() or values.any()):
                return f"{key} is not zero, and the model has no such bias"
    periods = state.get(_PERIODS)
    if isinstance(periods, Tensor):
        own = getattr(getattr(plan, "rope", None), "periods", None)
        if own is None or own.shape != periods.shape:
            return f"{_PERIODS} has the shape {tuple(periods.shape)}"
        if not (periods.isfinite() & (periods > 0)).all():
            return f"{_PERIODS} must be finite and positive"
    return None


def _has_qkv_bias(plan: Any) -> bool:
    """Returns whether an Eva has biases of queries and values; False for other families."""
    return any(key.endswith("attn.q_bias") for key, _ in plan.named_parameters())


def _fitting(name: str, state: dict[str, Any]) -> str | None:
    """Returns the model with the most similar name that the checkpoint fits, or None."""
    patch, weight = patch_of(state), state.get("patch_embed.proj.weight")
    if patch is None or not isinstance(weight, Tensor):
        return None
    architecture, _, tag = name.partition(".")
    wanted = re.sub(r"patch\d+", f"patch{patch}", architecture)
    word = _WORDS.get(weight.shape[0], "")
    names = [
        other
        for other in timm.list_models()
        if f"patch{patch}_" in f"{other}_"
        and word in other
        and other != architecture
        and timm.models.is_model_in_modules(other, MODULES)
    ]
    names.sort(key=lambda other: -difflib.SequenceMatcher(None, wanted, other).ratio())
    fitting = next(
        (other for other in names[:_TRIES] if _problem(other, _plan(other), state) is None), None
    )
    if fitting is None:
        return None
    tags = timm.list_pretrained(f"{fitting}.*")
    likely = (f"{fitting}.{tag}", f"{fitting}.dino" if "dino" in name else "")
    return next((other for other in likely if other in tags), fitting)
