"""Deletes each barrier, fence, wait, `volatile` and buffer turn of csrc/cuda, one at a time.

A release or acquire becomes an access that orders nothing.

Every mutant must be killed: by the race detector, by different results, or by the emulation (a
launch fails or does not end). Mutants that cannot matter are in ``HARMLESS``, with the reason.

    mutants.py [--work FOLDER] [TEXT ...]     # those whose "FILE:LINE: text" has one of the texts
    mutants.py --list
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from helpers import emulated, races  # noqa: E402

#: A pattern, its replacement, and the name of the mutation.
KINDS = [
    (r"(?<![\w])__syncthreads\(\);", "", "barrier"),
    (r"(local\(this\)->)?\bteam(_|\(\))?\.sync\(\);", "", "barrier of a team"),
    (r"(\bgraph(_|\(\))\.)?\bmeet\(\);", "", "barrier of a team"),
    (r"\b__syncwarp\([^()]*\);", "", "barrier of a warp"),
    (r"\b__threadfence(_block)?\(\);", "", "fence"),
    (r"\bwait_for_copies<[^;]*>\(\);", "", "wait"),
    (r"\bend_copies\(\);", "", "end of a group"),
    (r"\badd_release\((\w+)\);", r"atomicAdd(\1, 1u);", "release"),
    (r"\bload_acquire\((\w+)\)", r"*static_cast<const volatile unsigned*>(\1)", "acquire"),
    (r"\bvolatile ", "", "volatile"),
    (r"% k(Stages|Exchanges)\b", "% 1", "buffer turn"),
]

#: Mutants that cannot matter, by file, the line without blanks around it, and which of the equal
#: lines of the file it is, from 1: the reason.
HARMLESS: dict[tuple[str, str, int], str] = {}

#: The cases of race_cases.py that run a file, the cheapest first.
CASES = {
    "affinity.cu": ["labels", "full_lists", "dtypes"],
    "components.cu": ["components", "joint"],
    "degrees.cu": ["paint"],
    "fiedler.cu": ["labels", "merges", "lapack", "restarts", "tables", "eigenpairs"],
    "finish.cu": ["auto", "joint"],
    "ipo.cu": ["complements", "labels", "dtypes", "landmarks", "complements_of_blocks"],
    "landmarks.cu": ["landmarks"],
    "matvec.cu": ["paint"],
    "operand.cu": ["labels", "dtypes"],
    "paint.cu": ["paint"],
    "threshold.cu": ["auto"],
}
LIMIT = 300  # seconds for the cases of a mutant, which may hang


@dataclass(frozen=True)
class Mutant:
    """A line of a file, and its mutation."""

    file: str
    line: int
    text: str
    kind: str
    changed: str
    nth: int  # of the mutants of the file with this line, from 1

    @property
    def key(self) -> tuple[str, str, int]:
        """The mutant's key in ``HARMLESS``."""
        return self.file, self.text.strip(), self.nth

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.text.strip()}"


def mutants() -> Iterator[Mutant]:
    """Yields all mutants of csrc/cuda, except in code that is compiled only for a device."""
    for path in sorted((ROOT / "csrc/cuda").glob("*.cu*")):
        device_only = False
        equal: Counter[str] = Counter()
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("#if !defined(SELFMENT_EMULATE)"):
                device_only = True
            elif line.startswith("#endif"):
                device_only = False
            code = line.partition("//")[0]
            if device_only or "asm " in code:
                continue
            for pattern, instead, kind in KINDS:
                for match in re.finditer(pattern, code):
                    # An empty statement keeps the body of a loop or a condition.
                    put = match.expand(instead) or (";" if match[0].endswith(";") else "")
                    changed = line[: match.start()] + put + line[match.end() :]
                    equal[line.strip()] += 1
                    nth = equal[line.strip()]
                    yield Mutant(path.name, number, line, kind, changed, nth)


def sources_of(file: str) -> list[str]:
    """Returns the .cu files that include a file, directly or indirectly."""
    folder = ROOT / "csrc/cuda"
    texts = {path.name: path.read_text() for path in folder.glob("*.cu*")}
    users, found = {file}, {file}
    while users:
        users = {n for n, t in texts.items() if any(f'"{u}"' in t for u in users)} - found
        found |= users
    return sorted(name for name in found if name.endswith(".cu"))


class Builder:
    """Builds the module with the race detector, in a copy of the sources; one object per source."""

    def __init__(self, work: Path) -> None:
        self.work = work
        for folder in ("csrc", "tests/emulation"):
            shutil.copytree(ROOT / folder, work / folder, dirs_exist_ok=True)
        shutil.copytree(ROOT / "selfment", work / "selfment", dirs_exist_ok=True)
        emulated.ROOT, emulated.EMULATION = work, work / "tests/emulation"
        emulated.FLAGS[-2:] = [f"-I{work / 'tests/emulation'}", f"-I{work / 'csrc'}"]
        self.module = emulated.build(work / "build", emulated.RACES)

    def rebuild(self, names: list[str]) -> None:
        emulated.build(self.work / "build", emulated.RACES, names)

    def run(self, cases: list[str]) -> tuple[str, list[str]]:
        """Runs cases; returns their digests or an error, and the races."""
        log = self.work / "log"
        log.unlink(missing_ok=True)
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"SELFMENT_RACE_LOG": str(log), "PYTHONPATH": path}
        command = [sys.executable, ROOT / "tests/emulation/race_cases.py", self.module, *cases]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
            output = done.stdout if done.returncode == 0 else f"failed: {done.stderr[-300:]}"
        except subprocess.TimeoutExpired:
            output = "failed: no end"
        return output, races.reports(log)


def verdict(builder: Builder, mutant: Mutant, expected: dict[str, str]) -> str:
    """Returns what kills the mutant, or an empty string if it survives."""
    path = builder.work / "csrc/cuda" / mutant.file
    original = path.read_text()
    lines = original.splitlines()
    lines[mutant.line - 1] = mutant.changed
    users = sources_of(mutant.file)
    try:
        path.write_text("\n".join(lines) + "\n")
        try:
            builder.rebuild(users)
        except RuntimeError:
            return "compiler"
        for case in dict.fromkeys(case for user in users for case in CASES[user]):
            output, found = builder.run([case])
            if found:
                return f"detector: {found[0]}"
            if output.startswith("failed"):
                return f"emulation: {output}"
            if output != expected[case]:
                return f"results of {case}"
        return ""
    finally:
        path.write_text(original)
        builder.rebuild(users)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--work", type=Path, help="a folder for the builds")
    parser.add_argument("texts", nargs="*", help="only mutants that hold one of them")
    options = parser.parse_args()
    every = list(mutants())
    known = {mutant.key for mutant in every}
    stale = [str(key) for key in HARMLESS if key not in known]
    if stale:
        print("no such line any more, but it is listed as harmless:", *stale, sep="\n  ")
        return 1
    chosen = [m for m in every if not options.texts or any(t in str(m) for t in options.texts)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    start, survivors = time.time(), 0
    with tempfile.TemporaryDirectory() as temporary:
        builder = Builder((options.work or Path(temporary)).resolve())
        needed = dict.fromkeys(c for m in chosen for u in sources_of(m.file) for c in CASES[u])
        expected = {}
        for case in needed:
            expected[case], found = builder.run([case])
            if found or expected[case].startswith("failed"):
                print(f"without a mutant, {case}:", expected[case], *found, sep="\n  ")
                return 1
        for mutant in chosen:
            reason = HARMLESS.get(mutant.key)
            if reason is not None:
                print(f"harmless  {mutant}\n          {reason}", flush=True)
                continue
            killer = verdict(builder, mutant, expected)
            survivors += killer == ""
            print(f"{'killed  ' if killer else 'SURVIVED'}  {mutant}", flush=True)
            if killer:
                print(f"          {killer}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived, in {time.time() - start:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
