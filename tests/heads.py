"""A head for tests, which tells some patches from others though it has learnt nothing."""

from __future__ import annotations

import torch

from selfment import PatchHead
from selfment.backbones import load_backbone


def a_head(seed: int = 0) -> PatchHead:
    """A random head for ``classic``; its margins on noise have mean 0 and deviation 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PatchHead(384).requires_grad_(False)
        rows = load_backbone("classic")(torch.rand(1, 3, 160, 160))
    logits = head(rows)[0]
    margins = logits[..., 1] - logits[..., 0]
    for parameter in head.classifier.parameters():
        parameter *= 2 / margins.std()
    head.classifier.bias[1] -= 2 * margins.mean() / margins.std()
    return head.requires_grad_(True)
