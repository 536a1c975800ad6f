"""TokenCut and MaskCut by their own arithmetic: dense, in float64, with LAPACK's vector."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
from torch import Tensor

from helpers.method_cases import DETERMINED
from selfment import reference

PATCH = (8, 16)


def first_peak(values: np.ndarray) -> int:
    return int((values >= values.max() - 1e-7 * abs(values.max())).argmax())


class Dense:
    """The generalised problem of (N, d) rows; x has LAPACK's sign."""

    def __init__(self, rows: Tensor, tau: float, eps: float = 1e-5, weighted: bool = False) -> None:
        f = rows.double()
        f = (f / f.norm(dim=1, keepdim=True).clamp(min=1e-12)).float().double().numpy()
        s = f @ f.T
        if weighted:
            self.A = np.where((s >= tau) & (s > 0), s, eps)
        else:
            self.A = np.where(s > tau, 1.0, eps)
        self.D = np.diag(self.A.sum(1))
        last = min(2, len(rows) - 1)
        values, vectors = scipy.linalg.eigh(self.D - self.A, self.D, subset_by_index=[1, last])
        self.x = vectors[:, 0]
        self.gap = values[1] - values[0] if len(values) > 1 else np.inf
        self.tolerance = 1e-6 if not weighted else max(1e-6, 1e-8 / self.gap)
        tie = abs(self.x - self.x.mean()).min() / np.ptp(self.x)
        self.determined = self.gap > DETERMINED and tie > 1e-9

    def same(self, x: np.ndarray) -> bool:
        """Returns whether x equals this vector, including its sign."""
        error = abs(x.ravel() - self.x).max()
        return x.dtype == np.float64 and bool(error < self.tolerance * np.ptp(self.x))

    def oriented(self) -> tuple[np.ndarray, int, np.ndarray]:
        side = self.x > self.x.mean()
        seed = first_peak(abs(self.x))
        return (side, seed, self.x) if side[seed] else (~side, seed, -self.x)


def component(side: np.ndarray, seed: int) -> np.ndarray:
    return reference._component(torch.from_numpy(side), seed).numpy().astype(float)


def box_of(mask: np.ndarray, height: int, width: int) -> list[int]:
    rows, columns = np.nonzero(mask)
    y1, y2, x1, x2 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    p, q = PATCH
    return [q * x1, p * y1, min(q * x2, width), min(p * y2, height)]


def nearest(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsamples (h, w) to (H, W), which need not be multiples."""
    h, w = grid.shape
    return grid[np.ix_(np.arange(size[0]) * h // size[0], np.arange(size[1]) * w // size[1])]


def tokens(rows: Tensor) -> Tensor:
    return torch.cat([torch.full_like(rows[:1], 5), rows])[None]


def painted(
    rows: Tensor, grid: tuple[int, int], tau: float, size: tuple[int, int], turns: int
) -> Any:
    """Runs MaskCut densely; returns its results and problems, up to an undetermined cut."""
    h, w = grid
    rows = rows.clone()
    current = np.zeros(grid)
    masks: list[np.ndarray] = []
    problems: list[Dense] = []
    seed = -1
    for i in range(turns):
        rows[torch.from_numpy(current.ravel() > 0)] = 0
        dense = Dense(rows, tau)
        if not dense.determined:
            break
        x = dense.x
        side = x > x.mean()
        image = side.reshape(grid)
        corners = image[0, 0] + 0 + image[0, -1] + image[-1, 0] + image[-1, -1]
        if corners >= 3 or not side[first_peak(abs(x))]:
            side, seed = ~side, first_peak(-x)
        else:
            seed = first_peak(x)
        mask = component(side.reshape(grid), seed)
        if i > 0:
            iou = ((current > 0) & (mask > 0)).sum() / ((current > 0) | (mask > 0)).sum()
            if iou > 0.5 or mask.sum() / (h * w) <= 0.01:
                mask = np.zeros(grid)
        current = mask
        masks.append(np.clip(nearest(mask, size) - sum(masks), 0, None))
        problems.append(dense)
    return seed, masks, problems
