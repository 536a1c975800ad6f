"""timm's ViTs as backbones: final normalised patch tokens, or keys of the last attention block."""

from __future__ import annotations

import difflib
import math
import os
from typing import Any

import timm
import torch
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..core.torch_state import as_documented, autocast
from . import fitting
from .base import Attended, Backbone, WeightsError
from .checkpoints import read_config, read_vit
from .hub import without_retries
from .keys import with_keys
from .names import EMBEDDED, timm_name
from .position_embeddings import resampling, use_scaled

_MUST_BE = f"`backbone` must be {', '.join(map(repr, EMBEDDED))}"


class TimmViT(Backbone):
    """A frozen timm ViT in evaluation mode, at any image size that is a multiple of its patch."""

    def __init__(
        self,
        name: str,
        *,
        features: str = "tokens",
        weights: str | os.PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        positions: str = "authors",
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads the model.

        Args:
            name: the name in timm.
            features: see :func:`selfment.backbones.load_backbone`.
            weights: see :func:`selfment.backbones.load_backbone`.
            dtype: the autocast dtype; None computes in float32.
            positions: see :func:`selfment.backbones.load_backbone`.
            device: the device that computes the features.
        """
        _check_name(name)
        self.name = name
        self.device = torch.device(device)
        self.dtype = dtype
        model = _download(name) if weights is None else _from_file(name, os.fspath(weights))
        _check_kind(name, model)
        if resampling(name, positions) == "scaled":
            use_scaled(model)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.mean, self.std = (self.model.pretrained_cfg[stat] for stat in ("mean", "std"))
        self.patch_size = self.model.patch_embed.patch_size[0]
        self.dim = self.model.embed_dim
        attention = _last_attention(self.model)
        self.attends = self.model.cls_token is not None and _is_plain(attention)
        if self.attends:
            attention.fused_attn = True  # whatever TIMM_FUSED_ATTN is set to: see _LastAttention
        self._by_head = features == "keys"
        self._featuring = self._attending = self.model
        if self._by_head:
            weight, bias = _key_projection(name, attention)
            self.dim = weight.shape[0]
            self._featuring = with_keys(name, self.model, weight, bias)
            self._attending = with_keys(name, self.model, weight, bias, attends=True)

    def parts(self) -> list[nn.Module]:
        """See :meth:`Backbone.parts`."""
        return [self._featuring]

    def __call__(self, batch: Tensor) -> Tensor:
        """Returns (B, N, d) float32 of a (B, 3, H, W) batch, without prefix and register tokens."""
        tokens = self._tokens(self._featuring, batch)
        return tokens[:, self.model.num_prefix_tokens :].float()

    def attend(self, batch: Tensor) -> Attended:
        """See :meth:`Backbone.attend`; the attention is a float32 softmax of queries and keys."""
        if not self.attends:
            return super().attend(batch)
        with _LastAttention() as last:
            tokens = self._tokens(self._attending, batch)
        first = self.model.num_prefix_tokens
        features, cls = tokens[:, first:].float(), tokens[:, 0].float()
        with as_documented(self.device):
            attention = last.of_cls()[..., first:]
        return Attended(features, cls, attention, self._by_head)

    @torch.no_grad()
    def _tokens(self, model: Any, batch: Tensor) -> Tensor:
        """Returns all tokens (B, prefix + N, d), the CLS token first if there is one.

        ``model``: the ViT, or a view of it that returns keys.
        """
        self.grid(*batch.shape[-2:])
        pixels = batch.to(self.device)
        with as_documented(self.device), autocast(self.device, self.dtype):
            # Models that pool before their norm have it in `fc_norm`, others an identity.
            tokens: Tensor = model.fc_norm(model.forward_features(pixels))
        return tokens


class _LastAttention(TorchFunctionMode):
    """Stores the queries and keys of the last fused attention that runs under this mode.

    They are already normalised and rotated. The tokens are the same as without this mode, whereas a
    module that returns its attention weights would use other kernels.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            self._queries, self._keys = args[:2]
        return func(*args, **(kwargs or {}))

    def of_cls(self) -> Tensor:
        """Returns the attention of the first token, (B, heads, tokens) float32."""
        query, keys = self._queries[:, :, :1].float(), self._keys.float()
        scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return torch.softmax(scores[:, :, 0], dim=-1)


def _check_name(name: str) -> None:
    """Raises ``ValueError`` unless ``name`` is a plain ViT of timm, with an existing tag if any."""
    known_as = timm_name(name)
    if known_as is not None:
        raise ValueError(
            f"{_MUST_BE} or the name of a timm ViT: got {name!r}, which timm calls {known_as}"
        )
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"{_MUST_BE} or the name of a timm ViT: got {name!r}{hint}")
    architecture, _, tag = name.partition(".")
    if not timm.models.is_model_in_modules(architecture, fitting.MODULES):
        raise ValueError(f"{_MUST_BE} or a plain ViT of timm: got {name!r}")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        tags = f"timm knows {', '.join(tagged)}" if tagged else "timm knows no tag of this model"
        raise ValueError(f"`backbone` must have a tag that exists: got {name!r}; {tags}")


def _check_kind(name: str, model: Any) -> None:
    if not isinstance(model, VisionTransformer | Eva):
        raise ValueError(f"{_MUST_BE} or a plain ViT of timm: got {name!r}")


def _download(name: str) -> Any:
    """Creates the timm model ``name`` with its own weights, downloaded or cached."""
    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise WeightsError(
            f"timm has no weights of {name}: pass a checkpoint with --weights FILE, or use "
            "--backbone classic, which needs none"
        )
    try:
        with without_retries():
            if config.hf_hub_id:  # files first: building a model of 7 billion parameters is slow
                file = config.hf_hub_filename
                files = [file] if file else ["model.safetensors", "pytorch_model.bin"]
                _fetch(config.hf_hub_id, files)
            return fitting.create(name, pretrained=True)
    except Exception as error:  # every release of the hub library raises different errors
        raise WeightsError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}): get online or "
            "fill the Hugging Face cache (HF_HOME), pass a checkpoint with --weights FILE, or use "
            "--backbone classic, which needs none"
        ) from error


def _fetch(repository: str, names: list[str]) -> None:
    """Downloads the first of the files that exists to the cache of the Hugging Face hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    identity, _, revision = repository.partition("@")
    try:
        hf_hub_download(identity, names[0], revision=revision or None)
    except EntryNotFoundError:  # also if it is not in the cache and there is no network
        if len(names) == 1:
            raise
        _fetch(repository, names[1:])


def _from_file(name: str, path: str) -> Any:
    state, config = read_vit(path, name), read_config(path)
    try:
        return fitting.load(name, state, config)
    except Exception as error:  # timm's filters can raise anything
        raise WeightsError(
            f"`weights` must be a checkpoint of {name}: {path!r} does not fit ({error})"
        ) from error


def _last_attention(model: Any) -> Any:
    return getattr(model.blocks[-1], "attn", None)


def _is_plain(attention: Any) -> bool:
    """Returns whether the module is one softmax of queries and keys with equally many heads."""
    if not isinstance(attention, Attention | AttentionRope | EvaAttention):
        return False
    return getattr(attention, "num_kv_heads", attention.num_heads) == attention.num_heads


def _key_projection(name: str, attention: Any) -> tuple[Tensor, Tensor | None]:
    """Returns the weight (d, C) and bias (d,) of the keys, before key norm and rotary embedding.

    The heads are concatenated along d.
    """
    separate = getattr(attention, "k_proj", None)
    if isinstance(separate, nn.Linear):
        return separate.weight, separate.bias
    fused = getattr(attention, "qkv", None)
    if not isinstance(fused, nn.Linear):
        raise ValueError(f"`features` must be 'tokens' with {name}, whose last block has no keys")
    # If timm's Eva has its biases outside of the layer, the bias of the keys is zero by design.
    _, weight, _ = fused.weight.chunk(3)
    bias = None if fused.bias is None else fused.bias.chunk(3)[1]
    return weight, bias
