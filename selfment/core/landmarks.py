"""A cut through more patches than a graph can have: of some of them, the landmarks, extended.

1. m landmarks: one random patch out of each of m equal runs of the patches, which are ordered by
   frame and by tile of 8 x 8 patches.
2. Their graph, exactly, and its 4 smallest nontrivial eigenvectors.
3. One pass over all N patches: a patch has the mean of its landmark neighbours in each vector. The
   same edges are the rows of the full graph at the landmarks; times the means and 1 they give what
   the next step needs. Edges follow the rule of the graph, to the bit, and are not kept.
4. Rayleigh-Ritz on these rows, in the span of 1 and the extended vectors: the combination that is
   closest to the full graph's Fiedler vector.
5. Another pass joins 1,000 random patches with all others, which says how good the vector is.
6. Mean, side, components and IPO over all patches, as for the exact cut.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import block_ops as _blocks
from . import ops as _ops
from . import options as params
from .arrays import Grid
from .blocks import Blocks
from .graph import Graph, check_finite, thresholds
from .ipo import run_ipo
from .ncut import eigenpairs, outside
from .options import CutOptions, IpoOptions
from .threshold import SAMPLE
from .torch_state import as_documented

VECTORS = 4
CHECKED = 1000
FEW = 10  # landmarks of a group: fewer hardly determine it
CLOSE = 0.1  # side_margin: below this the other side was nearly chosen
_TILE = 8
_REPEATED = 1e-9  # a gap up to this is the rounding of equal eigenvalues
_INDEPENDENT = 1e-10  # what is smaller is the rounding of vectors whose peaks were 1
_LARGEST = 1.01  # theta that an eigenvalue may have, estimated from some of the rows


def stratified(grids: Sequence[Grid], m: int, generator: torch.Generator) -> Tensor:
    """Returns m < N ascending patches, one of each of m equal runs of the patches in tiles."""
    order, first = [], 0
    for h, w in grids:
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        tile = y // _TILE * math.ceil(w / _TILE) + x // _TILE
        place = tile * _TILE**2 + y % _TILE * _TILE + x % _TILE
        order.append(first + place.flatten().argsort())
        first += h * w
    start = torch.arange(m + 1) * first // m
    draw = torch.rand(m, generator=generator, dtype=torch.float64)
    return torch.cat(order)[start[:-1] + (draw * start.diff()).long()].sort().values


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenvectors of the full graph in the span of 1 and k extended vectors."""

    #: float64, theta = 1 - lambda of the nontrivial vectors, descending, then 0 for each vector
    #: that vanished
    values: Tensor
    coefficients: Tensor  #: (k + 1, r) float64, r <= k; on the landmarks' rows x^T D x = 1
    turn: float  #: degrees from the first extended vector to the first approximate eigenvector


def rayleigh_ritz(means: Tensor, product: Tensor, degree: Tensor) -> Ritz:
    """Solves for vectors v, A v (k, m) and d (m,) of the full graph, known at m of its rows.

    Entries of v are at most 1. Sums are rounded once, so they do not depend on threads. The vectors
    are made orthogonal to 1 and normalised first. With few landmarks a combination that is nearly
    constant at them may have a value above 1, which no eigenvalue has: the least independent
    direction is then left out.
    """
    total = _inner(degree, torch.ones_like(degree))
    average = [_inner(v, degree) / total for v in means]
    rows = [torch.ones_like(degree), *(v - mean for v, mean in zip(means, average, strict=True))]
    products = [degree]
    products += [av - mean * degree for av, mean in zip(product, average, strict=True)]
    norms = [math.sqrt(_inner(row, degree * row)) for row in rows]
    scales = [1 / norm if norm > _INDEPENDENT * norms[0] else 0.0 for norm in norms]
    scale = torch.tensor(scales, dtype=torch.float64)
    mass = scale[:, None] * _gram(rows, [degree * row for row in rows]) * scale
    stiff = scale[:, None] * _gram(rows, products) * scale
    weights, axes = torch.linalg.eigh(mass[1:, 1:])
    ranks = range(int((weights > _INDEPENDENT).sum()), 0, -1)
    values, unit = weights[:0], mass[:, :0]
    for rank in ranks:
        half = torch.block_diag(mass.new_ones(1, 1), axes[:, -rank:] / weights[-rank:].sqrt())
        values, unit = _nontrivial(half, stiff)
        if values[0] <= _LARGEST:
            break
    coefficients = scale[:, None] * unit
    coefficients[0] -= torch.tensor(average, dtype=torch.float64) @ coefficients[1:]
    turn = _turn(mass[1:, 1:], unit[1:, 0]) if ranks else 0.0
    vanished = values.new_zeros(scales.count(0.0))  # A v is 0 too
    return Ritz(torch.cat([values.clamp(-1, 1), vanished]), coefficients, turn)


def _nontrivial(half: Tensor, stiff: Tensor) -> tuple[Tensor, Tensor]:
    """Returns Ritz values, descending, and vectors in an orthonormal basis, whose first is 1."""
    theta, inside = torch.linalg.eigh(half.T @ (stiff + stiff.T) @ half / 2)
    trivial = int(inside[0].abs().argmax())
    others = [index for index in range(len(theta) - 1, -1, -1) if index != trivial]
    return theta[others], half @ inside[:, others]


def _turn(mass: Tensor, vector: Tensor) -> float:
    """Returns the degrees between the first of the unit vectors, and ``vector`` in their span."""
    along = mass @ vector
    cosine = along[0].abs() / (vector @ along).sqrt().clamp(min=1e-300)
    return math.degrees(math.acos(min(1.0, cosine.item())))


def _inner(a: Tensor, b: Tensor) -> float:
    return math.fsum((a * b).tolist())


def _gram(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.tensor([[_inner(u, v) for v in b] for u in a], dtype=torch.float64)


def combine(means: Tensor, coefficients: Tensor) -> Tensor:
    """Returns the vector (N,), positive at its peak; ``means`` (k, N) are overwritten."""
    first, *others = coefficients.tolist()
    x = means[0].mul_(others[0])
    for v, coefficient in zip(means[1:], others[1:], strict=True):
        x += v.mul_(coefficient)
    x += first
    size = x.abs()
    peak = size >= size.max() * (1 - params.SEED_TIE)
    return x.neg_() if x[peak.int().argmax()] < 0 else x


@dataclass(frozen=True)
class Check:
    """How far the vector is from an eigenvector, estimated from some exact rows of the graph."""

    residual: float  #: |M y - theta y| of the unit vector y = D^1/2 x
    changing: float  #: the share of the rows whose side one product with M would change


def check(x: Tensor, product: Tensor, degree: Tensor, mean: float) -> Check:
    """Checks the entries ``x``, with the exact A x and degrees of their rows, all (s,)."""
    square = _inner(x, degree * x)
    if square == 0:
        return Check(0.0, 0.0)
    theta = _inner(x, product) / square
    rest = product - theta * degree * x
    residual = math.sqrt(_inner(rest, rest / degree) / square)
    changed = (product > theta * mean * degree) != (x > mean)
    return Check(residual, float(changed.double().mean()))


class LandmarkCut:
    """The vector of one cut by landmarks, and the estimates about it."""

    def __init__(
        self, blocks: Blocks, grids: Sequence[Grid], m: int, seed: int, cut: CutOptions
    ) -> None:
        """Makes the cut; raises ``ValueError`` for features that are not finite."""
        self._blocks, self._grids, n = blocks, grids, blocks.n
        with as_documented():
            generator, some = torch.Generator().manual_seed(seed), min(n, SAMPLE)
            self.landmarks = stratified(grids, m, generator)
            sample = torch.randperm(n, generator=generator)[:CHECKED].sort().values
            spread = torch.arange(some) * n // some
            index = torch.cat([self.landmarks, sample, spread]).unique()
        rows = blocks.select(index)
        chosen, checked, spread = (
            rows[torch.searchsorted(index, wanted)] for wanted in (self.landmarks, sample, spread)
        )
        self.taus = thresholds(spread[None], cut.tau)
        self._cut = replace(cut, tau=self.taus.item())
        self._extend(chosen)
        self._check(checked, sample)

    def _extend(self, chosen: Tensor) -> None:
        n, m, cut = self._blocks.n, len(chosen), self._cut
        bits, degree, _, bad = _ops.affinity(chosen[None], self.taus, cut.eps, False)
        bad = bad if bad >= 0 else _first_nan(degree[0])
        self._check_finite(int(self.landmarks[bad]) if bad >= 0 else -1)
        graph = Graph(cut.eps, m, bits, None, degree, self.taus)
        pairs = eigenpairs(graph, min(VECTORS, m - 1))
        self.products = pairs.iterations
        x = pairs.vectors[0] / pairs.vectors[0].abs().amax(dim=1, keepdim=True)
        means = x.new_empty((len(x), n))
        gathered = self._gather(chosen, x, means)
        self._check_finite(_first_nan(means[0]))
        product, degree = self._rows(gathered)
        with as_documented():
            ritz = rayleigh_ritz(means[:, self.landmarks].cpu(), product, degree)
        self.cut_through = ritz.coefficients.shape[1] > 0
        if self.cut_through:
            self.fiedler = combine(means, ritz.coefficients[:, 0] * math.sqrt(m / n))
            theta = ritz.values.tolist()
        else:  # every patch has the same mean
            self.fiedler, theta = means[0].zero_(), [0.0, 0.0]
        self.eigenvalue = 1 - theta[0]
        self.gap = theta[0] - theta[1] if len(theta) > 1 else 0.0
        self.turn = ritz.turn

    def _check(self, rows: Tensor, sample: Tensor) -> None:
        gathered = self._gather(rows, None, self.fiedler[None])
        product, degree = self._rows(gathered)
        self.mean = gathered.totals.item() / self._blocks.n
        found = check(self.fiedler[sample].cpu(), product[0], degree, self.mean)
        self.residual, self.changing = found.residual, found.changing
        is_open = self.gap <= _REPEATED or self.residual >= self.gap
        self.angle = 90.0 if is_open else math.degrees(math.asin(self.residual / self.gap))

    def _gather(self, rows: Tensor, x: Tensor | None, means: Tensor) -> _blocks.LandmarkSums:
        """Joins the rows with those of all blocks."""
        gathered, first = _blocks.LandmarkSums.zeros(len(means), len(rows), rows.device), 0
        for block in self._blocks:
            part = means[:, first : first + len(block)]
            bad = _blocks.landmarks(block, rows, self._cut, x, part, gathered)
            self._check_finite(first + bad if bad >= 0 else -1)
            first += len(block)
        return gathered

    def _rows(self, gathered: _blocks.LandmarkSums) -> tuple[Tensor, Tensor]:
        """Returns A v (c, m), for the gathered vectors, and the degrees (m,), both on the CPU."""
        eps, edges = self._cut.eps, gathered.edges.cpu().double()
        product = (1 - eps) * gathered.sums + eps * gathered.totals[:, None]
        return product.cpu(), eps * (self._blocks.n - edges) + edges

    def _check_finite(self, bad: int) -> None:
        check_finite(bad, self._blocks.n, 0, [h * w for h, w in self._grids])


def _first_nan(x: Tensor) -> int:
    """Returns the first NaN, with which a CUDA device marks a row that is not finite, or -1."""
    bad = x.isnan()
    return int(bad.int().argmax()) if bad.any() else -1


def label_blocks(
    blocks: Blocks,
    grids: Sequence[Grid],
    m: int,
    seed: int,
    cut: CutOptions,
    ipo: IpoOptions,
    min_confidence: float,
) -> dict[str, Tensor]:
    """Returns the fields of :class:`selfment.core.joint.LandmarkLabels`; maps are (N,).

    Args:
        blocks: N rows of features, of all frames one after another.
        grids: (h, w) of each frame.
        m: landmarks, 2 <= m < N.
        seed: the seed of the random numbers.
        cut: the options of the cut, of a binary graph.
        ipo: the options of IPO.
        min_confidence: the least confidence of a label that is kept.
    """
    found = LandmarkCut(blocks, grids, m, seed, cut)
    x = found.fiedler[None]
    mask, start, peaks = _ops.components(x, grids, cut.corners)
    vector = found.fiedler.cpu()
    margin = side_margin(vector, vector > found.mean, grids, cut.corners)
    label, steps, separation = run_ipo(blocks, mask, ipo)

    def one(value: float) -> Tensor:
        return x.new_tensor([value])

    values, gaps = one(found.eigenvalue), one(found.gap)
    sure, rejected, kept, vectors = _ops.finish(
        values[None], gaps[None], x[None], separation, label, grids, min_confidence
    )
    few = fewest(found.landmarks, mask[0].cpu(), vector > found.mean, int(start))
    for doubt in _doubts(found, few, margin):
        warnings.warn(doubt, RuntimeWarning, stacklevel=outside())
    fields = {
        "mask": kept,
        "ncut_mask": mask,
        "fiedler": vectors,
        "eigenvalue": values,
        "gap": gaps,
        "residual": one(found.residual),
        "seed": start,
        "lanczos_iters": found.products,
        "ipo_iters": steps,
        "separation": separation,
        "confidence": sure,
        "rejected": rejected,
        "tau": found.taus,
        "peaks": peaks,
        "landmarks": found.landmarks[None].to(x.device),
        "angle": one(found.angle),
        "turn": one(found.turn),
        "changing": one(found.changing),
        "side_margin": one(margin),
    }
    return {name: value[0] for name, value in fields.items()}


def side_margin(x: Tensor, upper: Tensor, grids: Sequence[Grid], corners: bool) -> float:
    """Returns how far the rule for the side is from choosing the other one, in [0, 1].

    ``x``: (N,); ``upper``: (N,) bool, the patches above its mean.

    By the seed: 1 minus the largest |x| of the other side, as a share of the seed's. By the
    corners: the distance to three quarters of them; where less than that and more than a quarter
    lie on the seed's side, the seed decides too, and the smaller of the two distances counts.
    """
    size = x.abs()
    peaks = [size[side].max().item() if side.any() else 0.0 for side in (upper, ~upper)]
    by_seed = 1 - min(peaks) / max(max(peaks), 1e-300)
    if not corners:
        return by_seed
    share = _corner_share(upper if peaks[0] >= peaks[1] else ~upper, grids)
    by_corners = abs(share - 0.75)
    return min(by_corners, by_seed) if 0.25 < share < 0.75 else by_corners


def fewest(landmarks: Tensor, mask: Tensor, upper: Tensor, seed: int) -> int:
    """Returns the landmarks in the initial mask, or on the other side if there are fewer.

    ``mask``, ``upper``: (N,) bool, the initial mask and the patches above the mean; ``seed``: the
    patch from which the mask grew.
    """
    others = upper[landmarks] != upper[seed]
    return min(int(mask[landmarks].sum()), int(others.sum()))


def _corner_share(side: Tensor, grids: Sequence[Grid]) -> float:
    frames = zip(side.split([h * w for h, w in grids]), grids, strict=True)
    inside = [part.reshape(grid)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() for part, grid in frames]
    return sum(map(int, inside)) / (4 * len(grids))


def _doubts(found: LandmarkCut, few: int, margin: float) -> Iterator[str]:
    """Yields sentences on what the landmarks may not determine."""
    m = len(found.landmarks)
    if not found.cut_through:
        yield "all patches have the same landmark neighbours, and are not cut"
        return
    if found.angle >= 90:
        yield (
            f"{m} landmarks do not determine the eigenvector: the estimated residual is "
            f"{found.residual:.2g} and the gap {found.gap:.2g}"
        )
    if few < FEW:
        yield f"the cut separates a group with only {few} of the {m} landmarks"
    if margin < CLOSE:
        yield (
            "the other side of the cut was nearly chosen as the foreground: side_margin is "
            f"{margin:.2g}"
        )
