"""Compares labels with the reference's, on many photographs.

Compares initial masks and masks after IPO of `selfment.pseudo_label` and `selfment.reference`,
binary and weighted, at several sizes. For each patch of an initial mask that differs, it prints the
distance of its entry in the Fiedler vector from the mean, as a share of the vector's range. Then it
compares the seed and the masks of MaskCut's drop-in with those of `scipy.linalg.eigh` on dense
matrices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compat_speed import dense_maskcut, drop_in_maskcut
from inputs import machine, photo_features, photographs

import selfment
from selfment import reference


def compare(path: Path, side: int, dim: int, graph: str) -> dict[str, Any]:
    """Counts the differing patches of one photograph, and measures what explains them."""
    features = photo_features(path, side, dim)
    ours = selfment.pseudo_label(features, (side, side), graph=graph)
    expected = reference.pseudo_label(features, (side, side), graph=graph)
    x = expected.fiedler.double()
    different = ours.ncut_mask != expected.ncut_mask
    margins = ((x - x.mean()).abs() / (x.max() - x.min()))[different]
    return {
        "image": path.name,
        "patches": side * side,
        "graph": graph,
        "initial": int(different.sum()),
        "ipo": int((ours.mask != expected.mask).sum()),
        "margins": margins.tolist(),
        "gap": float(expected.gap),
        "residual": float(ours.residual),
        "iterations": int(ours.lanczos_iters),
        "error": float((ours.fiedler - expected.fiedler).abs().max() / (x.max() - x.min())),
    }


def same_maskcut(path: Path, side: int, dim: int) -> bool:
    """Returns whether the drop-in's seed and masks equal those of the dense code."""
    columns = photo_features(path, side, dim).T.contiguous()
    seed, masks = drop_in_maskcut(columns, side)
    expected_seed, expected_masks = dense_maskcut(columns, side)
    return seed == expected_seed and all(map(np.array_equal, masks, expected_masks))


def main() -> None:
    """Prints a line for each size and mode, and one for each photograph with a difference."""
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("images", nargs="*", help="files, folders, globs (default: samples)")
    parser.add_argument("--sides", type=int, nargs="+", default=[30, 48], help="patches per side")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--limit", type=int, help="use so many photographs")
    parser.add_argument("--json", type=Path, metavar="F")
    arguments = parser.parse_args()
    print(f"threads: {torch.get_num_threads()}, d = {arguments.dim}")
    photos = photographs(arguments.images)
    photos = photos[:: max(1, len(photos) // arguments.limit)] if arguments.limit else photos
    rows = []
    for side in arguments.sides:
        for graph in ("binary", "weighted"):
            part = [compare(path, side, arguments.dim, graph) for path in photos]
            rows += part
            total = sum(row["patches"] for row in part)
            print(
                f"N = {side * side}, {graph}: {len(part)} photographs, {total} patches; "
                f"{sum(row['initial'] for row in part)} of the initial masks and "
                f"{sum(row['ipo'] for row in part)} of the IPO masks differ; largest error of the "
                f"vector {max(row['error'] for row in part):.0e} of its range; "
                f"{min(row['iterations'] for row in part)} to "
                f"{max(row['iterations'] for row in part)} products",
                flush=True,
            )
            for row in part:
                if row["initial"] or row["ipo"]:
                    print(f"  {row}")
        others = [path.name for path in photos if not same_maskcut(path, side, arguments.dim)]
        print(f"N = {side * side}, MaskCut: {len(others)} of {len(photos)} photographs differ")
        print("".join(f"  {name}\n" for name in others), end="", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
