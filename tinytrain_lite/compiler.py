"""Forward graph + update scheme -> a training program: every pass in order, then the memory plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tinytrain_lite.autodiff import UpdateRule, differentiate
from tinytrain_lite.calibrate import calibrate_gradients
from tinytrain_lite.graph import Graph
from tinytrain_lite.memory import Plan, make_plan
from tinytrain_lite.passes.fuse import fuse
from tinytrain_lite.passes.limits import assign_limits
from tinytrain_lite.passes.patch import patch
from tinytrain_lite.passes.prune import prune
from tinytrain_lite.passes.schedule import schedule
from tinytrain_lite.passes.sparse import apply_scheme
from tinytrain_lite.sparse.scheme import UpdateScheme

Pass = Callable[[Graph], Graph]


@dataclass
class Program:
    """What codegen prints: a training graph and an inference graph over the same parameters, and their plans."""

    train: Graph
    infer: Graph
    train_plan: Plan
    infer_plan: Plan

    @property
    def name(self) -> str:
        return self.train.name

    @property
    def arena_bytes(self) -> int:
        return max(self.train_plan.arena_bytes, self.infer_plan.arena_bytes)


def passes(scheme: UpdateScheme, rule: UpdateRule) -> Iterator[tuple[str, Pass]]:
    """The pipeline, by name; `tinytrain compile --print-after NAME` shows the graph between two of them."""
    yield "sparse", lambda graph: apply_scheme(graph, scheme)
    yield "autodiff", lambda graph: differentiate(graph, rule)
    yield "prune", prune
    yield "fuse", fuse
    yield "schedule", schedule
    yield "patch", patch
    yield "limits", assign_limits


def training_graph(
    forward: Graph,
    scheme: UpdateScheme,
    rule: UpdateRule | None = None,
    observe: Callable[[str, Graph], None] | None = None,
) -> Graph:
    """Run the passes. `observe(name, graph)` sees the graph after each."""
    graph = forward
    for name, transform in passes(scheme, rule or UpdateRule()):
        graph = transform(graph)
        if observe:
            observe(name, graph)
    graph.name = f"{forward.name}/{scheme.name}"
    return graph


def inference_graph(train: Graph) -> Graph:
    """The forward part of a training graph, over the same parameters."""
    graph = train.copy()
    takes_label = {id(op) for t in graph.by_role("argument") for op in graph.readers(t)}
    graph.ops = [op for op in graph if op.phase == "forward" and id(op) not in takes_label]
    for op in graph:
        op.outputs.pop("mask", None)
    return prune(graph)


def compile_program(
    forward: Graph, scheme: UpdateScheme, images: np.ndarray, labels: np.ndarray, rule: UpdateRule | None = None,
    observe: Callable[[str, Graph], None] | None = None,
) -> Program:  # fmt: skip
    """Compile a forward graph for training under a scheme.

    images int8 (N, H, W, C) and labels (N,) calibrate the gradients' first exponents; some 8 are enough.
    """
    train = calibrate_gradients(training_graph(forward, scheme, rule, observe), images, labels)
    infer = inference_graph(train)
    return Program(train, infer, make_plan(train), make_plan(infer))
