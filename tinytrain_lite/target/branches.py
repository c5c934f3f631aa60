"""How often each conditional branch went its less frequent way, from block counts alone.

A profile counts how often each straight run of code was entered, not where it went next. Flow
conservation gives most of it back: executions of a branch = taken + not taken, and entries of a block = sum
of the branches leading there. Where that leaves a branch open, the largest minority the counts allow is
assumed.

A two-bit predictor, once it has settled on the usual direction, misses the other one: the minority is the
estimate of mispredictions (a loop of any length costs one miss at its exit).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from tinytrain_lite.target.cortex_m7 import Instruction


class StraightRun(Protocol):
    """What is needed to know of a block."""

    @property
    def end(self) -> int: ...

    @property
    def branch(self) -> Instruction | None: ...


Edge = tuple[int, str]  # (address of the branch, "taken" or "not taken")


def minority_directions(counted: Iterable[tuple[StraightRun, int, int]]) -> dict[int, float]:
    """Fraction, 0 to 0.5, of a branch's executions that went its rarer way, by the branch's address.

    Args:
        counted: (block, its address, executions) of one region of a profile.
    """
    entries: dict[int, int] = defaultdict(int)  # block address -> times entered
    executed: dict[int, int] = defaultdict(int)  # conditional branch -> executions
    ways: dict[int, dict[str, int | None]] = {}  # conditional branch -> direction -> block address
    flow: dict[Edge, float] = {}  # directions with a known count
    known_in: dict[int, float] = defaultdict(float)  # entries by unconditional ways
    edges_in: dict[int, list[Edge]] = defaultdict(list)
    open_blocks = set()  # also entered by returns, which the counts do not tell apart

    for block, address, executions in counted:
        entries[address] += executions
        branch = block.branch
        if branch is None:
            known_in[block.end] += executions
        elif branch.conditional:
            executed[branch.address] += executions
            ways[branch.address] = {"taken": branch.target, "not taken": block.end}
        elif branch.target is not None:
            known_in[branch.target] += executions
        if branch is not None and branch.returns:
            open_blocks.add(block.end)

    for address, way in ways.items():
        for direction, to in way.items():
            if to is not None:
                edges_in[to].append((address, direction))

    def settle(edge: Edge, count: float) -> None:
        address, direction = edge
        count = min(max(count, 0.0), float(executed[address]))
        other = "taken" if direction == "not taken" else "not taken"
        flow[edge] = count
        flow[address, other] = executed[address] - count

    while True:
        solvable = []
        for to, edges in edges_in.items():
            unknown = [edge for edge in edges if edge not in flow]
            if len(unknown) == 1 and to not in open_blocks:
                solvable.append((unknown[0], to))
        if not solvable:
            break
        # A block after a branch is entered by known ways only; a branch target may also be a function's
        # start, called from anywhere. So the former is believed first.
        edge, to = min(solvable, key=lambda found: found[0][1])
        settle(edge, entries[to] - known_in[to] - sum(flow.get(other, 0.0) for other in edges_in[to]))

    minority = {}
    for address, count in executed.items():
        if not count:
            continue
        if (address, "taken") in flow:
            rarer = min(flow[address, "taken"], flow[address, "not taken"])
        else:
            reachable = [entries[to] for to in ways[address].values() if to is not None]
            rarer = min([*reachable, count / 2])
        minority[address] = rarer / count
    return minority
