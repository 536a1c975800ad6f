"""Models the join of patches with landmarks, block by block of rows: see csrc/cuda/landmarks.cu."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import cuda_plan
import torch
from cost_kernels import Model
from cost_phases import ASSUMED, Code, Phase, Size, Structure

from selfment.core import block_ops
from selfment.core.arrays import as_features
from selfment.core.blocks import Blocks, array_blocks
from selfment.core.options import CutOptions

TABLE_WORDS = 16  # of the columns whose sums are in shared memory
BLOCK_WORDS = 4  # of the rows that a block of a product has
ENTRIES = 4096  # of a table


@dataclass(frozen=True)
class Pass:
    """A pass over N patches that joins them with m rows."""

    name: str
    n: int
    m: int
    d: int
    columns: int  # vectors
    extends: bool  # the patches get the means of the m rows
    undecided: float = 2.5e-5  # share of the pairs


#: Of a cut: the landmarks' vectors are extended, and 1,000 random rows check the result.
PASSES = tuple(
    part
    for n in (76_800, 1_036_800)
    for part in (
        Pass("landmarks", n, 10_000, 384, 4, True),
        Pass("check", n, 1000, 384, 1, False),
    )
)


def blocks_of(work: Pass) -> Blocks:
    """Returns the blocks of features of that form, whose numbers are not set."""
    return array_blocks(as_features(torch.empty(work.n, work.d, dtype=torch.bfloat16)))


def recorded(device: cuda_plan.Device, work: Pass) -> cuda_plan.Plan:
    """Returns the launches of a pass."""
    blocks, rows = blocks_of(work), torch.empty(work.m, work.d, dtype=torch.bfloat16)
    x = torch.empty(work.columns, work.m, dtype=torch.float64) if work.extends else None
    means = torch.empty(work.columns, work.n, dtype=torch.float64)
    gathered = block_ops.LandmarkSums.zeros(work.columns, work.m, rows.device)

    def join() -> None:
        first = 0
        for block in blocks:
            part = means[:, first : first + len(block)]
            block_ops.landmarks(block, rows, CutOptions(), x, part, gathered)
            first += len(block)

    return device.plan(join)


class LandmarkModel(Model):
    """The phases of one pass; products are modelled as those of the solver."""

    def __init__(self, work: Pass, code: Code, made: Structure, plan: cuda_plan.Plan) -> None:
        """``plan``: the launches of the pass."""
        size = Size(work.n, work.d, 1, 0, 0, work.undecided, "")
        super().__init__(size, code, made, plan)
        self.work = work

    def all(self) -> None:
        """Adds all phases, each summed over the blocks of rows."""
        n, each = self.work.n, blocks_of(self.work).block_rows
        for rows in [each] * (n // each) + [n % each] * (n % each > 0):
            self.block(rows)
        self.phases = list(_summed(self.phases))

    def block(self, rows: int) -> None:
        """Adds the phases of a block of rows."""
        m, columns = self.work.m, self.work.columns
        self.prepare(rows + m)
        edge = self.tile_edge("join_block")
        self.product("join_block", math.ceil(rows / edge) * math.ceil(m / edge))
        self.spread("join_block", "bits", cached=2 * rows * m / 8)
        self.settle(self.work.undecided * rows * m, "settle_block")
        if self.work.extends:
            self.product_with_bits("set_means", rows, m, columns)
        self.product_with_bits("add_sums", m, rows, 1)

    def product_with_bits(self, kernel: str, rows: int, columns: int, counted: int) -> None:
        """The sums of vectors of `columns` numbers over the edges of rows, for each vector.

        ``counted``: the vectors for which the edges of a row are counted, too.
        """
        launch, vectors = self.launch(kernel), self.work.columns
        look, fill = self.code.look_up(kernel), self.code.fill(kernel)
        words = math.ceil(columns / 64)
        blocks = vectors * math.ceil(math.ceil(rows / 64) / BLOCK_WORDS)
        # The busiest multiprocessor has so many blocks, and runs so many at a time.
        most = math.ceil(blocks / ASSUMED.multiprocessors)
        turns = math.ceil(most / self.code.occupancy(kernel, launch.threads, launch.shared))
        strips = most * min(BLOCK_WORDS, math.ceil(rows / 64)) * 2  # warps of rows
        tables = math.ceil(words / TABLE_WORDS)
        warps = launch.threads // 32
        self.add(
            kernel, "look-ups",
            instructions=strips * words * look, doubles=strips * words * 16,
            shared=strips * words * 16 * 256.0, cached=strips * words * 256.0,
        )  # fmt: skip
        self.add(
            kernel, "tables",
            instructions=most * tables * ENTRIES / 32 * fill,
            doubles=most * tables * ENTRIES / 32 * 4,
            shared=most * tables * ENTRIES * 8.0,
            cached=most * columns * 8.0,
            barriers=turns * tables * 2, latency=turns * tables * ASSUMED.latency / 2,
        )  # fmt: skip
        count, loop = self.code.loop(
            kernel, "counts", lambda loop: bool(loop.count("POPC")) and not loop.count("DADD"), 6
        )
        count /= max(1, loop.count("POPC") / 2) if loop else 1
        share = counted / vectors
        self.add(
            kernel, "counts",
            instructions=strips * words * count * share, cached=strips * words * 256.0 * share,
            latency=turns * ASSUMED.latency,
        )  # fmt: skip
        self.add(
            kernel, "totals",
            instructions=most * warps * math.ceil(columns / launch.threads) * 6,
            cached=most * columns * 8.0,
            barriers=turns * 4, latency=turns * ASSUMED.latency,
        )  # fmt: skip

    def fences(self, kernel: str) -> float:
        """Returns 0: blocks do not meet."""
        return 0

    def counted(self) -> dict[str, float]:
        """Returns the sums of the counts over all multiprocessors, by what is counted."""

        def total(count: str) -> float:
            each: list[float] = [getattr(phase, count) for phase in self.phases]
            return ASSUMED.multiprocessors * sum(each)

        return {
            "launches": self.plan.total,
            "product, GFLOP": total("products") * 2 * 16 * 8 * 16 / 1e9,
            "FP64, GFLOP": total("doubles") * 32 / 1e9,
            "shared, GB": total("shared") / 1e9,
            "L2, GB": total("cached") / 1e9,
            "memory, GB": sum(p.memory for p in self.phases) / 1e9,
            "barriers of a block": sum(p.barriers for p in self.phases),
        }


def _summed(phases: list[Phase]) -> Iterator[Phase]:
    """Yields the phases, those of one name as one."""
    for kernel, name in dict.fromkeys((phase.kernel, phase.name) for phase in phases):
        same = [phase for phase in phases if (phase.kernel, phase.name) == (kernel, name)]
        counts = [field.name for field in fields(Phase) if field.type == "float"]
        counts.remove("share")
        yield Phase(kernel, name, **{c: sum(getattr(phase, c) for phase in same) for c in counts})
