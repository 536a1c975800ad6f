"""The methods that the paper compares with, and the splits that its IPO starts from.

All take patch features, and some the CLS token besides; all give a mask on the patch grid, without
the post-processing of the image (dense CRF, bilateral solver) that some authors add.

``selfment``
    Affinity graph, normalised cut, the seed's component, IPO. ``init`` puts another split in the
    place of the cut, as the paper's ablation does; IPO follows, and no component is taken, for
    these splits have no seed:

    - ``kmeans``: 2-means of the unit rows. The foreground is the cluster with fewer patches on the
      border of the grid; of equals the smaller one, then the one without the first patch.
    - ``cls``: patches whose cosine with the CLS token exceeds its mean over the patches.
``tokencut``
    TokenCut (Wang et al., CVPR 2022) at its defaults, tau = 0.2: the seed's component, no IPO.
``maskcut``
    MaskCut (Wang et al., CVPR 2023) at its defaults, tau = 0.15 and three rounds: the union of
    their masks, which is what a mask of all salient objects is compared with. The initial mask is
    that of the first round, its setting for a single object.
``dsm``
    Deep Spectral Methods (Melas-Kyriazi et al., CVPR 2022): the first nontrivial generalised
    eigenvector of the cosine graph without negative weights, negated if it is positive for more
    than half of the patches but not for all; the foreground is where it is > 0. No colour
    affinities, its default.
``selfmask``
    The candidates and the vote of SelfMask (Shin et al., CVPRW 2022), without the network that it
    trains on them: see :func:`selfment.methods.selfmask.selfmask`.
``found``
    The background discovery of FOUND (Siméoni et al., CVPR 2023), without the 1 x 1 convolution
    that it trains on it: see :func:`selfment.methods.found.found`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones import Attended, Backbone
from ..core import options as params
from ..core.arrays import Grid, as_features
from ..core.ipo import run_ipo
from ..core.label import PseudoLabels, pseudo_label
from ..core.regions import load_kmeans
from . import dsm, found, maskcut, selfmask, splits

METHODS = ("selfment", "tokencut", "maskcut", "dsm", "selfmask", "found")
INITS = ("ncut", "kmeans", "cls")

#: What the method "selfment" is told; the others have values of their own. These are the defaults.
OPTIONS: Mapping[str, Any] = {
    "tau": params.TAU,
    "eps": params.EPS,
    "graph": "binary",
    "orient": None,
    "ipo_iters": params.IPO_ITERS,
    "ipo_min_count": params.IPO_MIN_COUNT,
    "min_confidence": 0.0,
}


def check(method: str, init: str, options: Mapping[str, Any]) -> None:
    """Checks a method, its split, and that it gets no ``OPTIONS`` but its own.

    Raises ``ValueError``, and ``ImportError`` where a library is missing.
    """
    params.choice("method", method, METHODS)
    params.choice("init", init, INITS)
    if method == "selfmask" or init == "kmeans":
        load_kmeans()  # what is missing is the call's error, not that of each image
    if method != "selfment":
        given = {"init": init, **options}
        for name, default in {"init": "ncut", **OPTIONS}.items():
            if given.get(name, default) != default:
                raise ValueError(
                    f"`{name}` must be left alone unless `method` is 'selfment': got "
                    f"{given[name]!r} for {method!r}"
                )
    elif init != "ncut" and options.get("min_confidence"):
        raise ValueError(
            "`min_confidence` must be left alone unless `init` is 'ncut', whose cut it is of: got "
            f"{options['min_confidence']!r} for {init!r}"
        )


def needs(method: str, init: str) -> str | None:
    """What of the CLS token is needed besides patch features, as a sentence names it."""
    if method == "found":
        return "`method` 'found' needs a ViT's attention"
    return "`init` 'cls' needs a ViT's CLS token" if init == "cls" else None


def has_vector(method: str, init: str) -> bool:
    """Whether the labels come from one Fiedler vector, and with it."""
    return init == "ncut" and method not in ("selfmask", "found")


def check_backbone(method: str, init: str, backbone: Backbone | type[Backbone], name: str) -> None:
    """Raises ``ValueError`` if the backbone ``name`` does not have what is needed."""
    need = needs(method, init)
    if need and not backbone.attends:
        raise ValueError(f"{need}: got the backbone {name!r}")


def label(
    features: Tensor | Attended,
    grid: Grid,
    method: str = "selfment",
    init: str = "ncut",
    *,
    orient: str = "seed",
    votes: Sequence[tuple[Tensor, Grid]] = (),
    **options: Any,
) -> PseudoLabels:
    """Labels of (B, N, d) patch features by a method; see the module, which describes them.

    ``orient`` and ``options`` are those of :func:`selfment.pseudo_label`, for the method
    ``"selfment"``. Of labels without a Fiedler vector it, ``eigenvalue``, ``gap``, ``residual`` and
    ``tau`` are NaN and ``lanczos_iters`` is 0; without a seed ``seed`` is -1. ``confidence`` is NaN
    of masks that are not of one cut and IPO. A single patch is foreground.
    ``votes``: features of the same images by other backbones, and their grids, for ``"selfmask"``.
    Raises ``ValueError`` for features that are not finite, and where features alone are given to a
    method that needs more.
    """
    need = needs(method, init)
    if need and not isinstance(features, Attended):
        raise ValueError(f"{need}: got patch features alone")
    rows = features.features if isinstance(features, Attended) else features
    if method == "selfment" and init == "ncut":
        labels: PseudoLabels = pseudo_label(rows, grid, orient=orient, **options)
        return labels
    if method == "tokencut":
        return pseudo_label(rows, grid, ipo_iters=0)
    if method == "maskcut":
        return maskcut.maskcut(rows, grid)
    if method == "dsm":
        return dsm.dsm(rows, grid)
    as_features(rows, grid, needs_grid=True)
    masks = []
    for image, patches in enumerate(rows):
        if len(patches) == 1:
            mask = np.ones(1, dtype=bool)
        elif method == "selfmask":
            mask = selfmask.selfmask(patches, grid, [(theirs[image], own) for theirs, own in votes])
        elif init == "kmeans":
            mask = splits.kmeans_split(patches, grid)
        else:
            assert isinstance(features, Attended)
            if method == "found":
                mask = found.found(patches, features.attention[image], by_head=features.by_head)
            else:
                mask = splits.cls_split(patches, features.cls[image])
        masks.append(torch.from_numpy(mask))
    start = torch.stack(masks).to(rows.device)
    iters = options.get("ipo_iters", params.IPO_ITERS) if method == "selfment" else 0
    least = options.get("ipo_min_count", params.IPO_MIN_COUNT)
    label, steps, separation = run_ipo(
        rows.contiguous(), start, params.IpoOptions(iters=iters, min_count=least)
    )
    nan = torch.full_like(separation, torch.nan)
    return PseudoLabels(
        mask=label.unflatten(1, grid),
        ncut_mask=start.unflatten(1, grid),
        fiedler=nan.float()[:, None, None].expand(-1, *grid),
        eigenvalue=nan,
        gap=nan,
        residual=nan,
        seed=torch.full_like(steps, -1),
        lanczos_iters=torch.zeros_like(steps),
        ipo_iters=steps,
        separation=separation,
        confidence=nan,
        rejected=torch.zeros_like(steps, dtype=torch.bool),
        tau=nan,
    )
