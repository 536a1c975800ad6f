"""A random head for tests, which separates some patches from others without training."""

from __future__ import annotations

import torch

from selfment import PatchHead
from selfment.backbones import load_backbone


def a_head(seed: int = 0) -> PatchHead:
    """Returns a random head for ``classic``; on half-dark noise its margins have deviation 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PatchHead(384).requires_grad_(False)
        image = torch.rand(1, 3, 160, 160)
        image[:, :, :80] /= 3
        rows = load_backbone("classic")(image)
    logits = head(rows)[0]
    margins = logits[..., 1] - logits[..., 0]
    for parameter in head.classifier.parameters():
        parameter *= 2 / margins.std()
    head.classifier.bias[1] -= 2 * margins.mean() / margins.std()
    return head.requires_grad_(True)
