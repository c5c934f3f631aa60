"""The reference interpreter: runs a graph op by op with the NumPy definitions in `ops/`.

This is what every target must equal, byte for byte. It is slow and plain on purpose.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.numerics import F32, Dfp, DfpState


class Machine:
    """Parameters, gradient exponents and step count of one device; runs training steps and inference.

    Attributes: `params` by tensor name (int8 weights, int32 biases, int8 fractions), `states` by gradient name.
    """

    def __init__(self, graph: Graph, learning_rate: float = 0.01):
        self.graph = graph
        self.learning_rate = F32(learning_rate)
        self.reset()

    def reset(self) -> None:
        """Parameters, exponents and step count as first flashed; the learning rate stays."""
        self.steps = 0
        self.params: dict[str, np.ndarray] = {
            t.name: t.data.copy() for t in self.graph.parameters if t.data is not None
        }
        self.states = {
            t.name: DfpState(limit=t.limit) if t.peak is None else DfpState(F32(t.peak), t.limit)
            for t in self.graph.tensors.values()
            if t.dtype == "dfp16"
        }

    def store_gradient(self, tensor: Tensor, value: np.ndarray) -> Dfp:
        return self.states[tensor.name].store(value)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
        """Execute every op; returns all values by tensor name. Parameters are updated as the ops say."""
        values: dict[str, Any] = dict(feeds)
        for t in self.graph.tensors.values():
            if t.role == "const":
                values[t.name] = t.data
        values.update(self.params)
        for op in self.graph:
            inputs = {role: values[t.name] for role, t in op.inputs.items()}
            results = definition(op.kind).reference(op, inputs, self)
            for role, t in op.outputs.items():
                values[t.name] = results[role]
                if t.aliases is not None:
                    self.params[t.aliases.name] = results[role]
        return values

    def train(self, image: np.ndarray, label: int) -> tuple[float, np.ndarray]:
        """One step on int8 (H, W, C). Returns (loss, logits float32[N])."""
        values = self.run({self.graph.image.name: image, "label": np.array([label], np.int32)})
        self.steps += 1
        return float(values["loss"][0]), values[logits_name(self.graph)]

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Logits float32[N] of int8 (H, W, C); for a forward graph."""
        return self.run({self.graph.image.name: image})[logits_name(self.graph)]


def logits_name(graph: Graph) -> str:
    """The classifier's output."""
    return next(op.outputs["y"].name for op in reversed(graph.ops) if op.kind == "linear")
