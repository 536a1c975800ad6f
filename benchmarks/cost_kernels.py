"""Models the kernels as phases: how often each loop runs, what it moves and what it waits for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import cuda_plan
from cost_phases import ASSUMED, Assumptions, Code, Phase, Size, Structure

WARPS = 16  # warps of a block of the solver


@dataclass
class Model:
    """The phases of one problem size."""

    size: Size
    code: Code
    made: Structure
    plan: cuda_plan.Plan
    phases: list[Phase] = field(default_factory=list)

    def launch(self, kernel: str) -> cuda_plan.Launch:
        """Returns the first launch of a kernel."""
        return next(x for x in self.plan.launches if x.kernel.startswith(kernel))

    def add(self, kernel: str, name: str, **counts: float) -> None:
        """Adds a phase."""
        self.phases.append(Phase(kernel, name, **counts))

    def spread(self, kernel: str, name: str, **counts: float) -> None:
        """Adds a phase that all multiprocessors share; counts are the sums over all of them."""
        memory = counts.pop("memory", 0.0)
        each = {k: v / ASSUMED.multiprocessors for k, v in counts.items()}
        self.add(kernel, name, memory=memory, **each)

    def all(self) -> None:
        """Adds all phases; the work of torch's operators is small, only their launches count."""
        self.prepare(self.size.n)
        self.join()
        self.settle(self.size.undecided * self.size.n**2 / 2)
        self.degrees()
        self.fiedler()
        self.components()
        self.ipo()

    # Loops over features: 16-byte pieces of 8 elements, 4 of them on their way.

    def reading(self, kernel: str, what: str, otherwise: float) -> tuple[float, float]:
        """Returns a warp's instructions, and FP64 instructions, per 8 elements of each lane."""
        scores = what == "scores"
        each, loop = self.code.loop(
            kernel, what,
            lambda loop: sum(i.width == 16 and i.name == "LDG" for i in loop.usual) >= 4
            and sum(i.name in ("DADD", "DFMA", "FFMA", "FADD", "FMUL") for i in loop.usual) >= 16
            and not loop.count("SHFL") and scores == any(i.name in ("LD", "LDS") and i.width == 16
            for i in loop.usual),
            otherwise,
        )  # fmt: skip
        deep = sum(i.name in ("DADD", "DFMA", "DMUL") for i in loop.usual) if loop else 0
        return each / 4, deep / 4

    def prepare(self, rows: float) -> None:
        """The norm of each row."""
        pieces = rows * math.ceil(self.size.d / 256)
        each, deep = self.reading("prepare<BFloat16>", "norms", 600)
        self.spread(
            "prepare", "norms",
            instructions=pieces * each + rows * 300,
            doubles=pieces * deep + rows * 40,
            memory=2.0 * rows * self.size.d,
        )  # fmt: skip

    def join(self) -> None:
        """Half the product, by tiles."""
        tiles = math.ceil(self.size.n / self.tile_edge("join"))
        self.product("join", tiles * (tiles + 1) // 2)

    def tile_edge(self, name: str) -> int:
        """Returns the rows of a block's tile, which has as many columns."""
        warps = self.launch(name).threads // 32
        return math.isqrt(warps * self.made.warp_rows * self.made.warp_columns)

    def product(self, name: str, tiles: int) -> None:
        """A product by tiles; a wave is the number of tiles that fit on the device."""
        s, launch = self.size, self.launch(name)
        kernel = launch.kernel
        loop = next(
            loop for f in self.code.kernels[kernel].functions for loop in f.loops
            if loop.innermost and loop.count("HMMA")
        )  # fmt: skip
        rest = len(self.code.kernels[kernel].instructions) - len(loop.instructions)
        made, warps, edge = self.made, launch.threads // 32, self.tile_edge(name)
        resident = self.code.occupancy(kernel, launch.threads, launch.shared)
        turns = math.ceil(s.batch * tiles / resident / ASSUMED.multiprocessors) / s.batch
        blocks = (
            turns * resident
        )  # blocks of a multiprocessor; those of one turn wait at the same time
        slabs = math.ceil(s.d / made.slab)
        # A warp reads its rows of both sides for each 16 elements; the copies write them once. What
        # a loop keeps in shared memory besides, such as sums, counts as its loads and stores.
        other = sum(
            32 * i.width for i in loop.usual
            if i.space == "shared" and i.name not in ("LDSM", "LDGSTS") and i.predicate != "!PT"
        )  # fmt: skip
        rows = made.warp_rows + made.warp_columns
        slab = 2 * edge * made.slab * 2
        loops = loop.count("HMMA") / (made.warp_rows * made.warp_columns / 128 * made.slab / 16)
        self.add(
            name, "product",
            instructions=blocks * slabs * warps * len(loop.usual) / loops,
            shared=blocks * slabs * (warps * (rows * made.slab * 2 + other / loops) + slab),
            products=blocks * slabs * warps * loop.count("HMMA") / loops,
            cached=blocks * slabs * slab,
            latency=turns * 2 * ASSUMED.latency,
        )  # fmt: skip
        barriers = sum(i.name == "BAR" for i in self.code.kernels[kernel].instructions) - 1
        self.add(
            name, "epilogue",
            instructions=blocks * warps * rest,
            barriers=turns * barriers,
            latency=turns * 2 * ASSUMED.latency,
        )  # fmt: skip

    def settle(self, pairs: float, name: str = "settle") -> None:
        """The undecided pairs of the product; both rows are read from L2."""
        each, _ = self.code.loop(
            f"{name}<BFloat16>", "pairs",
            lambda loop: sum(i.width == 16 and i.name == "LDG" for i in loop.instructions) >= 8
            and loop.count("FFMA") >= 16 and not loop.count("DADD"),
            500,
        )  # fmt: skip
        pieces = pairs * math.ceil(self.size.d / 256)
        self.spread(
            name, "pairs",
            instructions=pieces * each / 4 + pairs * 250,
            cached=pairs * self.size.d * 4,
        )  # fmt: skip

    def degrees(self) -> None:
        """Reads the bits once."""
        s = self.size
        self.spread(
            "degrees", "count",
            instructions=s.words * s.n / 32 * 12,
            cached=s.n * s.words * 8,
        )  # fmt: skip

    def fiedler(self, team: int = 0) -> None:
        """A team of blocks works on an image; the blocks of all teams run at the same time.

        ``team``: blocks per team; by default the number that the host code plans.
        """
        s, made, launch = self.size, self.made, self.launch("solve")
        teams = min(s.batch, ASSUMED.multiprocessors // team) if team else self.teams("solve")
        team = team or launch.blocks // teams
        own, m = math.ceil(s.words / team), s.steps
        products, rounds = m + 2, math.ceil(s.batch / teams)
        share = s.batch / rounds  # labels at a time
        kernel = "solve"
        meeting = 1.0 if team > 1 else 0.0

        def add(name: str, times: float, **counts: float) -> None:
            self.add("fiedler", name, share=share, **{k: times * v for k, v in counts.items()})

        look, fill = self.code.look_up(kernel), self.code.fill(kernel)
        words = 2 * own * s.words
        balance = self.balance(own, s.words)
        add(
            "look-ups", products * balance,
            instructions=words * look, doubles=words * 16, shared=words * 16 * 256.0,
        )  # fmt: skip
        passes = math.ceil(own * 64 / 640) * math.ceil(s.words / 16)
        add(
            "tables", products,
            instructions=passes * 16 * 8 * fill,
            shared=passes * 4096 * 8.0,
            cached=passes * 1024 * 8.0,
            barriers=2 * passes, latency=passes * ASSUMED.latency / 2,
        )  # fmt: skip
        # Inner products of v with all vectors before it, a word of rows by a warp each, twice a
        # step; then their updates.
        vectors = m * (m + 1) / 2 + m
        group, deep = self.task(kernel)
        each = [math.ceil((j + 2) / made.at_once) for j in range(1, m + 1)]
        tasks = own * 2 * sum(each)
        sharing = max(1, WARPS // own) if made.at_once > 1 else WARPS / own
        chain = 2 * sum(math.ceil(own * groups / min(WARPS, own * sharing)) for groups in each)
        add(
            "inner products", 1,
            instructions=tasks * group, doubles=tasks * deep,
            cached=tasks * made.at_once * 512.0 * (2 if made.at_once == 1 else 1),
            chain=chain * (ASSUMED.latency + 2 * group),
            barriers=m * 4, meetings=m * 2 * meeting,
            latency=m * 2 * ASSUMED.latency,
        )  # fmt: skip
        # Then all blocks add the parts of the words: a warp for each vector.
        add(
            "sums of words", 1,
            instructions=2 * vectors * (math.ceil(s.words / 32) * 12 + 30),
            cached=2 * vectors * s.words * 8.0,
            barriers=m * 2, latency=m * 2 * ASSUMED.latency,
        )  # fmt: skip
        update, loop = self.code.loop(
            kernel, "updates",
            lambda loop: loop.count("DFMA") in (4, 8, 16) and loop.depth >= 2
            and loop.count("LD", "LDS", "LDG") > loop.count("DFMA")
            and not loop.count("CALL", "DMUL", "DADD"),
            40,
        )  # fmt: skip
        unrolled = loop.count("DFMA") if loop else 4
        lanes = math.ceil(own * 2 / WARPS) * WARPS  # warps of rows; a block has so many
        add(
            "updates", 1,
            instructions=2 * vectors * lanes * update / unrolled,
            doubles=2 * vectors * lanes, cached=2 * vectors * own * 64 * 8.0,
            chain=2 * sum(lanes / WARPS * math.ceil(j / unrolled) for j in range(1, m + 1))
            * (ASSUMED.latency + update),
            barriers=m * 2, latency=m * 2 * ASSUMED.latency,
        )  # fmt: skip
        # The rest of a step: the norm, the scaled vector and its sum, divisions; one row a thread.
        rows, sums = lanes / WARPS, 2 if made.norm_apart else 1
        add(
            "vectors", m + 6,
            instructions=rows * WARPS * 4 * 60, cached=own * 64 * 8.0 * 8,
            barriers=3 * sums + 4, meetings=sums * meeting,
            latency=(4 + sums) * ASSUMED.latency,
        )  # fmt: skip
        self.projected(add)

    def projected(self, add: Callable[..., None]) -> None:
        """The eigenvalues of the projected matrix, at each test of convergence."""
        tests, size = list[int](), 10
        while size <= self.size.steps:
            tests.append(size)
            size += max(2, size // 6)
        if self.made.tridiagonal:
            # By a warp, in 16 points for each of two eigenvalues: 3 bits more a round to 2^-12 of
            # their distance, and once to rounding; then pivots, a division each, and ratios.
            rough = sum(size * (5 * 25 + 100) + 600 for size in tests)
            exact = tests[-1] * (14 * 25 + 100) + 600
            add("projected matrix", 1, latency=rough + exact, meetings=len(tests) + 1)
            return
        for size in tests:
            even = size + size % 2
            rounds = (even - 1) * 7  # sweeps
            pairs = even / 2
            cells = math.ceil(pairs * size / 512) * WARPS
            add(
                "projected matrix", 1,
                instructions=rounds * cells * (141 + 134),
                barriers=3 * rounds,
                latency=rounds * (ASSUMED.rotation + 2 * 60),
                meetings=1,
            )  # fmt: skip

    def task(self, kernel: str) -> tuple[float, float]:
        """Returns a warp's instructions, and FP64 ones, for inner products over one word."""
        functions = {f.name: f for f in self.code.kernels[kernel].functions}
        every = functions["project"].loops if "project" in functions else []
        loops = [loop for loop in every if loop.count("SHFL") and loop.count("DMUL")]
        if not loops:
            self.code.missing.append("solve: inner products")
            return 250, 12
        best = max(loops, key=lambda loop: loop.depth)
        # A loop in it is unrolled for more rows than a lane has of a word.
        inner = {id(i) for x in every if x.depth > best.depth for i in x.instructions}
        code = [i for i in best.usual if id(i) not in inner]
        return len(code), sum(i.name in ("DADD", "DMUL", "DFMA") for i in code)

    @staticmethod
    def balance(own: int, words: int) -> float:
        """Returns the time of 16 warps for a pass's tasks, relative to an even distribution."""
        tasks = [min(10, own - at) * 2 * 4 for at in range(0, own, 10)]
        return sum(math.ceil(t / WARPS) * WARPS for t in tasks) / sum(tasks)

    def teams(self, kernel: str) -> int:
        """Returns the number of teams of a launch, by the counters that are set to 0 before."""
        launches = self.plan.launches
        at = next(i for i, x in enumerate(launches) if x.kernel.startswith(kernel))
        blocks, most = launches[at].blocks, min(self.size.batch, launches[at].blocks)
        for before in reversed(launches[:at]):
            counters = before.blocks // 4
            if before.kernel == cuda_plan.NO_KERNEL and 1 <= counters <= most:
                return counters
        return max(teams for teams in range(1, most + 1) if blocks % teams == 0)

    def unknown(self) -> list[str]:
        """Returns the kernels that are launched but have no phase."""
        known = ("prepare", "join", "settle", "count_edges", "solve", "initial_mask", "optimize")
        names = dict.fromkeys(launch.kernel for launch in self.plan.launches)
        return [x for x in names if not x.startswith((*known, *cuda_plan.MEMORY))]

    def components(self) -> None:
        """One block per image: some passes over the vector, and trees."""
        s = self.size
        turns = math.ceil(s.n / 512)
        self.add(
            "components", "mask",
            instructions=WARPS * turns * 10 * 40, cached=s.n * 8.0 * 6,
            barriers=14, latency=(8 + 3 * turns + 2 * math.isqrt(s.n)) * ASSUMED.latency / 2,
            share=min(s.batch, ASSUMED.multiprocessors),
        )  # fmt: skip

    def ipo(self) -> None:
        """Norms, class sums and steps, some of which read all rows."""
        s, launch = self.size, self.launch("optimize")
        kernel = launch.kernel
        teams = self.teams(kernel)
        rounds = math.ceil(s.batch / teams)
        share = s.batch / rounds
        resident = self.code.occupancy(kernel, launch.threads, launch.shared)
        busy = min(ASSUMED.multiprocessors, launch.blocks / resident if rounds else 1)
        team = launch.blocks / teams
        pieces = s.n * math.ceil(s.d / 256)
        size = 2.0 * s.n * s.d
        meeting = 1.0 if team > 1 else 0.0

        def rows(name: str, times: float, each: float, deep: float, extra: float) -> None:
            self.add(
                "ipo", name,
                instructions=times * (pieces * each + s.n * extra) / busy,
                doubles=times * pieces * deep / busy,
                memory=times * size,
            )  # fmt: skip

        if not self.made.norms_given:
            each, deep = self.reading(kernel, "norms", 600)
            rows("norms", 1, each, deep, 200)
        gather, loop = self.code.loop(
            kernel, "class sums",
            lambda loop: loop.count("SHFL") >= 4 and loop.count("DADD") >= 16,
            1800,
        )  # fmt: skip
        deep = sum(i.name in ("DADD", "DMUL", "DFMA") for i in loop.usual) if loop else 96
        rows("class sums", 1, gather / 4, deep / 4, 20)
        each, deep = self.reading(kernel, "scores", 260)
        read = min(2, s.ipo) + max(0, s.ipo - 2) * ASSUMED.warmth
        rows("scores", read, each, deep, 160)
        self.add(
            "ipo", "steps",
            meetings=(s.ipo * 3 + 3) * meeting, barriers=(s.ipo + 1) * 7,
            latency=(s.ipo + 1) * 10 * ASSUMED.latency,
            share=share,
        )  # fmt: skip

    def fences(self, kernel: str) -> float:
        """Returns the cycles of the fences of a meeting in a kernel."""
        names = {"fiedler": "solve", "ipo": self.launch("optimize").kernel}
        return self.code.fences(names[kernel]) if kernel in names else 0

    def of(self, kernel: str, assumed: Assumptions = ASSUMED) -> float:
        """Returns the seconds of a kernel per label."""
        fences = self.fences(kernel)
        return sum(p.seconds(assumed, fences)[0] for p in self.phases if p.kernel == kernel)

    def of_phase(self, phase: Phase) -> float:
        """Returns the seconds of a phase per label."""
        return phase.seconds(ASSUMED, self.fences(phase.kernel))[0]

    def gaps(self) -> float:
        """Returns the seconds between the kernels, per label."""
        return self.plan.total * ASSUMED.gap / self.size.batch

    def seconds(self, assumed: Assumptions = ASSUMED) -> float:
        """Returns the seconds per label, including the gaps between launches."""
        kernels = {phase.kernel for phase in self.phases}
        return sum(self.of(kernel, assumed) for kernel in kernels) + self.gaps()

    def by_team(self) -> dict[int, float]:
        """Returns the seconds of the solver per label, by the number of blocks in a team."""
        found = {}
        for team in (1, 2, 3, 4, 6, 8, 16, 33, 66, 132):
            if team <= self.size.words:
                other = Model(self.size, self.code, self.made, self.plan)
                other.fiedler(team)
                found[team] = other.of("fiedler")
        return found
