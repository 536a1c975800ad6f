"""Compares the graph with the float64 rule, bit for bit, and counts the undecided pairs.

The features are those of photographs, the same with outlier channels (one of a hundred, 10 to 100
times the rest), and rows whose products are tau to 1e-7, duplicated rows and exact ties. The
undecided share is that of the pairs i <= j that were computed in double; SELFMENT_ISA chooses the
instruction set.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from inputs import photo_features, photographs
from torch import Tensor

from selfment import reference
from selfment.core import native as _native
from selfment.core.options import EPS, TAU


def with_outliers(features: Tensor) -> Tensor:
    """Returns the features with a few channels 10 to 100 times the rest."""
    rng = torch.Generator().manual_seed(0)
    d = features.shape[1]
    channels = torch.randperm(d, generator=rng)[: max(2, d // 100)]
    scaled = features.clone()
    scaled[:, channels] *= torch.logspace(1, 2, len(channels))
    return scaled


def at_threshold(n: int, d: int, seed: int) -> Tensor:
    """Returns rows whose products with the first are tau to 1e-7; a third twice, some tied."""
    rng = torch.Generator().manual_seed(seed)
    product = TAU + 1e-7 * (2 * torch.rand(n, 1, generator=rng, dtype=torch.float64) - 1)
    rest = torch.randn(n, d - 1, generator=rng, dtype=torch.float64)
    rest *= (1 - product**2).sqrt() / rest.norm(dim=1, keepdim=True)
    rows = torch.cat([product, rest], 1)
    rows[0] = torch.eye(1, d)
    rows[n // 3 : 2 * (n // 3)] = rows[: n // 3]
    rows[-20:] = 0
    rows[-20:-10, :25] = 1  # equal elements: 5 of 25 shared, so that products are exactly 1/5
    rows[-10:, 20:45] = 1
    return rows


def compare(features: Tensor) -> tuple[int, float]:
    """Counts the bits that differ from the float64 rule, and the share of undecided pairs."""
    n, d = features.shape
    native = _native.cpu()
    bits = torch.empty(native.bits_size(n), dtype=torch.int64)
    degrees = torch.empty(n, dtype=torch.float64)
    undecided = torch.zeros(1, dtype=torch.int64)
    taus = torch.tensor([TAU], dtype=torch.float64)
    native.affinity(
        features=features.data_ptr(),
        dtype=native.DTYPES.index(str(features.dtype).removeprefix("torch.")),
        batch=1,
        n=n,
        d=d,
        taus=taus.data_ptr(),
        eps=EPS,
        weights=None,
        bits=bits.data_ptr(),
        degrees=degrees.data_ptr(),
        threads=torch.get_num_threads(),
        undecided=undecided.data_ptr(),
    )
    words = bits.view(-1, (n + 63) // 64 * 64)[:, :n]  # word w of row i at [w, i]
    edges = (words.T[:, :, None] >> torch.arange(64)) & 1
    different = edges.flatten(1)[:, :n].bool() ^ (reference.affinity(features) != EPS)
    return int(different.sum()), undecided.item() / (n * (n + 1) / 2)


def main() -> None:
    """Prints a line for each set and depth."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("images", nargs="*", help="files, folders, globs (default: samples)")
    parser.add_argument("--side", type=int, default=48, help="patches per side")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 768, 4096])
    parser.add_argument("--limit", type=int, help="use so many photographs")
    arguments = parser.parse_args()
    photos = photographs(arguments.images)
    photos = photos[:: max(1, len(photos) // arguments.limit)] if arguments.limit else photos
    n = arguments.side**2
    print(f"{_native.cpu().isa()}, N = {n}, tau = {TAU}")

    def sets(d: int) -> Iterator[tuple[str, Iterator[Tensor]]]:
        yield "photographs", (photo_features(p, arguments.side, d) for p in photos)
        scaled = (with_outliers(photo_features(p, arguments.side, d)) for p in photos)
        yield "outlier channels", scaled
        yield "at the threshold", (at_threshold(n, d, seed) for seed in range(4))

    for d in arguments.dims:
        for name, images in sets(d):
            found = [compare(features) for features in images]
            shares = torch.tensor([share for _, share in found])
            print(
                f"d = {d}, {name}: {len(found)} graphs, "
                f"{sum(different for different, _ in found)} bits differ; undecided "
                f"{shares.mean():.3%} of the pairs, at most {shares.max():.3%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
