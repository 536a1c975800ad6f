"""SelfMask's candidates and their vote (Shin et al., CVPRW 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Grid, check_data, check_dense
from ..core.options import require
from ..core.regions import NO_ASSOCIATION, kmeans, load_kmeans
from ..core.torch_state import as_documented
from .base import Inputs, Mask, MaskMethod, Votes

_CLUSTERS = (2, 3, 4)  # numbers of clusters
_ROWS = 512  # of similarities at a time
_DIGITS = 10  # of the vectors' entries, which are about 1 / N
_DENSE = 64  # patches up to which all eigenvectors are computed


@dataclass(frozen=True)
class SelfMask(MaskMethod):
    """SelfMask's candidates and their vote, without the network that it trains on them."""

    #: more backbones whose candidates vote: their names, or a mapping from names to weights files
    voters: Sequence[str] | Mapping[str, str | PathLike[str] | None] = ()
    name: ClassVar[str] = "selfmask"

    def __post_init__(self) -> None:
        many = isinstance(self.voters, Sequence | Mapping) and not isinstance(self.voters, str)
        require("voters", self.voters, "a list or a mapping of names", many)
        if not isinstance(self.voters, Mapping):
            object.__setattr__(self, "voters", tuple(self.voters))
        load_kmeans()  # a missing library is this call's error, not that of each image

    @property
    def weights(self) -> dict[str, str | PathLike[str] | None]:
        """The weights file of each voter, None for its default weights."""
        voters = self.voters
        return dict(voters) if isinstance(voters, Mapping) else dict.fromkeys(voters)

    @property
    def needs(self) -> str | None:
        """See :attr:`Method.needs`."""
        return "`voters` need the images" if self.voters else None

    @property
    def settings(self) -> dict[str, Any]:
        """The name alone; the labeler, which loads the voters, adds their settings."""
        return {"name": self.name}

    def mask(self, features: Inputs, image: int, grid: Grid) -> Mask:
        """See :meth:`MaskMethod.mask`; with voters ``features`` must be a ``Votes``."""
        others = features.others if isinstance(features, Votes) else []
        votes = [(rows[image], theirs) for rows, theirs in others]
        return selfmask(self.rows(features)[image], grid, votes)


def selfmask(features: Tensor, grid: Grid, others: Sequence[tuple[Tensor, Grid]] = ()) -> Mask:
    """Returns the candidate mask (N,) of (N, d) features that most others agree with.

    Candidates are all clusters of k-means on the k eigenvectors of smallest eigenvalue of
    (D - A) x = lambda D x, the constant one included, for k = 2, 3, 4; A consists of the
    cosines, scaled to [0, 1]. Candidates that reach from the first row or column to the last are
    left out (the framing prior), unless all do so. The winner has the largest sum of intersections
    over union with all candidates; the first of equals.

    ``others``: features of the same image by other backbones, each with its grid, whose candidates
    vote too, at the nearest patch. The authors enlarge the feature map twofold first; here the
    clusters are those of the mask's own grid.
    """
    candidates = []
    for rows, own in ((features, grid), *others):
        (h, w), (height, width) = own, grid
        nearest = np.ix_(
            (2 * np.arange(height) + 1) * h // (2 * height),
            (2 * np.arange(width) + 1) * w // (2 * width),
        )
        candidates += [cluster.reshape(own)[nearest] for cluster in _clusters(rows)]
    candidates = [mask for mask in candidates if mask.any()]
    framed = [mask for mask in candidates if not _spans(mask) and not _spans(mask.T)]
    masks = np.stack(framed or candidates).reshape(-1, grid[0] * grid[1])
    area = masks.sum(axis=1)
    overlap = masks.astype(np.float64) @ masks.T
    score = (overlap / (area[:, None] + area - overlap)).sum(axis=1)
    winner: Mask = masks[np.argmax(score >= score.max() - 1e-9)]
    return winner


def _spans(mask: Mask) -> bool:
    return bool(mask[0].any() and mask[-1].any())


def _clusters(features: Tensor) -> Iterator[Mask]:
    vectors = _cosine_vectors(unit(features), max(_CLUSTERS))
    for k in _CLUSTERS:
        if k <= len(vectors):
            assigned = kmeans(vectors[:, :k], k)
            yield from (assigned == cluster for cluster in range(k))


def _cosine_vectors(f: Tensor, k: int) -> NDArray[np.float64]:
    """Returns the (N, min(k, N)) eigenvectors x of smallest eigenvalue of unit rows (N, d).

    They satisfy x^T D x = 1. A = (F F^T - m) / (M - m), with m and M the least and the largest of
    F F^T, is never formed: its rank is d + 1 at most, and its product with a vector takes 2 N d
    multiplications. Vectors of no association (M x = 0), which are arbitrary, count as 0.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(f)
    least, most = _range_of_products(f)
    if most - least < 1e-6:  # what is left is rounding
        return np.ones((n, min(k, n)))

    def affinity(x: NDArray[Any]) -> NDArray[Any]:
        columns = torch.from_numpy(x)
        return np.asarray((f @ (f.T @ columns) - least * columns.sum(dim=0)) / (most - least))

    degree = affinity(np.ones((n, 1)))
    scale = np.where(degree > 1e-12, degree, 1.0) ** -0.5

    def normalised(x: NDArray[Any]) -> NDArray[Any]:
        product: NDArray[np.float64] = scale * affinity(scale * x.reshape(n, -1))
        return product

    if n <= _DENSE:
        theta, vectors = np.linalg.eigh(normalised(np.eye(n)))
    else:
        operator = LinearOperator((n, n), matvec=normalised, matmat=normalised, dtype=np.float64)
        start = np.random.RandomState(0).standard_normal(n)
        theta, vectors = eigsh(operator, k, which="LA", v0=start)
    order = np.argsort(theta)
    vectors = (vectors * (theta > NO_ASSOCIATION))[:, order]
    # Rounded, so that patches which only rounding tells apart are in one cluster.
    return np.ascontiguousarray((scale * vectors)[:, ::-1][:, :k].round(_DIGITS))


def _range_of_products(f: Tensor) -> tuple[float, float]:
    """Returns the least and the largest inner product of two rows (N, d), searched in float32."""
    rows = f.float()
    least, pair = torch.inf, (0, 0)
    for start in range(0, len(rows), _ROWS):
        with as_documented():
            products = rows[start : start + _ROWS] @ rows[start:].T
        smallest, at = products.flatten().min(dim=0)
        if smallest < least:
            i, j = divmod(int(at), products.shape[1])
            least, pair = float(smallest), (start + i, start + j)
    return float(f[pair[0]] @ f[pair[1]]), float((f * f).sum(dim=1).max())


def unit(rows: Tensor) -> Tensor:
    """Returns (N, d) rows of norm 1 in float64, on the CPU; raises ``ValueError``."""
    check_dense(rows, "features")
    check_data(rows, "features")
    values = rows.detach().cpu().double()
    norms = values.norm(dim=1, keepdim=True)
    if not norms.isfinite().all():
        raise ValueError(
            "`features` must be finite, and so must their norms: got NaN, infinity or an overflow"
        )
    unit: Tensor = values / norms.clamp(min=1e-12)
    return unit
