"""A lower bound on what a scheme costs, linear in the choice of weights: what an exact search needs.

A tensor is *certainly* alive during an op if every order that respects the dependencies writes it before and reads it
after: its writer is an ancestor of the op (or the op), one of its readers a descendant (or the op). No schedule and
no memory plan gets by with less than the sum of those. With the last k biases fixed, the sum splits by layer:

    SRAM(choice)  >=  static + arena[op] + sum over chosen weights of (static cost + arena cost[op])    for every op

The arena cost of a weight is what keeping its input (or the slice of it that learns) adds, and what the slice changes
in a kernel's scratch. Which tensors one layer keeps does not depend on what other layers keep: so the costs add up.

One thing is assumed, not proved: that learning weights as well never makes the planned arena *smaller* than it is when
only biases learn. How the patch pass bands the frozen front, and what its plan loses to fragmentation, is taken from
there. `exact.py` checks the assumption on every scheme it prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.compiler import inference_graph, passes
from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.memory import align, make_plan, static_bytes
from tinytrain_lite.ops.base import definition
from tinytrain_lite.passes.patch import patch
from tinytrain_lite.passes.schedule import dependencies
from tinytrain_lite.sparse.price import FIRMWARE_BYTES
from tinytrain_lite.sparse.scheme import UpdateScheme

__all__ = ["Bound", "Choice", "Row", "lower_bound"]

Choice = tuple[str, float]  # (layer, ratio)
Key = tuple[str, str]  # an op: (kind, layer)
MANDATORY = ""  # the layer of bytes that are alive whatever is chosen


@dataclass
class Row:
    """Arena bytes alive during one op: constant + costs of what is chosen."""

    constant: int
    costs: dict[Choice, int] = field(default_factory=dict)

    def at(self, choice: Iterable[Choice]) -> int:
        return self.constant + sum(self.costs.get(c, 0) for c in choice)


@dataclass
class Bound:
    """SRAM >= constant + sum of static costs + the largest row."""

    constant: int
    static: dict[Choice, int]
    rows: list[Row]

    def at(self, choice: Iterable[Choice]) -> int:
        """Bytes of SRAM that this choice of weights needs at least."""
        chosen = list(choice)
        return self.constant + sum(self.static[c] for c in chosen) + max(row.at(chosen) for row in self.rows)


def lower_bound(graph: Graph, biases: int, weights: dict[str, list[float]], rule: UpdateRule | None = None) -> Bound:
    """The bound for the last `biases` biases and any choice of at most one ratio for each layer of `weights`."""
    rule = rule or UpdateRule()
    base = _unpatched(graph, UpdateScheme("base", biases, {-1: 1.0}), rule)
    liveness = _Liveness(base, set())
    patched = patch(base)
    front = {op.name for op in patched if "band" in op.attrs}
    floor = max(make_plan(patched).arena_bytes, make_plan(inference_graph(patched)).arena_bytes)
    rows: dict[Key, Row] = {
        (op.kind, op.name): Row(liveness.alive(op)[MANDATORY])
        for op in base
        if not (op.phase == "forward" and op.name in front)
    }
    static: dict[Choice, int] = {}
    for ratio in sorted({ratio for ratios in weights.values() for ratio in ratios}):
        layers = {layer for layer, ratios in weights.items() if ratio in ratios}
        full = _unpatched(graph, UpdateScheme("full", biases, {**dict.fromkeys(layers, ratio), -1: 1.0}), rule)
        liveness = _Liveness(full, layers)
        for op in full:
            if op in liveness.optional and "param" in op.inputs:
                static[op.name, ratio] = sum(align(t.nbytes) for t in op.inputs.values() if t.role == "param")
            elif (op.kind, op.name) in rows:
                row, parts = rows[op.kind, op.name], liveness.alive(op)
                scratch = parts.pop(MANDATORY) - row.constant  # the slice changes the kernel's scratch
                parts[op.name] = parts.get(op.name, 0) + scratch
                row.costs |= {(layer, ratio): n for layer, n in parts.items() if n and layer in layers}
    return Bound(static_bytes(base) + FIRMWARE_BYTES, static, [Row(floor), *rows.values()])


def _unpatched(graph: Graph, scheme: UpdateScheme, rule: UpdateRule) -> Graph:
    for name, transform in passes(scheme, rule):
        if name == "patch":
            break
        graph = transform(graph)
    return graph


class _Liveness:
    """Bytes certainly alive during each op, by the layer that keeps them."""

    def __init__(self, graph: Graph, layers: set[str]) -> None:
        """layers: those whose weights are the choice; their `optional` ops exist only if they are chosen."""
        self.graph = graph
        kinds = ("gather_channels", "conv2d_grad_weight", "depthwise_grad_weight")
        self.optional = {op for op in graph if op.name in layers and op.kind in kinds}
        self.writer = {t.name: op for op in graph for t in op.outputs.values()}
        self.readers: dict[str, list[Op]] = {}
        for op in graph:
            for t in {t.name: t for t in op.inputs.values()}.values():
                self.readers.setdefault(t.name, []).append(op)
        needs = dependencies(graph)
        self.ancestors: dict[Op, set[Op]] = {}
        for op in graph:  # in an order that respects the dependencies
            self.ancestors[op] = {op}.union(*(self.ancestors[o] for o in needs[op]))
        self.tensors = [t for t in graph.tensors.values() if t.role in ("value", "input") and self._is_used(t)]

    def _is_used(self, t: Tensor) -> bool:
        return t.name in self.writer or t.name in self.readers

    def alive(self, op: Op) -> dict[str, int]:
        """Layer -> bytes that are alive during `op` because of it; MANDATORY: whatever is chosen."""
        parts = {MANDATORY: align(definition(op.kind).scratch_bytes(op))}
        for t in self.tensors:
            if (layer := self._keeper(t, op)) is not None:
                parts[layer] = parts.get(layer, 0) + align(t.nbytes)
        self._discount(op, parts)
        return parts

    def _keeper(self, t: Tensor, op: Op) -> str | None:
        """Because of whom `t` is certainly alive during `op`: MANDATORY, one of the layers, or None if it is not."""
        writer = self.writer.get(t.name)
        if writer is not None and writer not in self.ancestors[op]:
            return None
        after = [r for r in self.readers.get(t.name, []) if op in self.ancestors[r]]
        if writer is op and not after:
            return MANDATORY
        if writer is not None and writer in self.optional:
            return writer.name
        return self._least(after)

    def _least(self, readers: list[Op]) -> str | None:
        """Of several layers that each would keep a tensor only one may be charged for it."""
        if any(r not in self.optional for r in readers):
            return MANDATORY
        return min((r.name for r in readers), default=None)

    def _discount(self, op: Op, parts: dict[str, int]) -> None:
        """An op may work in place if its source dies in it: not if a layer that is chosen keeps the source."""
        savings = []
        for out_role, in_role in definition(op.kind).in_place(op):
            out, source = op.outputs[out_role], op.inputs[in_role]
            later = [r for r in self.readers[source.name] if r is not op and op in self.ancestors[r]]
            keeper = self._least(later)
            if out.role == "value" and source.role in ("value", "input") and keeper != MANDATORY:
                savings.append((min(align(out.nbytes), align(source.nbytes)), keeper))
        if savings:
            parts[MANDATORY] -= max(saved for saved, _ in savings)
        if len(savings) == 1:
            saved, keeper = savings[0]
            if keeper is not None:
                parts[keeper] = parts.get(keeper, 0) + saved
