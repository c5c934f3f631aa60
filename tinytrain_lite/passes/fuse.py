"""Fold sums, masks, multiplications and updates into the ops that compute the gradients.

Three rewrites, repeated until none applies (see ops/epilogue.py and ops/update.py for what an op can absorb):
  1. grad_map(G + skips)     -> the op that computed G gets the skips, the mask and the multiplier;
  2. grad_map(H * factor)    -> the op that stored H gets a second sink (H itself stays for its other readers);
  3. sgd_update(grad)        -> the weight gradient updates the parameter where it is computed.
A fused graph rounds fewer intermediates than an unfused one, so their bytes differ in the last place: fusion happens
before the integer contract begins.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.epilogue import MAX_SINKS, GradientOp, is_plain, sinks, skips
from tinytrain_lite.ops.update import ParameterGradient


def fuse(graph: Graph) -> Graph:
    graph = graph.copy()
    while _absorb_map(graph) or _add_sink(graph) or _absorb_update(graph):
        pass
    return graph.sweep().verify()


def _is_gradient_op(op: Op | None) -> bool:
    return op is not None and isinstance(definition(op.kind), GradientOp)


def _absorb_map(graph: Graph) -> bool:
    """Rewrite 1. The latest contribution's op takes over, at the place of the grad_map."""
    position = {id(op): i for i, op in enumerate(graph.ops)}
    for grad_map in [op for op in graph if op.kind == "grad_map"]:
        parts = skips(grad_map)
        producers = [(position[id(p)], t, p) for t, s in parts if s == 1.0 and (p := graph.producer(t)) is not None]
        for _, t, producer in sorted(producers, key=lambda item: -item[0]):
            if _is_gradient_op(producer) and is_plain(producer) and graph.readers(t) == [grad_map]:
                others = [(u, s) for u, s in parts if u is not t]
                kept = {role: u for role, u in grad_map.inputs.items() if not role.startswith("skip")}
                producer.inputs |= kept | {f"skip{i}": u for i, (u, _) in enumerate(others)}
                if others:
                    producer.attrs["skip_scale"] = tuple(s for _, s in others)
                producer.outputs = dict(grad_map.outputs)
                graph.ops.remove(producer)
                graph.ops[graph.ops.index(grad_map)] = producer
                return True
    return False


def _add_sink(graph: Graph) -> bool:
    """Rewrite 2. A map of one gradient becomes another sink of the op that wrote it."""
    for grad_map in [op for op in graph if op.kind == "grad_map" and len(skips(op)) == 1]:
        ((source, factor),) = skips(grad_map)
        producer = graph.producer(source)
        if producer is None or not _is_gradient_op(producer) or len(sinks(grad_map)) != 1:
            continue
        slots = {out.name: (j, mult, mask) for j, (out, mult, mask) in enumerate(sinks(producer))}
        slot, mult, mask = slots[source.name]
        if mult is not None or mask is not None:
            continue  # the stored gradient is already somebody's view; it is not the plain sum any more
        only_reader = graph.readers(source) == [grad_map]
        if not only_reader:
            slot = len(slots)
        if slot >= MAX_SINKS:
            continue
        ((out, own_mult, _),) = sinks(grad_map)
        producer.outputs[f"out{slot}"] = out
        scaled = _scaled_multiplier(graph, grad_map, own_mult, factor)
        if scaled is not None:
            producer.inputs[f"mult{slot}"] = scaled
        if "mask" in grad_map.inputs:
            producer.inputs[f"mask{slot}"] = grad_map.inputs["mask"]
        graph.ops.remove(grad_map)
        return True
    return False


def _scaled_multiplier(graph: Graph, op: Op, mult: Tensor | None, factor: float) -> Tensor | None:
    """float32 per channel: factor * mult, as a constant of its own unless the factor is one."""
    if factor == 1.0:
        return mult
    channels = op.outputs["out0"].shape[-1]
    base = np.ones(channels, np.float64) if mult is None else mult.data.astype(np.float64)  # type: ignore[union-attr]
    return graph.const(f"{op.name}.mult", (base * factor).astype(np.float32))


def _absorb_update(graph: Graph) -> bool:
    """Rewrite 3, at the place of the update: every reader of the old parameter is already behind us."""
    for update in [op for op in graph if op.kind == "sgd_update"]:
        producer = graph.producer(update.inputs["grad"])
        if producer is None or not isinstance(definition(producer.kind), ParameterGradient):
            continue
        producer.inputs |= {role: t for role, t in update.inputs.items() if role != "grad"}
        producer.outputs = dict(update.outputs)
        producer.attrs["rounding"] = update.attrs["rounding"]
        graph.ops.remove(producer)
        graph.ops[graph.ops.index(update)] = producer
        return True
    return False
