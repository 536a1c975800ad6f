"""Cues of unsupervised saliency detection: how much the cells of an image differ from its border.

A cell has the mean statistics of one or more patches: Lab colour in hundredths, then the square
roots of mean gradients along ``BINS`` directions and of their magnitude.

Only the last bits of the solutions of linear systems depend on the number of threads. The systems
are solved in float64 and the solutions rounded to multiples of 2^-12, so the threads could matter
only for a value within about 10^-14 of the middle between two multiples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .pixels import BINS, rounded

_CHROMA = 1.5  # weight of a and b beside lightness and gradients
_CONTRAST = 0.1  # distance at which the affinity of neighbouring cells falls to 1 / e
_RANKING = 0.99  # alpha of manifold ranking
_HOPS = 2.3  # radius of a cell's neighbourhood, in cells
_CENTRE = 0.35  # standard deviation of the centre prior, in sides of the image
_AGAIN = 0.15  # weight of the last ranking in the result


def saliency(cells: Tensor) -> Tensor:
    """Returns (h w,) in [0, 1]: the saliency of each cell of the statistics (C, h, w).

    It is the mean of four cues, times the root of a centre prior; the cells above Otsu's threshold
    are the queries of a last ranking:

    - manifold ranking against each side of the border, then by the cells above the mean (Yang et
      al., Saliency detection via graph-based manifold ranking, CVPR 2013);
    - the contrast to the background of the first ranking (after Zhu et al., Saliency optimization
      from robust background detection, CVPR 2014), ranked;
    - the geodesic distance to the border, without its cells that are salient in the first ranking,
      because a subject may touch the border (after Wei et al., Geodesic saliency using background
      priors, ECCV 2012);
    - the Mahalanobis distance to the border's sides (after Zhang et al., Minimum barrier salient
      object detection at 80 FPS, ICCV 2015).
    """
    _, h, w = cells.shape
    rows = of_cells(cells)
    sides = _sides(h, w, cells.device)
    apart = _distances(rows)
    ranking = _Ranking(apart, sides.any(1), h, w)
    place = places(h, w, cells.device)
    centre = torch.exp((place - 0.5).square().sum(1) / (-2 * _CENTRE**2))

    first = stretched((1 - ranking(sides.float())).prod(1))
    background = first <= first.mean()
    contrast = stretched((apart * ((1 - first) * centre)).sum(1))
    queries = torch.stack([contrast * first, (~background).float()], dim=1)
    distance = _geodesic(rows, sides.any(1) & background, h, w)
    maps = [*ranking(queries).T, distance, _unlike_sides(rows, h, w)]
    total = stretched(torch.stack(maps).sum(0) * centre.sqrt())
    again = ranking((total > otsu(total)).float()[:, None])[:, 0]
    return stretched((1 - _AGAIN) * total + _AGAIN * again)


def of_cells(cells: Tensor) -> Tensor:
    """Returns (n, C) rows of the statistics (C, h, w), scaled so that distances are perceptual."""
    return cells.flatten(1).T * cells.new_tensor([1.0] + [_CHROMA] * 2 + [1.0] * (BINS + 1))


class _Ranking:
    """Manifold ranking on the graph that joins near cells, and all cells of the border."""

    def __init__(self, apart: Tensor, border: Tensor, h: int, w: int) -> None:
        y, x = ((at - at[:, None]).square() for at in _axes(h, w, apart.device))
        near = (y[:, None, :, None] + x[:, None] <= _HOPS**2).view(apart.shape)
        joined = (near | (border[:, None] & border)).fill_diagonal_(False)
        affinity = (apart / -_CONTRAST).exp_().mul_(joined)
        system = affinity.double().mul_(-_RANKING)
        system.diagonal().add_(affinity.sum(1) + 1e-6)
        self._factor = torch.linalg.cholesky(system)

    def __call__(self, queries: Tensor) -> Tensor:
        """Returns (n, q) in [0, 1]: how similar each cell is to the cells of each of q queries."""
        return stretched(torch.cholesky_solve(queries.double(), self._factor))


def _distances(rows: Tensor) -> Tensor:
    """Returns (n, n) float32 Euclidean distances of rounded rows; their squares are exact."""
    exact = rounded(rows)
    squares = exact.square().sum(1)
    return (exact @ exact.T).mul_(-2).add_(squares).add_(squares[:, None]).float().sqrt_()


def _geodesic(rows: Tensor, start: Tensor, h: int, w: int) -> Tensor:
    """Returns (n,) in [0, 1]: geodesic distances from the cells ``start``; small steps are free."""
    maps = rows.T.reshape(-1, h, w)
    steps = (_neighbours(functional.pad(maps, (1, 1, 1, 1), value=torch.inf)) - maps).norm(dim=2)
    steps[1, 1] = torch.inf
    small = steps.amin((0, 1)).clamp(max=1e3).mean()
    steps = (steps - small).clamp(min=0)
    steps[1, 1] = 0
    padded = torch.full((h + 2, w + 2), 1e6, dtype=torch.float32, device=rows.device)
    distance, around = padded[1:-1, 1:-1], _neighbours(padded)
    distance.masked_fill_(start.view(h, w), 0)
    for _ in range(h * w):  # no path has more steps
        nearer = (around + steps).amin((0, 1))
        if torch.equal(nearer, distance):
            break
        distance.copy_(nearer)
    return stretched(distance.flatten())


def _neighbours(padded: Tensor) -> Tensor:
    """Returns a view (3, 3, ..., h, w) of maps (..., h + 2, w + 2), shifted by up to a cell."""
    h, w = padded.shape[-2] - 2, padded.shape[-1] - 2
    return padded.unfold(-2, h, 1).unfold(-2, w, 1).movedim((-4, -3), (0, 1))


def _unlike_sides(rows: Tensor, h: int, w: int) -> Tensor:
    """Returns (n,) in [0, 1]: the sum of the Mahalanobis distances to all sides but the farthest.

    A side is two cells thick.
    """
    cells = rows.double().unflatten(0, (h, w))
    distances = []
    for side in (cells[:2], cells[-2:], cells[:, :2], cells[:, -2:]):
        mean = side.mean((0, 1))
        offset = (side - mean).flatten(0, 1)
        spread = (offset[:, :, None] * offset[:, None]).mean(0)
        spread.diagonal().add_(1e-3)
        away = cells.flatten(0, 1) - mean
        distance = (torch.linalg.solve(spread, away.T).T * away).sum(1).clamp(min=0).sqrt()
        distances.append(distance / distance.max().clamp(min=1e-6))
    every = torch.stack(distances)
    return stretched(every.sum(0) - every.amax(0))


def otsu(values: Tensor) -> Tensor:
    """Returns Otsu's threshold: it maximises the between-class variance of the (n,) values."""
    n = len(values)
    if n < 2:
        return values[0]
    ordered = values.double().sort().values
    sums = ordered.cumsum(0)
    below = torch.arange(1, n, device=values.device)
    gain = (sums[:-1] - below * (sums[-1] / n)).square() / (below * (n - below))
    at = gain.argmax()
    return ((ordered[at] + ordered[at + 1]) / 2).to(values.dtype)


def places(h: int, w: int, device: torch.device) -> Tensor:
    """Returns (n, 2) float32 centres of the cells of a grid, in a square of side 1."""
    scale = torch.tensor([h, w], dtype=torch.float32, device=device)
    return (_indices(h, w, device) + 0.5) / scale


def stretched(values: Tensor) -> Tensor:
    """Scales each column to [0, 1] and rounds it; float32."""
    low, high = values.amin(0), values.amax(0)
    return rounded((values - low) / (high - low).clamp(min=1e-9)).float()


def _indices(h: int, w: int, device: torch.device) -> Tensor:
    """Returns (n, 2) float32 rows and columns of the cells of a grid."""
    y, x = torch.meshgrid(_axes(h, w, device), indexing="ij")
    return torch.stack([y, x], dim=-1).flatten(0, 1)


def _axes(h: int, w: int, device: torch.device) -> list[Tensor]:
    """Returns the indices of the rows (h,) and columns (w,) of a grid, float32."""
    return [torch.arange(n, dtype=torch.float32, device=device) for n in (h, w)]


def _sides(h: int, w: int, device: torch.device) -> Tensor:
    """Returns (n, 4) bool: the cells in the first and last row, and the first and last column."""
    y, x = _indices(h, w, device).T
    return torch.stack([y == 0, y == h - 1, x == 0, x == w - 1], dim=1)
