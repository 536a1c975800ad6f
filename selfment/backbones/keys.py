"""A view of a ViT that returns the keys of its last attention."""

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
    """Returns a view of ``model`` whose ``forward_features`` returns keys, (B, tokens, d).

    The view shares all weights, and the model is not changed. A call stores nothing, so that
    threads may share the view.

    Args:
        name: the model's name, for errors.
        model: a ViT of timm.
        weight: (d, C), the weight of the projection to keys.
        bias: (d,), its bias, or None.
        attends: compute the last attention, too, so that a torch function mode can observe it; its
            result is not used.

    Raises:
        ValueError: the last block is of a class whose attention input is not known.
    """
    block = model.blocks[-1]
    if isinstance(block, Block | EvaBlock):
        norm = block.norm1
    elif isinstance(block, ResPostBlock | EvaBlockPostNorm):
        norm = nn.Identity()  # such a block normalises the result of the attention
    else:
        raise ValueError(f"`features` must be 'tokens' with {name}, whose last block has no keys")
    blocks = _view(model.blocks)
    blocks[-1] = _Keys(norm, weight, bias, block.attn if attends else None)
    view = _view(model)
    view.blocks, view.norm, view.fc_norm = blocks, nn.Identity(), nn.Identity()
    return view


def _view(module: Any) -> Any:
    """Returns a copy of a module with the same submodules, which can be replaced in the copy."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view


class _Keys(nn.Module):
    """Maps the input (B, tokens, C) of the last block to keys (B, tokens, d)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, norm: nn.Module, weight: Tensor, bias: Tensor | None, attention: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        # They belong to another module, which saves them.
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        rows = self.norm(x)
        if self.attention is not None:
            self.attention(rows, **options)
        return functional.linear(rows, self.weight, self.bias)
