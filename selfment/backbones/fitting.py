"""Whether a checkpoint is that of a timm model, and of which model it is instead."""

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
_TRIES = 24  # models that a checkpoint is compared with at most: each takes up to 0.3 s
_PERIODS = "rope_embed.periods"  # of DINOv3, in the authors' checkpoints
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # of DINOv2, DINOv3 and timm
# The word for a width in the names of models: those with another one need not be tried.
_WORDS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 4096: "7b"}


def create(name: str, **kwargs: Any) -> Any:
    """The timm model ``name`` without a classifier, for images of any size."""
    return timm.create_model(name, num_classes=0, dynamic_img_size=True, **kwargs)


def load(name: str, state: dict[str, Any], config: dict[str, Any]) -> Any:
    """The timm model ``name`` with the weights of a checkpoint.

    The model keeps the grid of position embeddings that the file has, so that they are resampled
    once, to the input; rotary embeddings have the periods that the file has.

    Args:
        name: a name in timm.
        state: as :func:`selfment.backbones.checkpoints.read_vit` returns it.
        config: as :func:`selfment.backbones.checkpoints.read_config` returns it: what the shapes
            of weights do not tell.

    Raises:
        ValueError: the checkpoint is not one of this model. The sentence says why not, and of
            which model it is, where one is found.
    """
    state = _without_classifier(name, state)
    plan = _plan(name)
    problem = _problem(name, plan, state)
    if problem is None and (difference := _difference(plan, config)):
        raise ValueError(difference)
    if problem is not None:
        found = _fitting(name, state)
        holds = f"it holds {describe(state)}" if found is None else f"it fits {found}"
        raise ValueError(f"{problem}; {holds}")
    model = _load(name, plan, state)
    for key, weight in model.named_parameters():
        # The sum is quick; where it is not finite, it may have left the range of its type.
        if not weight.sum().isfinite() and not weight.isfinite().all():
            raise ValueError(f"{key} holds NaN or infinity")
    if _PERIODS in state:
        model.rope.periods.copy_(state[_PERIODS])
    return model


class _RatesOnCPU(TorchFunctionMode):
    """Leaves the one thing on the CPU whose values releases of timm need to build a model.

    These are the rates of dropped paths, which are numbers of the constructor.
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
    """The model without memory for its weights."""
    with torch.device("meta"), _RatesOnCPU():
        return create(name)


def _without_classifier(name: str, state: dict[str, Any]) -> dict[str, Any]:
    # A classifier would make timm load the rest without comparing names, so it goes first.
    config: Any = timm.get_pretrained_cfg(name)
    heads = (config and config.classifier) or ()
    prefixes = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    return {key: value for key, value in state.items() if not str(key).startswith(prefixes)}


def _load(name: str, plan: Any, state: dict[str, Any], device: str = "cpu") -> Any:
    if not _has_qkv_bias(plan) and "storage_tokens" in state:
        # All zero, as _problem has seen to; timm would print that it leaves them out.
        state = {key: value for key, value in state.items() if not key.endswith("qkv.bias")}
    options = _image_size(plan, state)
    if isinstance(plan, VisionTransformer):
        options["weight_init"] = "skip"  # random numbers, which the file's would replace
    source = {"state_dict": state, "num_classes": 0, "custom_load": False, "source": ""}
    with torch.device(device), _RatesOnCPU():
        model = create(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    del model.pretrained_cfg["state_dict"]  # timm would keep this second copy of the weights
    return model


def _image_size(plan: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The image size whose patch grid is that of the file's position embeddings."""
    positions = state.get("pos_embed")
    if not isinstance(plan, VisionTransformer) or plan.pos_embed is None:
        return {}
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        return {}
    # DINOv2 with registers has the CLS token's position in the file and not in the model.
    prefix = 0 if plan.no_embed_class else plan.num_prefix_tokens
    prefix = 1 if "register_tokens" in state else prefix
    patches = positions.shape[1] - prefix
    side = math.isqrt(max(0, patches))
    if side * side != patches or side == 0 or (side, side) == plan.patch_embed.grid_size:
        return {}
    return {"img_size": side * plan.patch_embed.patch_size[0]}


def _problem(name: str, plan: Any, state: dict[str, Any]) -> str | None:
    """Why the checkpoint is not one of the model, None where it is; no weights are copied."""
    if not state:  # with nothing to load timm would download the weights of the name
        return "no weights are left without a classifier"
    patch, own = patch_of(state), plan.patch_embed.patch_size[0]
    if patch is not None and patch != own:
        return f"its patches have {patch} x {patch} pixels, those of the model {own} x {own}"
    if problem := _shape_problem(plan, state) or _dinov3_problem(plan, state):
        return problem
    shapes = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in state.items()}
    try:
        _load(name, plan, shapes, "meta")
    except Exception as error:  # timm's checkpoint filters meet any key and shape
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        detail = lines[1] if len(lines) > 1 else (lines or [type(error).__name__])[0]
        return detail if len(detail) <= 160 else detail[:157] + "..."
    return None


def _shape_problem(plan: Any, state: dict[str, Any]) -> str | None:
    """What timm would say of shapes alone: another width, or another number of registers."""
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
    """What a configuration of transformers says that the model is not."""
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
    """What timm would leave out of a checkpoint of DINOv3 without a word."""
    if "storage_tokens" not in state:
        return None
    without = not _has_qkv_bias(plan)
    for key, bias in state.items():
        if key.endswith(".qkv.bias") and isinstance(bias, Tensor) and bias.ndim == 1:
            queries, keys, values = bias.tensor_split(3)
            mask = state.get(f"{key}_mask")
            if isinstance(mask, Tensor) and mask.shape == bias.shape:
                # What is no number counts as 0: timm has no biases of keys in any case.
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
    """Whether an Eva has biases of queries and values; other families are not asked."""
    return any(key.endswith("attn.q_bias") for key, _ in plan.named_parameters())


def _fitting(name: str, state: dict[str, Any]) -> str | None:
    """A model that the checkpoint is one of, most like the one named; None if none is found."""
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
    found = next(
        (other for other in names[:_TRIES] if _problem(other, _plan(other), state) is None), None
    )
    if found is None:
        return None
    tags = timm.list_pretrained(f"{found}.*")
    likely = (f"{found}.{tag}", f"{found}.dino" if "dino" in name else "")
    return next((other for other in likely if other in tags), found)
