"""Analyses machine code of CUDA kernels: instructions, the memory they access, and loops."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_TARGET = re.compile(r"`\((\.L_\w+)\)")

# Opcodes that access memory, by the space of the address.
_SPACES = {
    "LD": "generic",
    "ST": "generic",
    "ATOM": "generic",
    "LDG": "global",
    "STG": "global",
    "ATOMG": "global",
    "RED": "global",
    "REDG": "global",
    "LDS": "shared",
    "LDSM": "shared",
    "STS": "shared",
    "ATOMS": "shared",
    "LDGSTS": "global to shared",
    "LDL": "local",
    "STL": "local",
    "LDC": "constant",
}


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``target`` is the label of a branch or the name of a called function."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def space(self) -> str:
        """The memory space that it accesses; empty for others, and for loads that only wait."""
        return "" if self.operands == "RZ, [RZ]" else _SPACES.get(self.name, "")

    @property
    def loads(self) -> bool:
        """True if it reads memory into registers."""
        return bool(self.space) and self.name in ("LD", "LDG", "LDS", "LDSM", "LDL")

    @property
    def stores(self) -> bool:
        """True if it writes registers to memory."""
        return self.name in ("ST", "STG", "STS", "STL")

    @property
    def width(self) -> int:
        """The bytes that a thread reads or writes."""
        parts = self.opcode.split(".")
        if self.name == "LDSM":
            return 4 * int(parts[-1])
        sizes = {"128": 16, "64": 8, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
        return next((sizes[part] for part in parts if part in sizes), 4)


@dataclass
class Loop:
    """A natural loop: its instructions, and its depth in nested loops of the function."""

    instructions: list[Instruction]
    depth: int
    innermost: bool
    usual: list[Instruction]  # without the path for unaligned rows, and without padding

    def count(self, *names: str) -> int:
        """Returns the number of instructions with one of the names."""
        return sum(i.name in names for i in self.instructions)


@dataclass
class Function:
    """The code of a kernel, or of a function that it calls."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # the index of the next instruction

    @cached_property
    def loops(self) -> list[Loop]:
        """Returns the natural loops; loops with the same head count as one."""
        starts, successors = self._blocks()
        bodies = _natural_loops(successors)
        loops = []
        for head, body in bodies.items():
            around = sum(body <= other for other in bodies.values())
            inner = not any(other < body for other in bodies.values())
            code = [i for block in sorted(body) for i in self._block(starts, block)]
            usual = self._usual(starts, successors, head, body)
            loops.append(Loop(code, around, inner, usual))
        return loops

    def _usual(
        self, starts: list[int], successors: list[list[int]], head: int, body: set[int]
    ) -> list[Instruction]:
        """Returns a loop's code without rare cases, and without blocks reached only from those.

        Rare cases are calls (slow paths of divisions and roots) and, in loops that read pieces of
        16 bytes, the element-wise reads of unaligned rows, and divisions, which rounding needs once
        in a million.
        """
        code = {block: self._block(starts, block) for block in body}
        wide = any(i.width == 16 and i.name in ("LDG", "LD") for b in body for i in code[b])

        def rare(block: int) -> bool:
            called = any(i.name == "CALL" for i in code[block])
            narrow = any(i.loads and i.width <= 2 for i in code[block])
            divides = any(i.opcode == "MUFU.RCP64H" for i in code[block])
            return block != head and (called or (wide and (narrow or divides)))

        kept = {block for block in body if not rare(block)}
        before: dict[int, list[int]] = {block: [] for block in kept}
        for block in kept:
            for to in successors[block]:
                if to in kept:
                    before[to].append(block)
        ends = [block for block in kept if head in successors[block]]
        forward = _reached([head], lambda block: [b for b in successors[block] if b in kept])
        found = forward & _reached(ends, lambda block: before[block])
        return [i for b in sorted(found) for i in code[b] if i.name != "NOP"]

    def _block(self, starts: list[int], block: int) -> list[Instruction]:
        return self.instructions[starts[block] : (*starts, len(self.instructions))[block + 1]]

    def _blocks(self) -> tuple[list[int], list[list[int]]]:
        """Returns the first instruction and the successors of each basic block."""
        ends = {"BRA", "EXIT", "RET", "BRX", "JMP"}
        starts = {0, *self.labels.values()}
        starts |= {i + 1 for i, code in enumerate(self.instructions) if code.name in ends}
        first = sorted(start for start in starts if start < len(self.instructions))
        number = {start: block for block, start in enumerate(first)}
        successors: list[list[int]] = []
        for block, _ in enumerate(first):
            last = self._block(first, block)[-1]
            after = [block + 1] if block + 1 < len(first) else []
            if last.name in ("EXIT", "RET", "JMP", "BRX") and not last.predicate:
                after = []
            # Only a diverged warp executes the target of BRA.DIV.
            if last.name == "BRA" and "DIV" not in last.opcode:
                named = _TARGET.search(last.operands)
                always = not last.predicate and last.operands.startswith("`")
                to = number.get(self.labels.get(named[1], -1)) if named else None
                after = ([] if always else after) + ([] if to is None else [to])
            successors.append(after)
        return first, successors


@dataclass
class Kernel:
    """A kernel for an architecture: its resources as ptxas reports them, and its code."""

    source: str
    arch: str
    symbol: str
    registers: int = 0
    barriers: int = 0
    shared: int = 0  # bytes, static
    stack: int = 0  # bytes
    spills: int = 0  # bytes stored and loaded
    functions: list[Function] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The demangled name: ``affinity: prepare<float>``."""
        return f"{Path(self.source).stem}: {readable(self.symbol)}"

    @property
    def instructions(self) -> list[Instruction]:
        """The instructions of all functions, without padding."""
        code = [i for function in self.functions for i in function.instructions]
        return [i for i in code if i.name != "NOP"]

    def function(self, name: str) -> Function:
        """Returns the function of this name."""
        return next(f for f in self.functions if f.name == name)

    def memory(self) -> Counter[tuple[str, str, int]]:
        """Returns the numbers of loads and stores by space and width."""
        found: Counter[tuple[str, str, int]] = Counter()
        for i in self.instructions:
            if i.loads or i.stores:
                found["load" if i.loads else "store", i.space, i.width] += 1
        return found


def readable(symbol: str) -> str:
    """Demangles the name of a function or kernel, with its template arguments."""
    rest = symbol.rpartition("$")[2]
    if not rest.startswith("_Z"):
        return rest
    rest, name = re.sub(r"^_ZN?K?", "", rest), ""
    while part := re.match(r"\d+", rest):
        end = part.end() + int(part[0])
        name, rest = rest[part.end() : end], rest[end:]
        if rest.startswith("I"):
            arguments, rest = _template_arguments(rest[1:])
            name += f"<{', '.join(arguments)}>"
    return name


def _template_arguments(rest: str) -> tuple[list[str], str]:
    """Parses the template arguments of these kernels; returns them and the rest of the name."""
    known = {"f": "float", "d": "double", "Lb1E": "true", "Lb0E": "false"}
    found: list[str] = []
    while rest and not rest.startswith("E"):
        half = re.match(r"N\w*?\d(B?Float16)E", rest)
        code = half[0] if half else next((code for code in known if rest.startswith(code)), "")
        if not code:
            return [*found, "..."], ""
        found.append(half[1] if half else known[code])
        rest = rest[len(code) :]
    return found, rest[1:]


def resident_blocks(registers: int, threads: int, shared: int) -> int:
    """Returns the number of blocks of a kernel that fit on a multiprocessor of sm_90.

    ``registers`` are per thread, ``shared`` bytes per block. A multiprocessor has 65,536 registers,
    228 KiB of shared memory, of which a block uses 1 KiB more than it requests, and can run 2048
    threads and 32 blocks.
    """
    each = -(-registers // 8) * 8 * threads
    return min(65536 // each, (228 << 10) // (shared + 1024), 2048 // threads, 32)


# --- Loops ---


def _reached(start: Sequence[int], after: Callable[[int], Sequence[int]]) -> set[int]:
    """Returns all blocks that are reachable from one."""
    found, left = set(start), list(start)
    while left:
        for block in after(left.pop()):
            if block not in found:
                found.add(block)
                left.append(block)
    return found


def _natural_loops(successors: list[list[int]]) -> dict[int, set[int]]:
    """Returns the blocks of each loop by its head, from the successors of all blocks."""
    order: list[int] = []
    seen = {0}
    stack = [(0, iter(successors[0]))]
    while stack:  # depth first
        block, after = stack[-1]
        for to in after:
            if to not in seen:
                seen.add(to)
                stack.append((to, iter(successors[to])))
                break
        else:
            stack.pop()
            order.append(block)
    order.reverse()
    place = {block: i for i, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for to in successors[block]:
            before[to].append(block)
    # Cooper, Harvey and Kennedy, A simple, fast dominance algorithm, 2001.
    dominator = {0: 0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [b for b in before[block] if b in dominator]
            common = known[0]
            for other in known[1:]:
                while common != other:
                    while place[common] > place[other]:
                        common = dominator[common]
                    while place[other] > place[common]:
                        other = dominator[other]
            if dominator.get(block) != common:
                dominator[block] = common
                changed = True

    def dominates(head: int, block: int) -> bool:
        while block not in (head, 0):
            block = dominator[block]
        return block == head

    bodies: dict[int, set[int]] = {}
    for block in order:
        for head in successors[block]:
            if not dominates(head, block):
                continue
            body = bodies.setdefault(head, {head})
            left = [block]
            while left:
                inside = left.pop()
                if inside not in body:
                    body.add(inside)
                    left += before[inside]
    return bodies
