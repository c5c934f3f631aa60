"""Reverse-mode differentiation of a forward graph, at compile time.

`differentiate` walks the forward ops backwards and lets each op's `vjp` append its gradient ops. It writes
everything, unfused: separate sums, masks and multiplications, every gradient kept until the updates at the
very end. What the update scheme does not need is pruned, and what can be merged is fused, by later passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tinytrain_lite.errors import GraphError
from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.numerics import FRACTION_BITS, UPDATE_ROUNDINGS


@dataclass(frozen=True)
class UpdateRule:
    """How a gradient changes a parameter: plain SGD, with or without quantization-aware scaling.

    rounding: `fraction8` keeps 1/256 of an LSB beside every parameter (one more byte); `stochastic` rounds with
    a seeded generator (no extra memory); `nearest` and `truncate` lose small updates, and are here to show it.
    """

    rounding: str = "fraction8"
    qas: bool = True

    def __post_init__(self) -> None:
        if self.rounding not in UPDATE_ROUNDINGS:
            raise GraphError(
                f"update rounding '{self.rounding}' is unknown; choose one of {', '.join(UPDATE_ROUNDINGS)}"
            )

    def coefficient(self, param: Tensor) -> np.ndarray:
        """float32 per output channel: QAS factor 1/scale^2 (eq. 7 of the paper) in the units the rounding counts in."""
        scale = np.asarray(param.scale, np.float64)
        lsb = 2.0**FRACTION_BITS if self.rounding == "fraction8" else 1.0
        return (lsb / scale**2 if self.qas else np.full_like(scale, lsb)).astype(np.float32)


class GradientBuilder:
    """Collects, per forward tensor, the gradients that its readers contribute."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.contributions: dict[str, list[tuple[Tensor, float]]] = {}
        self.parameter_gradients: list[tuple[Op, Tensor, Tensor]] = []

    def gradient(self, op: Op, mult: Tensor | None = None) -> Tensor:
        """dL/d(accumulator) of `op`: contributions summed, masked by its clamp, times its effective scale."""
        y = op.outputs["y"]
        parts = self.contributions[y.name]
        inputs = {f"skip{i}": t for i, (t, _) in enumerate(parts)}
        if "clamp" in op.attrs:
            op.outputs["mask"] = inputs["mask"] = self.graph.value(f"{y.name}.mask", y.shape, "bits")
        if mult is not None:
            inputs["mult0"] = mult
        out = self.graph.value(f"{op.name}.g", y.shape, "dfp16")
        self.graph.append("grad_map", op.name, inputs, {"out0": out}, skip_scale=tuple(s for _, s in parts))
        return out

    def contribute(self, op: Op, x: Tensor, kind: str, inputs: dict[str, Tensor], **attrs: Any) -> None:
        """Append a gradient op whose output is one contribution to dL/dx."""
        count = len(self.contributions.get(x.name, ()))
        out = self.graph.value(f"{x.name}.d{count}", x.shape, "dfp16")
        self.graph.append(kind, op.name, inputs, {"out0": out}, **attrs)
        self.contribute_scaled(x, out, 1.0)

    def contribute_scaled(self, x: Tensor, grad: Tensor, factor: float) -> None:
        """dL/dx gets factor * grad, without an op of its own."""
        self.contributions.setdefault(x.name, []).append((grad, factor))

    def saved_slice(self, op: Op, x: Tensor, channels: int) -> Tensor:
        """Keep only the trained input channels of x for the weight gradient: copied during the forward pass."""
        saved = self.graph.value(
            f"{op.name}.saved", (*x.shape[:2], channels), "int8", scale=x.scale, zero_point=x.zero_point
        )
        gather = Op("gather_channels", op.name, {"x": x, "perm": op.inputs["perm"]}, {"y": saved})
        self.graph.ops.insert(self.graph.ops.index(op), gather)
        return saved

    def parameter(self, op: Op, param: Tensor, kind: str, inputs: dict[str, Tensor], **attrs: Any) -> None:
        """Append the op that computes dL/d(param), and remember that an update has to read it."""
        rows = inputs["rows"].elements if "rows" in inputs else param.shape[0]
        grad = self.graph.value(f"{param.name}.grad", (rows, *param.shape[1:]), "dfp32")
        gradient_op = self.graph.append(kind, op.name, inputs, {"grad": grad}, **attrs)
        self.parameter_gradients.append((gradient_op, param, grad))

    def update(self, gradient_op: Op, param: Tensor, grad: Tensor, rule: UpdateRule) -> None:
        """Append `param <- param - delta(grad)`."""
        graph = self.graph
        new = graph.value(f"{param.name}'", param.shape, param.dtype, role="param", scale=param.scale, aliases=param)
        inputs = {"param": param, "coef": graph.const(f"{param.name}.coef", rule.coefficient(param)), "grad": grad}
        outputs = {"param": new}
        if "rows" in gradient_op.inputs:
            inputs["rows"] = gradient_op.inputs["rows"]
        if rule.rounding == "fraction8":
            zeros = np.zeros(grad.shape, np.int8)
            fraction = graph.value(f"{param.name}.fraction", grad.shape, "int8", role="param", data=zeros)
            inputs["fraction"] = fraction
            outputs["fraction"] = graph.value(f"{fraction.name}'", grad.shape, "int8", role="param", aliases=fraction)
        graph.append("sgd_update", gradient_op.name, inputs, outputs, rounding=rule.rounding)


def differentiate(forward: Graph, rule: UpdateRule) -> Graph:
    """Training graph of a forward graph that ends in logits: loss, all gradients, then all updates.

    Parameters are the tensors of role `param`. Raises GraphError if the graph has no logits to train on.
    """
    graph = forward.copy()
    logits = next((op.outputs["y"] for op in graph if op.kind == "linear" and not graph.readers(op.outputs["y"])), None)
    if logits is None:
        raise GraphError(f"{graph.name}: no linear classifier head at the end; there is nothing to take a loss of")
    label = graph.value("label", (1,), "int32", role="argument")
    probabilities = graph.value("probabilities", logits.shape, "float32")
    loss = graph.value("loss", (1,), "float32", role="output")
    graph.append("softmax_cross_entropy", "loss", {"x": logits, "label": label},
                 {"probabilities": probabilities, "loss": loss})  # fmt: skip
    builder = GradientBuilder(graph)
    for op in reversed(list(graph.ops)):
        y = op.outputs.get("y")
        if y is None or y.name in builder.contributions:
            definition(op.kind).vjp(op, builder)
    for gradient_op, param, grad in builder.parameter_gradients:
        builder.update(gradient_op, param, grad, rule)
    return graph.verify()
