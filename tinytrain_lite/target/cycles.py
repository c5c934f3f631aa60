"""Estimated Cortex-M7 cycles of executed code.

The emulator says how often each straight run of code was executed; this module says what one execution
costs. `block_cycles` issues the instructions of a block in order, at most two a cycle, by the tables and
pairing rules of `tinytrain_lite.target.cortex_m7`; `estimate` multiplies by the counts and adds the
branch mispredictions that the counts imply. The result is an **estimate**: cache misses, flash wait
states and unaligned loads are not in it. `course/cycle_model.md` documents the model, its sources and its
error against measured boards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tinytrain_lite.target.branches import minority_directions
from tinytrain_lite.target.cortex_m7 import (
    AVAILABLE,
    FLAG_LEAD_CYCLES,
    FP_ADD_AFTER_MAC_CYCLES,
    MISPREDICT_CYCLES,
    MISPREDICT_CYCLES_EARLY_FLAGS,
    READ_STAGE,
    Instruction,
    bank_conflict,
    pair_conflict,
)
from tinytrain_lite.target.thumb import decode

ProfileRow = tuple[int, int, Hashable, int]  # block address, bytes, region, executions
ReadCode = Callable[[int, int], bytes]  # (address, bytes) -> machine code
READY = -100  # issue cycle of values from before the block: long enough ago for any port
Symbol = tuple[int, int, str]  # function address, bytes, name


@dataclass(frozen=True)
class Issue:
    """Where one instruction went: the row of an explanation."""

    instruction: Instruction
    cycle: int  # of issue, from 0 at the start of the block
    slot: int  # 0 older, 1 younger
    reason: str  # why it did not issue earlier; empty if nothing held it back
    bank_conflict: float  # expected cycles lost to a bank shared with the other load of its cycle


class _Pipeline:
    """Issues instructions in order and remembers when each register's value is available."""

    def __init__(self) -> None:
        self.issues: list[Issue] = []
        self.free_cycle = 0  # first cycle whose older slot is free
        self._produced: dict[str, tuple[int, str]] = {}  # register -> (issue cycle, kind of result)
        self._fp_adder_free = 0

    def _operand_cycle(self, register: str, port: str) -> int:
        """First cycle in which an instruction may issue that reads ``register`` through ``port``."""
        issued, kind = self._produced.get(register, (READY, "ALU"))
        available = AVAILABLE[kind]
        return issued + available.get(port, available["*"]) - READ_STAGE[port]

    def issue(self, instruction: Instruction) -> None:
        last = self.issues[-1] if self.issues else None
        cycle, slot, reason = self.free_cycle, 0, ""
        if last and last.slot == 0:
            reason = pair_conflict(last.instruction, instruction)
            if not reason:
                cycle, slot = last.cycle, 1

        waits = [
            (self._operand_cycle(register, port), f"waits for {register} ({self._produced[register][1]})")
            for register, port in instruction.reads
            if register in self._produced
        ]
        if instruction.pipe == "fp":
            waits.append((self._fp_adder_free, "FPU MAC in flight"))
        ready, why = max(waits, default=(0, ""))
        if ready > cycle:
            cycle, slot, reason = max(ready, self.free_cycle), 0, why

        shared = bank_conflict(last.instruction, instruction) if last and slot == 1 else 0.0
        self.issues.append(Issue(instruction, cycle, slot, reason, shared))
        self._record(instruction, cycle, slot, last)

    def _record(self, instruction: Instruction, cycle: int, slot: int, last: Issue | None) -> None:
        in_early_alu = (
            (instruction.early == "any" or instruction.early == "older" and slot == 0)
            and all(self._operand_cycle(r, "early") <= cycle for r, _ in instruction.reads)
            and not (slot == 1 and last is not None and last.instruction.inline_shift)
        )
        done = cycle + instruction.cycles - 1
        for register, kind in instruction.writes:
            if in_early_alu and register != "cpsr":  # flags always come from the late ALU [J]
                kind = "early ALU"
            self._produced[register] = (done, kind)
        self.free_cycle = max(self.free_cycle, cycle + instruction.cycles)
        if instruction.pipe == "fp mac":
            self._fp_adder_free = cycle + FP_ADD_AFTER_MAC_CYCLES

    @property
    def cycles(self) -> float:
        """Cycles until the next instruction can issue in the older slot, expected bank conflicts included."""
        return self.free_cycle + sum(issue.bank_conflict for issue in self.issues)


def _run(instructions: Iterable[Instruction]) -> _Pipeline:
    pipeline = _Pipeline()
    for instruction in instructions:
        pipeline.issue(instruction)
    return pipeline


@dataclass(frozen=True)
class Block:
    """A straight run of code ending in a branch, and the cost of executing it once."""

    instructions: tuple[Instruction, ...]
    cycles: float  # with its branch, if any, predicted
    mispredict_cycles: int  # more, when its branch was not

    @property
    def end(self) -> int:
        return self.instructions[-1].end

    @property
    def branch(self) -> Instruction | None:
        last = self.instructions[-1]
        return last if last.jumps else None


@lru_cache(maxsize=65536)
def analyse_block(code: bytes, address: int) -> Block:
    """Decode and time a block.

    A block whose branch goes back to its own start is a loop: its cost is that of a further iteration,
    so that results still in flight at the end of one iteration delay the next.

    Args:
        code: machine code of the block, little-endian Thumb-2.
        address: its address, Thumb bit clear.

    Raises:
        ValueError: if the bytes are empty or are not Cortex-M7 instructions.
    """
    if not code:
        raise ValueError(f"block at 0x{address:08x} is empty: a profile row must cover at least 2 bytes")
    instructions = decode(code, address)
    pipeline = _run(instructions)
    cycles = pipeline.cycles
    last = instructions[-1]
    if last.target == address:
        cycles = _run(instructions * 2).cycles - cycles
    flags = [i.cycle for i in pipeline.issues if any(r == "cpsr" for r, _ in i.instruction.writes)]
    lead = pipeline.issues[-1].cycle - flags[-1] if flags else FLAG_LEAD_CYCLES
    early = lead >= FLAG_LEAD_CYCLES and not last.reads  # CBZ tests its register as late as can be
    return Block(instructions, cycles, MISPREDICT_CYCLES_EARLY_FLAGS if early else MISPREDICT_CYCLES)


def block_cycles(code: bytes, address: int) -> float:
    """Estimated cycles of one execution of a block, its branch predicted. See `analyse_block`."""
    return analyse_block(code, address).cycles


@dataclass(frozen=True)
class Explanation:
    """How a block issues, instruction by instruction. Prints as a table."""

    block: Block
    issues: tuple[Issue, ...]

    def __str__(self) -> str:
        head = f"{'cycle':>5} {'slot':>4}  {'pipe':8} {'instruction':40} held back by"
        lines = [head, "-" * len(head)]
        for issue in self.issues:
            reasons = [issue.reason] if issue.reason else []
            if issue.bank_conflict:
                reasons.append(f"bank conflict, {issue.bank_conflict:g} cycle expected")
            instruction = issue.instruction
            where = f"{issue.cycle:5} {issue.slot:4}  {instruction.pipe:8} {instruction.text:40}"
            lines.append(f"{where} {'; '.join(reasons)}".rstrip())
        count, cycles = len(self.issues), self.block.cycles
        summary = f"{cycles:g} cycles (estimate), {count} instructions, {count / cycles:.2f} a cycle"
        if self.block.branch and self.block.branch.conditional:
            summary += f"; {self.block.mispredict_cycles} more if the branch is mispredicted"
        return "\n".join([*lines, summary])


def explain_block(code: bytes, address: int) -> Explanation:
    """Cycle, slot, pipe and stall reason of each instruction of a block; arguments of `analyse_block`.

    For a loop the rows show its first iteration, the cycles below them those of a further one.
    """
    block = analyse_block(code, address)
    return Explanation(block, tuple(_run(block.instructions).issues))


@dataclass(frozen=True)
class BlockCost:
    """One profile row with its estimate."""

    address: int
    size: int  # bytes
    region: Hashable
    executions: int
    instructions: int  # retired, all executions
    issue_cycles: float  # all executions, branches predicted
    mispredict_cycles: float  # all executions

    @property
    def cycles(self) -> float:
        return self.issue_cycles + self.mispredict_cycles


@dataclass(frozen=True)
class Estimate:
    """Estimated cycles of a run. ``cycles`` is the sum of ``costs``; prints with the word *estimate*."""

    costs: tuple[BlockCost, ...]

    @property
    def cycles(self) -> int:
        return round(sum(cost.cycles for cost in self.costs))

    @property
    def instructions(self) -> int:
        """Instructions the profile retired, those of an IT block that did nothing included."""
        return sum(cost.instructions for cost in self.costs)

    def by_region(self) -> dict[Hashable, int]:
        """Cycles of each region of the profile, most expensive first."""
        return _summed((cost.region, cost.cycles) for cost in self.costs)

    def by_function(self, symbols: Sequence[Symbol]) -> dict[str, int]:
        """Cycles of each function, most expensive first; code under no symbol counts as ``?``."""
        ordered = sorted(symbols)

        def function(address: int) -> str:
            return next((name for at, size, name in ordered if at <= address < at + size), "?")

        return _summed((function(cost.address), cost.cycles) for cost in self.costs)

    def __str__(self) -> str:
        return f"{self.cycles:,} cycles (estimate)"


def _summed(pairs: Iterable[tuple[Hashable, float]]) -> dict:
    total: dict[Hashable, float] = defaultdict(float)
    for key, cycles in pairs:
        total[key] += cycles
    return {key: round(cycles) for key, cycles in sorted(total.items(), key=lambda item: -item[1])}


def estimate(rows: Iterable[ProfileRow], read_code: ReadCode) -> Estimate:
    """Estimate the cycles of a profiled run.

    Args:
        rows: (address, size in bytes, region, executions) of each straight run of code that was entered
            at ``address`` and left by the branch at its end. Regions are the caller's: a layer, a phase,
            anything hashable; mispredictions are counted within a region.
        read_code: returns ``size`` bytes of machine code at an address.

    Raises:
        ValueError: if a row's bytes are not Cortex-M7 instructions.
    """
    by_region: dict[Hashable, list[tuple[Block, ProfileRow]]] = defaultdict(list)
    for row in rows:
        address, size, region, _ = row
        by_region[region].append((analyse_block(bytes(read_code(address, size)), address), row))

    costs = []
    for region, counted in by_region.items():
        minority = minority_directions((block, row[0], row[3]) for block, row in counted)
        for block, (address, size, _, executions) in counted:
            missed = minority.get(block.branch.address, 0.0) if block.branch else 0.0
            costs.append(
                BlockCost(
                    address,
                    size,
                    region,
                    executions,
                    instructions=len(block.instructions) * executions,
                    issue_cycles=block.cycles * executions,
                    mispredict_cycles=block.mispredict_cycles * executions * missed,
                )
            )
    return Estimate(tuple(costs))
