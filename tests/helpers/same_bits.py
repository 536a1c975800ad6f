"""Hashes of what the CPU kernels make of fixed features, which are made of integers alone.

python -m helpers.same_bits     # in tests/; prints the table of test_same_bits.py as JSON
"""

from __future__ import annotations

import hashlib
import json
from types import ModuleType

import numpy as np

from .kernels import Array, Images, native_module

# Batch, grid, channels, dtype, style.
Case = tuple[int, tuple[int, int], int, str, str]
CASES: dict[str, Case] = {
    "two patches": (3, (1, 2), 3, "float32", "plain"),
    "whole spectrum": (2, (6, 8), 8, "float32", "plain"),
    "float64": (2, (8, 9), 33, "float64", "plain"),
    "float16": (2, (10, 13), 76, "float16", "plain"),
    "float16, subnormal": (1, (9, 11), 40, "float16", "small"),
    "bfloat16": (2, (10, 13), 76, "bfloat16", "plain"),
    "products equal to tau": (1, (12, 12), 25, "float32", "signs"),
    "zero rows": (1, (14, 15), 32, "float32", "zeros"),
    "equal rows": (1, (15, 20), 32, "float32", "equal"),
    "long rows": (1, (12, 13), 1100, "float32", "plain"),
    "many words": (1, (40, 37), 96, "float32", "plain"),
}

#: The outputs of `Images.outputs` that each hash covers.
STEPS = {
    "graph": ("bits", "degrees", "painted bits", "painted degrees"),
    "products": ("products", "painted products"),
    "vectors": ("values", "vectors", "gaps", "residuals", "iterations"),
    "labels": ("mask", "seed", "peaks", "labels", "steps", "separation"),
    "finish": ("confidence", "rejected", "final mask", "final vectors"),
}


def numbers(count: int, seed: int) -> Array:
    """Integers from -16 to 15, (count,), by splitmix64."""
    z = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(59)).astype(np.int64) - 16


def integers(batch: int, grid: tuple[int, int], d: int, seed: int) -> Array:
    """Features (B, N, d): an object in the middle, waves over the grid, and noise."""
    h, w = grid
    i, j = np.mgrid[0:h, 0:w].reshape(2, -1)
    inside = (4 * i >= h) & (4 * i < 3 * h) & (4 * j >= w) & (4 * j < 3 * w)
    waves = np.stack([np.abs((a * i + b * j) % 32 - 16) - 8 for a, b in ((1, 3), (2, 1), (3, 2))])
    mixing = numbers(batch * 4 * d, seed).reshape(batch, 4, d)
    basis = np.concatenate([waves, 16 * inside[None].astype(np.int64) - 8])
    noise = numbers(batch * h * w * d, seed + 1).reshape(batch, h * w, d)
    features: Array = basis.T @ mixing + 4 * noise
    return features


def images_of(native: ModuleType, name: str) -> Images:
    """The features of a case."""
    batch, grid, d, dtype, style = CASES[name]
    rows = integers(batch, grid, d, seed=list(CASES).index(name))
    if style == "signs":
        rows = np.where(rows < 0, -1, 1)
    elif style == "zeros":
        rows[:, ::7] = 0
    elif style == "equal":
        rows[:, : rows.shape[1] // 3] = rows[:, :1]
    bfloat = dtype == "bfloat16"
    if bfloat:  # floats without their lower halves
        rows = (rows.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    else:
        rows = (rows * (2.0**-24 if style == "small" else 1)).astype(dtype)
    return Images(native, rows, grid, threads=2, bfloat=bfloat)


def hashes_of(native: ModuleType, name: str) -> dict[str, str]:
    """The hashes of a case, binary mode."""
    found = images_of(native, name).outputs(weighted=False)
    assert {name for names in STEPS.values() for name in names} == set(found)
    return {
        step: hashlib.sha256(b"".join(found[name].tobytes() for name in names)).hexdigest()[:12]
        for step, names in STEPS.items()
    }


if __name__ == "__main__":
    module = native_module()
    print(json.dumps({"isa": module.isa(), **{name: hashes_of(module, name) for name in CASES}}))
