"""Makes pseudo-labels in two ways: from your own patch features, and from images."""

from __future__ import annotations

import torch

from selfment import PseudoLabeler, pseudo_label
from selfment.images.load import sample_images


def own_features() -> None:
    """Labels features of any backbone: (B, N, d) with the patch grid, or (B, d, h, w)."""
    generator = torch.Generator().manual_seed(0)
    ground, thing = torch.randn(2, 384, generator=generator)
    features = ground + torch.randn(2, 24, 24, 384, generator=generator)
    features[:, 6:18, 8:16] += thing - ground  # the object, 12 x 8 patches
    labels = pseudo_label(features.flatten(1, 2), (24, 24))
    print(f"features: mask {tuple(labels.mask.shape)}, {labels.mask.sum((1, 2)).tolist()} patches")


def images() -> None:
    """Labels paths, PIL images or uint8 arrays; any timm ViT can replace "classic"."""
    labeler = PseudoLabeler("classic", size=768)
    paths = [entry.path for entry in sample_images()]
    labels = labeler(paths)
    for path, mask, eigenvalue in zip(paths, labels.mask, labels.eigenvalue, strict=True):
        print(f"{path.name}: {mask.float().mean():.0%} foreground, Ncut {eigenvalue:.4f}")


if __name__ == "__main__":
    own_features()
    images()
