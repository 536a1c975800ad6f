"""Estimates times on an H200 by counting instructions, barriers, bytes and launches.

    python benchmarks/cuda_cost.py [--detail] [--json F] [--write]

Nothing here is measured on a device. For four sizes it multiplies the counts of each loop in the
machine code by how often the loop runs, for binary graphs of bfloat16 features with k = 1, and for
passes over patches that join them with landmarks (cost_landmarks.py). Grids,
teams, shared memory and launches are those of the host code for a device of 132 multiprocessors
(cuda_plan.py). A phase takes as long as its most expensive resource; phases of a block run one
after another. The assumptions on the device and the data are in cost_phases.py, and printed.

Run it before and after a change. Properties of the sources are read from them (`structure`); if a
change moves a loop, `Code.loop` names the phase whose loop is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cuda_plan
import sass
import torch
from cost_kernels import Model
from cost_landmarks import PASSES, LandmarkModel, recorded
from cost_phases import ASSUMED, CLUSTERS, SIZES, WGMMA, Code, Size, structure
from kernels import HOPPER, write

import selfment


def modelled(
    folder: Path,
) -> tuple[list[Model], list[LandmarkModel], dict[str, cuda_plan.Plan]]:
    """Returns the models of each size and of each pass with landmarks, and plans of batches."""
    code, made = Code(), structure()
    device = cuda_plan.Device(folder, *HOPPER, code.occupancy)

    def plan(s: Size, tau: float | str = 0.2) -> cuda_plan.Plan:
        side = math.isqrt(s.n)
        # An automatic threshold reads a sample of the features, nothing else reads them.
        features = torch.empty(s.batch, s.n, 16 if tau == "auto" else s.d, dtype=torch.bfloat16)
        return device.plan(lambda: selfment.pseudo_label(features, (side, side), tau=tau))

    models = [Model(size, code, made, plan(size)) for size in SIZES]
    passes = [LandmarkModel(work, code, made, recorded(device, work)) for work in PASSES]
    for model in (*models, *passes):
        model.all()
    plans = {"a fixed tau": models[1].plan, 'tau="auto"': plan(SIZES[1], "auto")}
    return models, passes, plans


def report(
    models: list[Model],
    passes: list[LandmarkModel],
    plans: dict[str, cuda_plan.Plan],
    detail: bool,
) -> Iterator[str]:
    """Yields the tables in Markdown."""
    yield from labels(models)
    yield from landmarks(passes)
    yield "\n| launches of a batch of 32 | ours | memory set or copied | torch's operators | all |"
    yield "|---|---|---|---|---|"
    for name, plan in plans.items():
        sets = sum(launch.kernel in cuda_plan.MEMORY for launch in plan.launches)
        ours, others = len(plan.launches) - sets, sum(plan.operators.values())
        yield f"| {name} | {ours} | {sets} | {others} | **{plan.total}** |"
    for missing in dict.fromkeys(models[0].code.missing):
        yield f"\nnot found in the machine code, an assumption instead: {missing}"
    for kernel in models[0].unknown():
        yield f"\nlaunched, but counted by the gap before it only: {kernel}"
    if detail:
        for model in (*models, *passes):
            yield from phases(model)


def labels(models: list[Model]) -> Iterator[str]:
    """Yields the tables of labels."""
    names = list(dict.fromkeys(phase.kernel for phase in models[0].phases))
    yield f"| N, d, batch | label, us | {' | '.join(names)} | gaps | estimate by hand | with wgmma | and clusters |"  # noqa: E501
    yield "|---" * (len(names) + 6) + "|"
    for model in models:
        s = model.size
        cells = [f"{s.n}, {s.d}, {s.batch}", f"**{1e6 * model.seconds():.0f}**"]
        cells += [f"{1e6 * seconds:.1f}" for seconds in (*map(model.of, names), model.gaps())]
        cells += [s.by_hand, *(f"{1e6 * model.seconds(other):.0f}" for other in (WGMMA, CLUSTERS))]
        yield f"| {' | '.join(cells)} |"
    yield "\n| fiedler, us, by the blocks of a team | planned | others |\n|---|---|---|"
    for model in models:
        times = ", ".join(f"{team}: {1e6 * t:.1f}" for team, t in model.by_team().items())
        team = model.launch("solve").blocks // model.teams("solve")
        yield f"| {model.size.n}, batch {model.size.batch} | {team} | {times} |"


def landmarks(passes: list[LandmarkModel]) -> Iterator[str]:
    """Yields the tables of passes that join patches with landmarks."""
    kernels = list(dict.fromkeys(phase.kernel for phase in passes[0].phases))
    yield f"\n| N, m, d | pass, us | {' | '.join(kernels)} | gaps | copy of the features from the host |"  # noqa: E501
    yield "|---" * (len(kernels) + 4) + "|"
    for model in passes:
        w, times = model.work, (*map(model.of, kernels), model.gaps())
        times = (*times, 2.0 * w.n * w.d / ASSUMED.host)
        cells = " | ".join(f"{1e6 * seconds:.0f}" for seconds in times)
        yield f"| {w.n}, {w.m}, {w.d}: {w.name} | **{1e6 * model.seconds():.0f}** | {cells} |"
    yield f"\n| N, m, d | {' | '.join(passes[0].counted())} |"
    yield "|---" * (len(passes[0].counted()) + 1) + "|"
    for model in passes:
        w, counts = model.work, model.counted().values()
        cells = " | ".join(f"{count:.3g}" if count < 1e3 else f"{count:.0f}" for count in counts)
        yield f"| {w.n}, {w.m}, {w.d}: {w.name} | {cells} |"


def phases(model: Model) -> Iterator[str]:
    """Yields the grids of a model, and the counts of its phases."""
    s = model.size
    grids = ", ".join(
        f"{launch.kernel} {launch.blocks} x {launch.threads}, {launch.shared} bytes"
        for launch in dict.fromkeys(model.plan.launches)
        if launch.kernel not in cuda_plan.MEMORY
    )
    yield f"\nN = {s.n}, d = {s.d}, batch {s.batch}: {grids}\n"
    yield "| phase | us | bound by | warp instructions | FP64 | shared, KiB | L2, KiB | memory, KiB | products | barriers | meetings |"  # noqa: E501
    yield "|---" * 11 + "|"
    for p in model.phases:
        seconds, bound = p.seconds(ASSUMED, model.fences(p.kernel))
        yield (
            f"| {p.kernel}: {p.name} | {1e6 * seconds:.2f} | {bound} | {p.instructions:,.0f} | "
            f"{p.doubles:,.0f} | {p.shared / 1024:,.0f} | {p.cached / 1024:,.0f} | "
            f"{p.memory / 1024:,.0f} | {p.products:,.0f} | {p.barriers:,.0f} | "
            f"{p.meetings:,.0f} |"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detail", action="store_true", help="each phase of each size")
    parser.add_argument("--json", type=Path, metavar="F", help="the phases")
    parser.add_argument("--write", action="store_true", help="tables into docs/cuda.md")
    arguments = parser.parse_args()
    if lacks := sass.obstacle():
        sys.exit(lacks)
    with tempfile.TemporaryDirectory() as folder:
        models, passes, plans = modelled(Path(folder))
    print(f"{ASSUMED}\n{models[0].made}\n")
    print("\n".join(report(models, passes, plans, arguments.detail)))
    if arguments.write:
        write("cuda_cost.py", "\n".join(report(models, passes, plans, detail=False)))
    if arguments.json:
        rows = [
            asdict(phase) | {"n": m.size.n, "d": m.size.d, "us": 1e6 * m.of_phase(phase)}
            for m in (*models, *passes)
            for phase in m.phases
        ]  # fmt: skip
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
