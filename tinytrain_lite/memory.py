"""The memory plan: lifetimes -> one arena, offsets proved disjoint.

Arena: everything that lives only within a step (activations, saved activations, masks, gradients, kernel scratch).
Outside it, in static SRAM: parameters and their fractions, the exponent state of each gradient, the outputs.

A `Solver` turns buffers into offsets; `greedy_by_size` is the default. Whatever a solver returns is checked
by `check_plan`, which knows nothing of how it was made, and reported beside `lower_bound`, the largest sum of
bytes alive at once, which no plan can beat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tinytrain_lite.errors import GraphError
from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.ops.base import definition

ALIGNMENT = 4  # int32 scratch and paired int16 loads
STATE_BYTES = 8  # tt_dfp_state: exponent and peak
SCALAR_BYTES = 8  # tt_learning_rate and tt_step


@dataclass(eq=False)
class Buffer:
    """Bytes that are alive from op `first` to op `last` (inclusive); -1 is before the first op.

    Usually one tensor; several if ops work in place; none for the scratch of one op.
    """

    name: str
    size: int
    first: int
    last: int
    tensors: list[Tensor] = field(default_factory=list)

    def overlaps(self, other: Buffer) -> bool:
        """Alive at the same time as `other`."""
        return self.first <= other.last and other.first <= self.last


@dataclass
class Plan:
    """Offsets in bytes from the start of the arena, by tensor name; kernel scratch by op index."""

    buffers: list[Buffer]
    offsets: dict[str, int]  # by buffer name
    arena_bytes: int
    lower_bound: int
    live: list[int]  # bytes alive during each op

    def __post_init__(self) -> None:
        self._home = {t.name: b for b in self.buffers for t in b.tensors}

    def offset(self, tensor: Tensor) -> int:
        if tensor.rows_of is not None:
            return self.offset(tensor.rows_of) + tensor.first_row * tensor.nbytes // tensor.shape[0]
        return self.offsets[self._home[tensor.name].name]

    def scratch_offset(self, index: int) -> int:
        """Offset of the scratch of op number `index`."""
        return self.offsets[f"scratch{index}"]


def static_bytes(graph: Graph) -> int:
    """SRAM the generated C of a training graph holds outside the arena, as model.c.j2 declares it.

    Parameters, fractions and outputs, each on a word boundary; exponent and peak of every gradient; the label and
    other scalar arguments; the learning rate and the step count. The firmware's own variables come on top.
    """
    arrays = [t for t in graph.tensors.values() if t.role in ("param", "output", "argument") and t.aliases is None]
    states = sum(STATE_BYTES for t in graph.tensors.values() if t.dtype == "dfp16")
    return sum(align(t.nbytes) for t in arrays) + states + SCALAR_BYTES


Solver = Callable[[list[Buffer]], dict[str, int]]


def align(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def buffers_of(graph: Graph) -> list[Buffer]:
    """One buffer per arena tensor and its views, merged where an op works in place; and one per op with scratch."""
    first: dict[str, int] = {t.name: -1 for t in graph.by_role("input")}
    last: dict[str, int] = dict(first)
    for i, op in enumerate(graph.ops):
        for t in op.inputs.values():
            last[t.name] = i
        for t in op.outputs.values():
            first[t.name] = i
            last.setdefault(t.name, i)
    home: dict[str, Buffer] = {}
    for t in graph.tensors.values():
        if t.role in ("value", "input") and t.name in first:
            home[t.name] = Buffer(t.name, align(t.nbytes), first[t.name], last[t.name], [t])
    for name in list(home):
        if (whole := graph.tensors[name].rows_of) is not None:
            _merge(home, home[whole.name], home[name])
    for i, op in enumerate(graph.ops):
        for out_role, in_role in definition(op.kind).in_place(op):
            out, source = op.outputs[out_role], op.inputs[in_role]
            if out.name in home and source.name in home and _may_share(graph, home, out, source, i, last):
                _merge(home, home[source.name], home[out.name])
                break
    merged = list({id(b): b for b in home.values()}.values())
    for i, op in enumerate(graph.ops):
        if scratch := definition(op.kind).scratch_bytes(op):
            merged.append(Buffer(f"scratch{i}", align(scratch), i, i))
    return merged


def _may_share(
    graph: Graph, home: dict[str, Buffer], out: Tensor, source: Tensor, index: int, last: dict[str, int]
) -> bool:
    """The source must die in this op, and be its only user in the buffer; images keep their own bytes."""
    roles = [r for r, t in graph.ops[index].inputs.items() if t is source]
    same_buffer = home[source.name] is home[out.name]
    is_view = out.rows_of is not None or source.rows_of is not None
    dies = last[source.name] == index and home[source.name].last == index
    return dies and len(roles) == 1 and not same_buffer and not is_view


def _merge(home: dict[str, Buffer], into: Buffer, other: Buffer) -> None:
    into.size = max(into.size, other.size)
    into.first, into.last = min(into.first, other.first), max(into.last, other.last)
    into.tensors += other.tensors
    for t in other.tensors:
        home[t.name] = into


def live_bytes(graph: Graph) -> list[int]:
    """Arena bytes alive during each op, in-place ops counted once."""
    return _live(buffers_of(graph), len(graph.ops))


def _live(buffers: list[Buffer], count: int) -> list[int]:
    live = [0] * max(count, 1)
    for b in buffers:
        for i in range(max(b.first, 0), b.last + 1):
            live[i] += b.size
    return live


def greedy_by_size(buffers: list[Buffer]) -> dict[str, int]:
    """Largest buffer first, each at the lowest offset where it meets no neighbour in time (Pisarchyk & Lee 2020)."""
    placed: list[tuple[int, Buffer]] = []
    for b in sorted(buffers, key=lambda b: (-b.size, b.first, b.name)):
        offset = 0
        for start, other in sorted(((o, p) for o, p in placed if p.overlaps(b)), key=lambda item: item[0]):
            if start - offset >= b.size:
                break
            offset = max(offset, start + other.size)
        placed.append((offset, b))
    return {b.name: offset for offset, b in placed}


def make_plan(graph: Graph, solver: Solver = greedy_by_size) -> Plan:
    """Plan the arena of a scheduled graph. Raises GraphError if the solver's plan overlaps."""
    buffers = buffers_of(graph)
    offsets = solver(buffers)
    live = _live(buffers, len(graph.ops))
    arena = max((offsets[b.name] + b.size for b in buffers), default=0)
    plan = Plan(buffers, offsets, arena, max(live), live)
    check_plan(graph, plan)
    return plan


def check_plan(graph: Graph, plan: Plan) -> None:
    """Independent check: replay the schedule byte by byte, and refuse a plan in which anybody's bytes are taken.

    Every op claims the bytes of its outputs and scratch; every byte it reads must still belong to the tensor
    it was written as. An in-place output may take over its own input's bytes, and nobody else's. A view is its whole.
    Raises GraphError naming the op and both tensors.
    """
    owners = _Owners(plan.arena_bytes)
    for t in graph.by_role("input"):
        owners.claim(plan.offset(t), t.nbytes, t.name)
    for i, op in enumerate(graph.ops):
        allowed = {(o, s) for o, s in definition(op.kind).in_place(op)}
        scratch = definition(op.kind).scratch_bytes(op)
        during = [(role, t) for role, t in op.outputs.items() if t.role == "value"]
        for role, t in op.inputs.items():
            if t.role not in ("value", "input"):
                continue
            start = plan.offset(t)
            if strangers := owners.strangers(start, t.nbytes, _whole(t).name):
                raise GraphError(
                    f"memory plan: op '{op.name}' ({op.kind}) reads {role}='{t.name}', overwritten by {strangers}"
                )
            for out_role, out in during:
                if _intersect(start, t.nbytes, plan.offset(out), out.nbytes) and (out_role, role) not in allowed:
                    raise GraphError(
                        f"memory plan: op '{op.name}' ({op.kind}) writes '{out.name}' over its input '{t.name}'"
                    )
            if scratch and _intersect(start, t.nbytes, plan.scratch_offset(i), scratch):
                raise GraphError(f"memory plan: scratch of op '{op.name}' ({op.kind}) lies over its input '{t.name}'")
        if scratch:
            owners.claim(plan.scratch_offset(i), scratch, f"scratch of {op.name}")
        for _, t in during:
            if scratch and _intersect(plan.offset(t), t.nbytes, plan.scratch_offset(i), scratch):
                raise GraphError(f"memory plan: scratch of op '{op.name}' ({op.kind}) lies over its output '{t.name}'")
            owners.claim(plan.offset(t), t.nbytes, _whole(t).name)


class _Owners:
    """Who wrote each byte of the arena last."""

    def __init__(self, arena_bytes: int):
        self.owner = np.zeros(arena_bytes, np.int32)  # indices into `names`
        self.names: list[str | None] = [None]
        self.index: dict[str, int] = {}

    def claim(self, start: int, size: int, name: str) -> None:
        if name not in self.index:
            self.index[name] = len(self.names)
            self.names.append(name)
        self.owner[start : start + size] = self.index[name]

    def strangers(self, start: int, size: int, name: str) -> set[str | None]:
        """Owners of these bytes other than `name`; None for a byte that nobody has written."""
        held = self.owner[start : start + size]
        return {self.names[i] for i in np.unique(held[held != self.index.get(name)])}


def _whole(t: Tensor) -> Tensor:
    return t if t.rows_of is None else t.rows_of


def _intersect(a: int, a_size: int, b: int, b_size: int) -> bool:
    return a < b + b_size and b < a + a_size
