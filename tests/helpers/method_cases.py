"""Labels by a method on cases and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from PIL import Image
from sklearn.cluster import KMeans
from torch import Tensor

from helpers.cases import generator, noise, smooth
from selfment import PseudoLabels
from selfment.backbones import load_backbone
from selfment.methods import (
    as_method,
)

DETERMINED = 1e-6  # the least gap between eigenvalues at which a vector is one and the same


POSITIVE = smooth(14, 11, 24, seed=3).abs() + 0.5  # all cosines > 0


WITH_ZEROS = torch.cat([POSITIVE[:150], torch.zeros(4, 24)])  # the least cosine is 0


MORE = {
    "positive": (POSITIVE, (14, 11)),
    "positive, zero rows": (WITH_ZEROS, (14, 11)),
    "few patches": (noise(4, 2, 5), (4, 2)),
}


def rows_of(f: Tensor) -> np.ndarray:
    f = f.double().numpy()
    return f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)


def label(f: Tensor, grid, method="selfment") -> PseudoLabels:
    return as_method(method).label(f[None], grid)


def photo_features(paths: list[Path], size: int = 320) -> list[Tensor]:
    backbone = load_backbone("classic")
    pictures = (Image.open(path).convert("RGB") for path in paths)
    return [backbone(backbone.preprocess(picture, size)[None])[0] for picture in pictures]


def spans(mask: np.ndarray) -> bool:
    ys, xs = np.nonzero(mask)
    h, w = mask.shape
    return (ys.min() == 0 and ys.max() + 1 == h) or (xs.min() == 0 and xs.max() + 1 == w)


def vote(candidates: list[np.ndarray]) -> np.ndarray:
    kept = [mask for mask in candidates if mask.any() and not spans(mask)]
    kept = kept or [mask for mask in candidates if mask.any()]
    scores = [sum((a & b).sum() / (a | b).sum() for b in kept) for a in kept]
    return kept[next(i for i, score in enumerate(scores) if score > max(scores) - 1e-9)]


def scaled(f: Tensor) -> np.ndarray:
    products = rows_of(f) @ rows_of(f).T
    return (products - products.min()) / (products.max() - products.min())


def clusters(f: Tensor, grid) -> list[np.ndarray] | None:
    A = scaled(f)
    degree = A.sum(1)
    degree[degree < 1e-12] = 1
    values, vectors = scipy.linalg.eigh(np.diag(degree) - A, np.diag(degree))
    if np.diff(values[1:5]).min(initial=1) < DETERMINED:
        return None
    candidates = []
    for k in (2, 3, 4):
        if k <= len(f):
            assigned = KMeans(k, n_init=10, random_state=0).fit_predict(vectors[:, :k])
            candidates += [(assigned == cluster).reshape(grid) for cluster in range(k)]
    return candidates


def heads_of(n: int, count: int = 3, seed: int = 0) -> Tensor:
    """What is left of it for the patches differs from head to head."""
    shares = torch.linspace(0.2, 0.9, count)[:, None]
    return shares * (2 * torch.randn(count, n, generator=generator(seed))).softmax(dim=1)


def found_of(f: Tensor, attention: Tensor, by_head: bool) -> np.ndarray:
    f, a = f.double().numpy(), attention.double().numpy()
    heads, n = a.shape
    weights = [1.0] * heads
    if by_head:
        threshold = sum(a[h, i] for h in range(heads) for i in range(n)) / (heads * n)
        share = [sum(a[h, i] > threshold for i in range(n)) / n for h in range(heads)]
        weights = [np.log(sum(q + 1e-10 for q in share) / (share[h] + 1e-10)) for h in range(heads)]
    least = min(range(n), key=lambda i: sum(weights[h] * a[h, i] for h in range(heads)))
    wide = f.shape[1] // heads if by_head else f.shape[1]
    parts = [weights[h] * f[:, h * wide : (h + 1) * wide] for h in range(f.shape[1] // wide)]
    rows = np.concatenate(parts, axis=1)
    cosine = [
        row @ rows[least] / max(np.linalg.norm(row) * np.linalg.norm(rows[least]), 1e-12)
        for row in rows
    ]
    return ~(np.array(cosine) > 0.3)
