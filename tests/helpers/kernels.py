"""The CPU kernels on plain memory, without torch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

TAU, EPS = 0.2, 1e-5


def native_module() -> ModuleType:
    """Returns the module whose file $SELFMENT_CPU_MODULE names, else the installed one."""
    file = os.environ.get("SELFMENT_CPU_MODULE")
    if file is None:
        from selfment.core import native as _native

        return _native.cpu()
    spec = importlib.util.spec_from_file_location("_cpu", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def at(array: Array) -> int:
    assert array.flags.c_contiguous
    return array.ctypes.data


@dataclass
class Images:
    """Features (B, N, d), and what the kernels make of them on so many threads.

    Outputs are as long as they have to be and no longer, so that an address sanitizer sees a write
    beyond them.
    """

    native: ModuleType
    rows: Array
    grid: tuple[int, int]
    threads: int
    bfloat: bool = False  # whether the rows are the bits of bfloat16

    def __post_init__(self) -> None:
        self.batch, self.n, self.d = self.rows.shape
        name = "bfloat16" if self.bfloat else self.rows.dtype.name
        self.dtype = self.native.DTYPES.index(name)
        self.taus = np.full(self.batch, TAU)

    def affinity(self, weighted: bool) -> tuple[Array, Array, Any]:
        bits = np.empty((self.batch, self.native.bits_size(self.n)), dtype=np.uint64)
        degrees = np.empty((self.batch, self.n))
        undecided = np.empty(self.batch, dtype=np.int64)
        weights = self.native.Weights(self.batch) if weighted else None
        bad = self.native.affinity(
            at(self.rows),
            self.dtype,
            self.batch,
            self.n,
            self.d,
            at(self.taus),
            EPS,
            weights,
            at(bits),
            at(degrees),
            threads=self.threads,
            undecided=at(undecided),
        )
        assert bad == -1, f"row {bad} is not finite"
        assert (undecided >= 0).all()
        return bits, degrees, weights

    def matvec(self, bits: Array, weights: Any, x: Array) -> Array:
        y = np.empty_like(x)
        sizes = (self.batch, self.n, EPS)
        self.native.matvec(at(bits), weights, *sizes, at(x), at(y), x.shape[1], self.threads)
        return y

    def paint(self, bits: Array, weights: Any, mask: Array) -> tuple[Array, Array, Any]:
        painted, degrees = np.empty_like(bits), np.empty((self.batch, self.n))
        kept = None if weights is None else self.native.Weights(self.batch)
        sizes = (self.batch, self.n, EPS)
        out = (at(painted), kept, at(degrees), self.threads)
        self.native.paint(at(bits), weights, *sizes, at(self.taus), at(mask), *out)
        return painted, degrees, kept

    def fiedler(self, bits: Array, weights: Any, degrees: Array, k: int) -> tuple[Array, ...]:
        values, gaps, residuals = (np.empty((self.batch, k)) for _ in range(3))
        vectors = np.empty((self.batch, k, self.n))
        iterations = np.empty(self.batch, dtype=np.int64)
        out = (values, vectors, gaps, residuals, iterations)
        # With LAPACK's signs, which take the longer way.
        sizes = (self.batch, self.n, EPS, k, True)
        self.native.fiedler(at(bits), weights, at(degrees), *sizes, *map(at, out), self.threads)
        return out

    def components(self, x: Array, corners: bool) -> tuple[Array, ...]:
        mask = np.empty(x.shape, dtype=bool)
        seed = np.empty(self.batch, dtype=np.int64)
        peaks = np.empty((self.batch, 1), dtype=np.int64)
        out = (mask, seed, peaks)
        sizes = (self.batch, self.n, [self.grid], corners)
        self.native.components(at(x), *sizes, *map(at, out), self.threads)
        return out

    def ipo(self, labels: Array) -> tuple[Array, Array, Array]:
        refined, steps = labels.copy(), np.empty(self.batch, dtype=np.int64)
        separation = np.empty(self.batch)
        sizes = (self.batch, self.n, self.d)
        out = (at(refined), at(steps), at(separation), self.threads)
        bad = self.native.ipo(at(self.rows), self.dtype, *sizes, 20, 10, *out)
        assert bad == -1, f"row {bad} is not finite"
        return refined, steps, separation

    def finish(self, found: dict[str, Array]) -> tuple[Array, ...]:
        confidence, rejected = np.empty(self.batch), np.empty(self.batch, dtype=bool)
        mask = np.empty((self.batch, self.n), dtype=bool)
        vectors = np.empty((self.batch, self.n), dtype=np.float32)
        inputs = [np.ascontiguousarray(found[name][:, 0]) for name in ("values", "gaps", "vectors")]
        inputs[2:2] = [found["separation"]]
        out = (confidence, rejected, mask, vectors)
        self.native.finish(
            *map(at, [*inputs, found["labels"]]),
            *(self.batch, self.n, [self.grid], 0.25),
            *map(at, out),
            self.threads,
        )
        return out

    def outputs(self, weighted: bool) -> dict[str, Array]:
        """What each operation writes, by name."""
        painted = np.zeros((self.batch, self.n), dtype=bool)
        painted[:, :: max(2, self.n // 5)] = True
        # Quotients of integers are the same numbers on all processors.
        x = np.arange(self.batch * 3 * self.n) * 7919 % 2003 / 2003 - 0.5
        x = x.reshape(self.batch, 3, self.n)
        found: dict[str, Array] = {}
        bits, degrees, weights = self.affinity(weighted)
        found |= {"bits": bits, "degrees": degrees, "products": self.matvec(bits, weights, x)}
        rest, rest_degrees, kept = self.paint(bits, weights, painted)
        found |= {"painted bits": rest, "painted degrees": rest_degrees}
        found["painted products"] = self.matvec(rest, kept, x)
        pairs = self.fiedler(bits, weights, degrees, min(3, self.n - 1))
        names = ("values", "vectors", "gaps", "residuals", "iterations")
        found |= zip(names, pairs, strict=True)
        vector = np.ascontiguousarray(pairs[1][:, 0])
        parts = self.components(vector, weighted)
        found |= zip(("mask", "seed", "peaks"), parts, strict=True)
        found |= zip(("labels", "steps", "separation"), self.ipo(parts[0]), strict=True)
        names = ("confidence", "rejected", "final mask", "final vectors")
        found |= zip(names, self.finish(found), strict=True)
        return found

    def everything(self) -> list[Array]:
        """What each operation writes, in both modes of the graph."""
        return [*self.outputs(False).values(), *self.outputs(True).values()]
