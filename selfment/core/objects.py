"""Several objects of an image: rounds of the cut, each on the graph without earlier objects.

A round cuts the graph and refines, by IPO, the 4-connected component of the foreground whose patch
is deepest in it. IPO also labels what is similar elsewhere: the component of its outcome that
shares most patches with the first one is the object. Its features then count as zeros, which
changes only their entries of the graph, and the next round begins. Patches of objects stay in the
graph, but belong to neither side of later cuts and are left out of later IPO.

MaskCut has a fixed number of rounds. Its patches of earlier objects may be foreground again and
join others to a component, and it empties a mask whose intersection over union with the previous
one is > 0.5: an object that touches a larger one is lost. That is
:func:`selfment.compat.maskcut.maskcut_forward`.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import ops as _ops
from . import options as params
from .arrays import ArrayType, Grid, as_features
from .graph import build
from .ipo import run_ipo
from .ncut import eigenpairs, initial_mask
from .options import NO_IPO, CutOptions, IpoOptions
from .summary import Summarized

Patches = NDArray[np.bool_]

# First rounds on photographs, and rounds that found planted objects, came to 0.46 at most, rounds
# on noise to 0.75 and more.
MAX_CUT = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Objects(Summarized):
    """The K objects of an image of h x w patches, in the order of their rounds; K may be 0.

    All fields are of the caller's type of array. No patch belongs to two objects.
    """

    masks: Any  #: (K, h, w) bool
    instances: Any  #: (h, w) int64, k + 1 where object k is, else 0
    boxes: Any  #: (K, 4) int64, x1, y1, x2, y2 in patches; x2 and y2 are exclusive
    seeds: Any  #: (K,) int64, flat index of the object's patch that is deepest on its side
    eigenvalues: Any  #: (K,) float64, lambda of the object's round: its Ncut value, relaxed
    separations: Any  #: (K,) float64, |mu_f - mu_b| of the normalised features in and outside of it


def multi_label(
    features: Any,
    grid: Grid | None = None,
    *,
    max_objects: int = 3,
    max_cut: float = MAX_CUT,
    min_area: float = 0.01,
    split: bool = False,
    tau: float | str = params.TAU,
    eps: float = params.EPS,
    graph: str = "binary",
    orient: str = "corners",
    ipo_iters: int = params.IPO_ITERS,
    ipo_min_count: int = params.IPO_MIN_COUNT,
) -> Objects | list[Objects]:
    """Labels several objects, one after another (MaskCut, with an early stop).

    See the module for a round. The rounds end with ``max_objects`` objects, or with a round

    - whose eigenvalue is above ``max_cut``, or
    - that has no object of more than ``min_area`` of the grid, or
    - that would leave no background.

    Args:
        features: patch features, (N, d) or (B, N, d) with ``grid``, or (B, d, h, w), as for
            :func:`selfment.pseudo_label`.
        grid: (h, w) with h * w == N, the patches in row-major order.
        max_objects: objects at most.
        max_cut: the largest eigenvalue, which is the Ncut value, relaxed, of a round.
        min_area: the share of the grid that an object must exceed.
        split: True refines the whole foreground of a round, not only one component, and makes each
            4-connected component of the outcome that is large enough an object of its own, the
            largest first: several similar things are then several objects.
        tau: the threshold on the similarity of two patches, or "auto", see
            :func:`selfment.affinity`.
        eps: the affinity of two patches without an edge, in [1e-30, 1).
        graph: "binary" or "weighted", see :func:`selfment.affinity`.
        orient: "corners" (MaskCut) or "seed", see :func:`selfment.pseudo_label`.
        ipo_iters: IPO steps at most; 0 leaves the components as they are.
        ipo_min_count: IPO stops while a side has fewer patches than this.

    Returns:
        The objects of the image, or a list of them for a batch, in the caller's type of array. The
        same features have the same objects, alone or in a batch. A single patch is no object.

    A round depends on the objects before it: on a CUDA device each round waits for the device, and
    none can be captured in a CUDA graph. Features that are not finite are no error there: their
    image has no objects.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, grid, device or parameter, or, on the CPU, features that are not
            finite.
        ImportError: the module for the device is missing.
        MemoryError: there is not enough memory; it names the array, and the bytes if known.
    """
    rounds = RoundOptions(max_objects=max_objects, max_cut=max_cut, min_area=min_area, split=split)
    cut = CutOptions(tau=tau, eps=eps, graph=graph, orient=orient)
    ipo = IpoOptions(iters=ipo_iters, min_count=ipo_min_count, prefix="ipo_")
    return find_objects(features, grid, rounds, cut, ipo)


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """When the rounds end, and what an object is: see :func:`multi_label`.

    Raises ``ValueError`` for a value against its rule.
    """

    max_objects: int = 3  #: objects at most
    max_cut: float = MAX_CUT  #: the largest eigenvalue of a round
    min_area: float = 0.01  #: the share of the grid that an object must exceed
    split: bool = False  #: True: each component of a round's foreground is an object

    def __post_init__(self) -> None:
        count = self.max_objects
        whole = isinstance(count, Integral) and not isinstance(count, bool)
        params.require("max_objects", count, "an integer >= 1", whole and count >= 1)
        for name, share in (("max_cut", self.max_cut), ("min_area", self.min_area)):
            params.require(name, share, "a number >= 0", isinstance(share, Real) and share >= 0)
        object.__setattr__(self, "max_objects", int(count))


def find_objects(
    features: Any, grid: Grid | None, rounds: RoundOptions, cut: CutOptions, ipo: IpoOptions
) -> Objects | list[Objects]:
    """Returns what :func:`multi_label` returns, and raises what it raises."""
    orient = params.choice("orient", cut.orient, params.ORIENTS)
    checked = as_features(features, grid, needs_grid=True)
    assert checked.grid is not None
    images: list[Objects] = []
    with checked.array_type.stream():
        for chunk in checked.tensor.split(_ops.images_at_once(checked.tensor, cut.weighted)):
            rows = chunk.contiguous()
            graph = build(rows, cut, first=len(images))
            searches = [_Search(image, checked.grid, rounds, ipo) for image in rows]
            while any(search.open for search in searches):
                pairs = eigenpairs(graph, 1)
                x = pairs.vectors[:, 0]
                _, seed = initial_mask(x, checked.grid, orient)
                cuts = zip(pairs.values[:, 0].tolist(), _host(x), seed.tolist(), strict=True)
                turns = zip(searches, cuts, strict=True)
                paint = np.stack([search.turn(*one) for search, one in turns])
                if any(search.open for search in searches):
                    graph = graph.paint(torch.from_numpy(paint).to(rows.device))
            images += [search.objects(checked.array_type) for search in searches]
    return images if checked.batched else images[0]


class _Search:
    """The objects found so far in one image of (N, d) features."""

    def __init__(self, rows: Tensor, grid: Grid, rounds: RoundOptions, ipo: IpoOptions) -> None:
        self.rows = rows
        self.grid = grid
        self.rounds = rounds
        self.ipo = ipo
        self.taken = np.zeros(len(rows), dtype=bool)  # patches of objects, never all
        self.masks: list[Patches] = []
        self.seeds: list[int] = []
        self.eigenvalues: list[float] = []
        self.open = len(rows) > 1  # True if there is another round

    def turn(self, eigenvalue: float, x: NDArray[np.float64], seed: int) -> Patches:
        """Returns the patches (N,) of the objects of a round with this cut; none ends the rounds.

        ``seed`` is a patch of the side that is the foreground.
        """
        patches = np.zeros_like(self.taken)
        if not self.open:
            return patches
        above = x > x.sum() / len(x)
        depth = x if above[seed] else -x
        side = (above == above[seed]) & ~self.taken
        parts = self._parts(side, depth) if eigenvalue <= self.rounds.max_cut and side.any() else []
        patches = np.logical_or.reduce([patches, *parts])
        if (patches | self.taken).all():
            parts, patches = [], np.zeros_like(patches)
        self.masks += parts
        self.seeds += [_peak(depth, part) for part in parts]
        self.eigenvalues += [eigenvalue] * len(parts)
        self.taken = self.taken | patches
        self.open = len(parts) > 0 and len(self.masks) < self.rounds.max_objects
        return patches

    def _parts(self, side: Patches, depth: NDArray[np.float64]) -> list[Patches]:
        """Returns the objects of a foreground (N,) that is not empty."""
        if self.rounds.split:
            parts = _components(self._refined(side), self.grid)
        else:
            seed = _peak(depth, side)
            start = next(part for part in _components(side, self.grid) if part[seed])
            parts = _components(self._refined(start), self.grid)
            parts = sorted(parts, key=lambda part: -(part & start).sum())[:1]
        large = [part for part in parts if part.sum() > self.rounds.min_area * len(side)]
        large.sort(key=np.sum, reverse=True)
        return large[: self.rounds.max_objects - len(self.masks)]

    def _refined(self, start: Patches) -> Patches:
        """Returns ``start`` (N,) after IPO among the patches that are not taken."""
        free = ~self.taken
        labels = torch.from_numpy(start[free]).to(self.rows.device)
        # No copy if nothing is taken.
        rows = self.rows if free.all() else self.rows[torch.from_numpy(free).to(self.rows.device)]
        refined = np.zeros_like(start)
        refined[free] = _host(run_ipo(rows[None], labels[None], self.ipo)[0][0])
        return refined

    def objects(self, array_type: ArrayType) -> Objects:
        """Returns the objects found so far, in the caller's type of array."""
        count, grid = len(self.masks), self.grid
        masks = np.array(self.masks, dtype=bool).reshape(count, *grid)
        instances = np.zeros(grid, dtype=np.int64)
        for k, mask in enumerate(masks):
            instances[mask] = k + 1
        boxes = np.array([_box(mask) for mask in masks], dtype=np.int64).reshape(count, 4)
        device = self.rows.device
        tensors = Objects(
            masks=torch.from_numpy(masks).to(device),
            instances=torch.from_numpy(instances).to(device),
            boxes=torch.from_numpy(boxes).to(device),
            seeds=torch.tensor(self.seeds, dtype=torch.int64, device=device),
            eigenvalues=torch.tensor(self.eigenvalues, dtype=torch.float64, device=device),
            separations=_separations(self.rows, torch.from_numpy(masks).to(device).flatten(1)),
        )
        return Objects(*map(array_type.from_tensor, vars(tensors).values()))


def _separations(rows: Tensor, masks: Tensor) -> Tensor:
    """Returns |mu_f - mu_b| (K,) float64 of normalised (N, d) rows in and outside of K masks."""
    apart = [run_ipo(rows[None], mask[None], NO_IPO)[2] for mask in masks]
    return torch.cat([rows.new_empty(0, dtype=torch.float64), *apart])


def _host(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()


def _components(patches: Patches, grid: Grid) -> list[Patches]:
    """Returns the 4-connected components of patches (N,)."""
    labels, count = scipy.ndimage.label(patches.reshape(grid))
    return [labels.ravel() == k + 1 for k in range(count)]


def _peak(depth: NDArray[np.float64], patches: Patches) -> int:
    """Returns where ``depth`` peaks in patches (N,): the first of peaks equal up to rounding."""
    peak = depth[patches].max()
    return int(np.flatnonzero(patches & (depth >= peak - params.SEED_TIE * abs(peak)))[0])


def _box(mask: Patches) -> tuple[int, int, int, int]:
    """Returns x1, y1, x2, y2 of a mask (h, w) that is not empty; the last two are exclusive."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
