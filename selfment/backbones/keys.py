"""A ViT that ends in the keys of its last attention."""

from __future__ import annotations

import copy
from typing import Any

from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional


def with_keys(
    name: str, model: Any, weight: Tensor, bias: Tensor | None, *, attends: bool = False
) -> Any:
    """A view of ``model`` whose ``forward_features`` gives keys, (B, tokens, d).

    It shares all weights, and the model stays as it is. Nothing of a call is kept, so that threads
    may share it.

    Args:
        name: of the model, for errors.
        model: a ViT of timm.
        weight: (d, C), of the projection to keys.
        bias: (d,), or None.
        attends: whether the last attention is computed, too, for those who look on; its result is
            not used.

    Raises:
        ValueError: the last block is none whose attention's input is known.
    """
    block = model.blocks[-1]
    if isinstance(block, Block | EvaBlock):
        norm = block.norm1
    elif isinstance(block, ResPostBlock | EvaBlockPostNorm):
        norm = nn.Identity()  # it normalises what the attention gives
    else:
        raise ValueError(f"`features` must be 'tokens' with {name}, whose last block has no keys")
    blocks = _view(model.blocks)
    blocks[-1] = _Keys(norm, weight, bias, block.attn if attends else None)
    found = _view(model)
    found.blocks, found.norm, found.fc_norm = blocks, nn.Identity(), nn.Identity()
    return found


def _view(module: Any) -> Any:
    """A module with the same parts, of which others can take the place."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


class _Keys(nn.Module):
    """The keys (B, tokens, d) of the last block's input (B, tokens, C)."""

    def __init__(
        self, norm: nn.Module, weight: Tensor, bias: Tensor | None, attention: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        # No parameters of the module, as they are parts of another's.
        self._projection = weight, bias

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        rows = self.norm(x)
        if self.attention is not None:
            self.attention(rows, **options)
        return functional.linear(rows, *self._projection)
