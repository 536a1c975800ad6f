"""Parts of the model of a label's cost: sizes, device, phases, code and structure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import sass
from kernels import HOPPER
from machine_code import Loop, resident_blocks


@dataclass(frozen=True)
class Size:
    """The size of a batch, with counts that depend on the data: medians over photographs."""

    n: int
    d: int
    batch: int
    steps: int  # of Lanczos, without the last two products
    ipo: int  # steps
    undecided: float  # share of the pairs
    by_hand: str  # an estimate by hand, before any change, in us

    @property
    def words(self) -> int:
        """The number of words of 64 rows."""
        return -(-self.n // 64)


SIZES = (
    Size(900, 384, 32, 16, 5, 2.5e-5, "29 to 38"),
    Size(2304, 4096, 32, 18, 9, 4.2e-5, "130 to 155"),
    Size(6400, 4096, 32, 21, 7, 4.2e-5, "660 to 815"),
    Size(25600, 4096, 1, 21, 11, 4.2e-5, "11,000 to 14,000"),
)


@dataclass(frozen=True)
class Assumptions:
    """Assumptions on the device; cycles are those of a multiprocessor."""

    clock: float = 1.755e9  # under load
    multiprocessors: int = HOPPER[0]
    bandwidth: float = 4.3e12  # bytes/s of a large copy, read and written
    host: float = 50e9  # bytes/s of a copy from pinned memory of the host
    issue: float = 4  # instructions of a warp, a cycle
    doubles: float = 2  # FP64 instructions of a warp, a cycle
    shared: float = 128  # bytes of shared memory, a cycle
    cached: float = 42  # bytes from L2, a cycle: 5.5 TB/s for all
    products: float = 0.625  # m16n8k16 of mma.sync, a cycle: 5/8 of what wgmma reaches
    overlap: float = 0.85  # of the dearest resource that a loop attains
    barrier: float = 60  # cycles of a block's barrier, its warps' imbalance included
    latency: float = 700  # cycles of a round trip to L2 under load: a phase begins with one
    atomic: float = 700  # cycles of an atomic there; a meeting has one and a wait
    fence: float = 500  # cycles of a sequentially consistent fence with stores on their way
    light_fence: float = 150  # cycles of a release or acquire
    rotation: float = 600  # cycles of the longest chain of a round of Jacobi's: a root, divisions
    gap: float = 1.3e-6  # s between two kernels of a stream
    warmth: float = 0.1  # share of the rows that a step of IPO after the second reads
    fragments: float = 1  # of the product's, that go through registers
    sharing: float = 1  # of the product's bytes from L2: 3/4 where tiles are 128 x 256
    cluster: float = 0  # cycles of a cluster's barrier in place of a meeting's atomics and fences

    def meeting(self, fences: float) -> float:
        """Returns the cycles of a team barrier, including its ``fences``."""
        return self.cluster or 2 * self.atomic + fences


ASSUMED = Assumptions()
# A tile's operands stay in shared memory, and it can be larger.
WGMMA = replace(ASSUMED, products=0.8, fragments=0, sharing=0.75)
CLUSTERS = replace(WGMMA, cluster=250)


@dataclass
class Phase:
    """A part of a kernel: the work of one multiprocessor for a label."""

    kernel: str
    name: str
    instructions: float = 0  # of warps
    doubles: float = 0  # FP64 instructions of warps
    shared: float = 0  # bytes
    cached: float = 0  # bytes from L2
    memory: float = 0  # bytes from the device's memory, of all multiprocessors together
    products: float = 0  # of the tensor cores
    barriers: float = 0
    meetings: float = 0
    chain: float = 0  # cycles of a warp whose instructions wait for one another
    latency: float = 0  # cycles that nothing hides
    share: float = 1  # labels at a time: the time of a label is this part of the phase's

    def cycles(self, a: Assumptions, fences: float) -> dict[str, float]:
        """Of each resource, and of waiting; ``fences``: cycles of those of a meeting."""
        shared = self.shared * (a.fragments if self.products else 1)
        cached = self.cached * (a.sharing if self.products else 1)
        return {
            "issue": self.instructions / a.issue / a.overlap,
            "FP64": self.doubles / a.doubles / a.overlap,
            "shared": shared / a.shared / a.overlap,
            "L2": cached / a.cached / a.overlap,
            "tensor": self.products / a.products / a.overlap,
            "latency": self.chain,
            "wait": self.barriers * a.barrier + self.meetings * a.meeting(fences) + self.latency,
        }

    def seconds(self, a: Assumptions, fences: float) -> tuple[float, str]:
        """Returns the seconds per label, and the resource that limits the phase."""
        cycles = self.cycles(a, fences)
        waited = cycles.pop("wait") / a.clock / self.share
        dearest = max(cycles, key=lambda name: cycles[name])
        work = cycles[dearest] / a.clock / self.share
        streamed = self.memory / a.bandwidth
        if streamed > work:
            dearest, work = "memory", streamed
        return work + waited, "meetings, barriers" if waited > work else dearest


class Code:
    """The machine code of the kernels for sm_90, by phases."""

    def __init__(self) -> None:
        """Compiles the kernels."""
        kernels = [k for source in sass.SOURCES for k in sass.compiled(source, "90")]
        self.kernels = {kernel.name.partition(": ")[2]: kernel for kernel in kernels}
        self.missing: list[str] = []

    def occupancy(self, kernel: str, threads: int, shared: int) -> int:
        """Returns the occupancy, as the CUDA runtime would."""
        return resident_blocks(self.kernels[kernel].registers, threads, shared)

    def loop(
        self, kernel: str, what: str, wanted: Callable[[Loop], bool], otherwise: float
    ) -> tuple[float, Loop | None]:
        """Instructions of the shortest innermost loop like that, on its usual way; and the loop.

        ``otherwise``: where there is none; the phase is named then.
        """
        loops = [
            loop
            for function in self.kernels[kernel].functions
            for loop in function.loops
            if loop.innermost and wanted(loop)
        ]
        if not loops:
            self.missing.append(f"{kernel}: {what}")
            return otherwise, None
        best = min(loops, key=lambda loop: len(loop.usual))
        return len(best.usual), best

    def look_up(self, kernel: str) -> float:
        """Returns a warp's instructions for the 16 look-ups of a word, for 32 rows."""
        look, loop = self.loop(
            kernel, "look-ups",
            lambda loop: loop.count("DADD") in (16, 32)
            and loop.count("LDS", "LD") >= loop.count("DADD")
            and loop.depth >= 3 and not loop.count("SHFL"),
            64,
        )  # fmt: skip
        if loop is not None and loop.count("LD") >= 16:
            where = f"{kernel}: look-ups by generic loads"
            self.missing.append(f"{where} (counted as loads from shared memory)")
        return look / (1 if loop is None else loop.count("DADD") // 16)

    def fill(self, kernel: str) -> float:
        """Returns a warp's instructions for 32 entries of a table, each a sum of four numbers."""
        fill, loop = self.loop(
            kernel, "tables",
            lambda loop: bool(loop.count("STS", "ST")) and loop.count("DADD") in (4, 8)
            and loop.count("LD", "LDG", "LDS") >= loop.count("DADD")
            and not loop.count("DMUL", "DFMA", "CALL"),
            60,
        )  # fmt: skip
        return fill / (max(1, loop.count("STS.64", "STS", "ST")) if loop else 2)

    def fences(self, kernel: str) -> float:
        """Cycles of the fences of a meeting: two of them, before and after."""
        # Sequentially consistent ones cost more than a release and an acquire.
        strict = any(i.opcode.startswith("MEMBAR.SC") for i in self.kernels[kernel].instructions)
        return 2 * (ASSUMED.fence if strict else ASSUMED.light_fence)


@dataclass(frozen=True)
class Structure:
    """Properties of the sources on which the counts depend."""

    warp_rows: int  # of a warp's tile of the product
    warp_columns: int
    slab: int  # elements of a row
    tridiagonal: bool  # no Jacobi before the first restart
    norms_given: bool  # to IPO, by the affinity
    at_once: int  # vectors whose inner products with one a warp takes at a time
    norm_apart: bool  # the norm of what is left takes a meeting of its own


def structure() -> Structure:
    """Reads the structure from csrc."""
    text = {path.name: path.read_text() for path in (sass.ROOT / "csrc").rglob("*.*")}
    tile = re.search(r"kRows = (\d+), kColumns = (\d+)", text["operand_product.cuh"])
    slab = re.search(r"kSlab = (\d+)", text["operand_product.cuh"])
    ipo = re.search(r"^void ipo\(.*?\);", text["params.h"], re.DOTALL | re.MULTILINE)
    solver = "".join(text[name] for name in text if name.endswith((".cu", ".cuh")))
    group = re.search(r"kVectorsAtOnce = (\d+)", text["lanczos.cuh"])
    extend = re.search(r"double extend\(.*?\n  \}", text["lanczos.cuh"], re.DOTALL)
    return Structure(
        warp_rows=int(tile[1]) if tile else 64,
        warp_columns=int(tile[2]) if tile else 32,
        slab=int(slab[1]) if slab else 64,
        tridiagonal=bool(re.search(r"bisect|multisect|tridiagonal", solver, re.IGNORECASE)),
        norms_given=bool(ipo and "norms" in ipo[0]),
        at_once=int(group[1]) if group else 1,
        norm_apart=bool(extend and "dot(v, v)" in extend[0]),
    )
