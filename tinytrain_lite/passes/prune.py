"""Dead code elimination: keep what the updated parameters and the outputs need, and nothing else.

Autodiff differentiates the whole network; the update scheme names few parameters. Everything that only served
the others (their gradients, the clamp masks and activations saved for them) has no reader left and goes.
"""

from __future__ import annotations

from tinytrain_lite.graph import Graph, Op, Tensor


def is_root(t: Tensor) -> bool:
    """A tensor somebody outside the graph reads: an output, or the new version of a parameter."""
    return t.role == "output" or t.aliases is not None


def prune(graph: Graph) -> Graph:
    """Remove dead ops and the dead masks of live ones."""
    graph = graph.copy()
    live: set[str] = set()
    kept: list[Op] = []
    for op in reversed(graph.ops):
        op.outputs = {role: t for role, t in op.outputs.items() if t.name in live or is_root(t) or not _optional(role)}
        if any(t.name in live or is_root(t) for t in op.outputs.values()):
            kept.append(op)
            live.update(t.name for t in op.inputs.values())
    graph.ops = kept[::-1]
    return graph.sweep().verify()


def _optional(role: str) -> bool:
    """A clamp mask is only written if the backward pass reads it."""
    return role == "mask"
