"""Reorder the ops so that less is alive at once; above all, update a parameter right after its gradient.

The paper calls it operator reordering (section 3.3): a weight gradient applied as soon as it exists frees the
saved activation and the output gradient it was computed from. List scheduling: among the ops that may run, take the
one that adds least to the live bytes. The result replaces the given order only if it lowers the peak.

An update overwrites its parameter, so it waits for every reader of the old version.
"""

from __future__ import annotations

from tinytrain_lite.graph import Graph, Op
from tinytrain_lite.memory import live_bytes


def schedule(graph: Graph) -> Graph:
    graph = graph.copy()
    before = max(live_bytes(graph))
    given = graph.ops
    graph.ops = _list_schedule(graph)
    if max(live_bytes(graph)) > before:
        graph.ops = given
    return graph.verify()


def dependencies(graph: Graph) -> dict[Op, set[Op]]:
    """The ops each op has to wait for."""
    producer = {t.name: op for op in graph for t in op.outputs.values()}
    needs: dict[Op, set[Op]] = {}
    for op in graph:
        needs[op] = {producer[t.name] for t in op.inputs.values() if t.name in producer}
        for t in op.outputs.values():
            if t.aliases is not None:
                needs[op] |= {reader for reader in graph.readers(t.aliases) if reader is not op}
    return needs


def _list_schedule(graph: Graph) -> list[Op]:
    needs = dependencies(graph)
    position = {op: i for i, op in enumerate(graph.ops)}
    readers_left = {t.name: len(graph.readers(t)) for t in graph.tensors.values()}
    order: list[Op] = []
    waiting = list(graph.ops)

    def growth(op: Op) -> int:
        written = sum(t.nbytes for t in op.outputs.values() if t.role == "value")
        names = {t.name: t for t in op.inputs.values() if t.role in ("value", "input")}
        return written - sum(t.nbytes for t in names.values() if readers_left[t.name] == 1)

    while waiting:
        done = set(order)
        ready = [op for op in waiting if needs[op] <= done]
        best = min(ready, key=lambda op: (growth(op), position[op]))
        for name in {t.name for t in best.inputs.values()}:
            readers_left[name] -= 1
        order.append(best)
        waiting.remove(best)
    return order
