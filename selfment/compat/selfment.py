"""The pseudo-label function of Selfment's official code (You, Wu, Jiang, ECCV 2026).

Its training and inference code defines this function itself. There, this import replaces the
definition::

    from selfment.compat.selfment import unsupervised_saliency_labels
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import Tensor

from ..core import options as params
from ..core.label import label_features
from ..core.options import IpoOptions
from . import _shared as _cut


def unsupervised_saliency_labels(
    feats: Any,
    h: int,
    w: int,
    n_iter: int = 20,
    sample_size: int = 10,
    tau: float = 0.2,
    no_binary_graph: bool = False,
) -> Tensor:
    """Computes labels by affinity graph, normalised cut, the seed's component, and IPO.

    Args:
        feats: (h*w, C) patch features, any float type; on the CPU or a CUDA device.
        h: rows of patches.
        w: columns of patches.
        n_iter: the largest number of IPO steps.
        sample_size: IPO stops if a side has fewer patches than this.
        tau: an edge needs a similarity > tau, or >= tau with ``no_binary_graph``, where
            tau must be >= 0.
        no_binary_graph: weight edges by their similarity, not by 1.

    Returns:
        (h*w,) int64 of 0 and 1, on the device of the features. A single patch is foreground.

    Raises:
        TypeError: a wrong type of array or dtype.
        ValueError: a wrong shape, grid or parameter, or features that are not finite.
        ImportError: the native module for the device is missing.
    """
    grid = _cut.as_dims((h, w), least=1)
    for name, value in (("n_iter", n_iter), ("sample_size", sample_size)):
        good = isinstance(value, Integral) and 0 <= value <= 2**31
        params.require(name, value, "an integer from 0 to 2^31", good)
    cut = _cut.cut_options(tau, params.EPS, no_binary_graph)
    # IPO never sees an empty side: 0 and 1 mean the same.
    ipo = IpoOptions(iters=n_iter, min_count=max(1, sample_size))
    labels = label_features(_cut.from_rows(feats, grid), grid, cut, ipo)
    mask: Tensor = labels.mask
    return mask.flatten().long()
