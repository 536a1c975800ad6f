"""Patch features with known properties, shared by the tests of all steps."""

from __future__ import annotations

import torch
from torch import Tensor

Case = tuple[Tensor, tuple[int, int]]  # (N, d) features, grid


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(h * w, d, generator=generator(seed))


def smooth(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    """Features like an image's: a few channels that vary slowly over the grid, mixed into d."""
    rng = generator(seed)
    coarse = torch.randn(1, 8, max(2, h // 5), max(2, w // 5), generator=rng)
    slow = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bicubic").flatten(2)[0].T
    slow = slow + 0.3 * torch.randn(h * w, 8, generator=rng)
    return torch.tanh(slow @ torch.randn(8, d, generator=rng) / 3)


def blocks(h: int, w: int, d: int, count: int, spread: float, seed: int = 0) -> Tensor:
    """Vertical bands of ``count`` kinds of patches; each kind is one direction plus noise."""
    rng = generator(seed)
    centres = torch.linalg.qr(torch.randn(d, count, generator=rng))[0].T
    kind = torch.arange(w) * count // w
    return centres[kind.repeat(h)] + spread * torch.randn(h * w, d, generator=rng)


def object_on_ground(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    rng = generator(seed)
    inside = torch.zeros(h, w, dtype=torch.bool)
    inside[h // 4 : 3 * h // 4, w // 3 : 2 * w // 3] = True
    ground, thing = torch.randn(2, d, generator=rng)
    noise_ = torch.randn(h * w, d, generator=rng)
    return torch.where(inside.flatten()[:, None], thing, ground) + 0.8 * noise_


def isolated(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    """Some patches are zero, and have no edge, not even to themselves."""
    features = smooth(h, w, d, seed)
    features[:: h * w // 7] = 0
    return features


def outliers(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    """A few channels are 10 to 100 times the others, as in DINOv3."""
    features = smooth(h, w, d, seed)
    features[:, ::50] *= 10
    features[:, 3] *= 100
    return features


def duplicated(h: int, w: int, d: int, seed: int = 0) -> Tensor:
    """Many rows are equal, as in a flat sky."""
    features = smooth(h, w, d, seed)
    features[: h * w // 3] = features[0]
    return features


def ring(n: int) -> Tensor:
    """A chain: each row is similar to its neighbours. A small gap, hundreds of iterations."""
    rows = torch.zeros(n, n)
    for offset, weight in ((0, 1.0), (1, 0.5)):
        rows[torch.arange(n), (torch.arange(n) + offset) % n] = weight
    rows[0, 1] = 0.1  # cut open, which makes the eigenvalues simple
    return rows


def copies() -> Tensor:
    """Five equal components: for k = 3, Lanczos at first misses a copy of an eigenvalue."""
    return torch.block_diag(*[noise(1, 13, 8, seed=1)] * 5)


def turned_over(seed: int = 85) -> tuple[Tensor, Tensor]:
    """Features (12, 2) and labels for which IPO first exchanges the classes."""
    rng = generator(seed)
    return torch.randn(12, 2, generator=rng), torch.rand(12, generator=rng) < 0.5


# Cases with a simple Fiedler value: the masks are determined.
CASES: dict[str, Case] = {
    "noise": (noise(16, 16, 24), (16, 16)),
    "smooth": (smooth(20, 20, 48), (20, 20)),
    "smooth, N = 64 k": (smooth(16, 24, 48, seed=1), (16, 24)),
    "rectangle, N = 64 k + 1": (smooth(5, 77, 32, seed=2), (5, 77)),
    "one row of patches": (smooth(1, 90, 32, seed=3), (1, 90)),
    "tiny": (smooth(3, 4, 16, seed=4), (3, 4)),
    "two patches": (torch.tensor([[1.0, 0.0], [0.5, 1.0]]), (1, 2)),
    "three patches": (torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), (1, 3)),
    "d = 1": (noise(7, 11, 1), (7, 11)),
    "object": (object_on_ground(24, 18, 40), (24, 18)),
    "isolated patches": (isolated(14, 15, 32), (14, 15)),
    "two components": (blocks(12, 15, 32, count=2, spread=0.01), (12, 15)),
    "three components": (blocks(12, 16, 32, count=3, spread=0.01), (12, 16)),
    "outlier channels": (outliers(18, 18, 128), (18, 18)),
    "duplicated rows": (duplicated(15, 20, 32), (15, 20)),
    "large": (smooth(40, 37, 96, seed=5), (40, 37)),
    "deep": (smooth(12, 13, 1100, seed=6), (12, 13)),
}

# Cases whose cut is not determined: every vector is an eigenvector, or there is but one patch.
DEGENERATE: dict[str, Case] = {
    "all equal": (torch.ones(120, 16), (10, 12)),
    "all equal, tiny": (torch.ones(12, 16), (3, 4)),
    "all zero": (torch.zeros(90, 16), (9, 10)),
    "all orthogonal": (torch.eye(100), (10, 10)),
    "four equal components": (torch.eye(4).repeat_interleave(30, 0), (10, 12)),
    "one patch": (torch.tensor([[3.0, 4.0]]), (1, 1)),
}
