"""Softmax cross-entropy of float32 logits: loss = ln(sum exp(l - max)) - (l[label] - max), gradient p - onehot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import OpDefinition, expect, expect_tensor
from tinytrain_lite.ops.epilogue import GradientOp, check_epilogue
from tinytrain_lite.ops.numerics import F32, softmax_cross_entropy

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine


class SoftmaxCrossEntropy(OpDefinition):
    kind = "softmax_cross_entropy"

    def check(self, op: Op) -> None:
        n = op.inputs["x"].shape
        expect(len(n) == 1, "logits are not one-dimensional")
        expect_tensor(op.inputs["x"], "float32", n)
        expect_tensor(op.inputs["label"], "int32", (1,))
        expect_tensor(op.outputs["probabilities"], "float32", n)
        expect_tensor(op.outputs["loss"], "float32", (1,))

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        p, loss = softmax_cross_entropy(v["x"], int(v["label"][0]))
        return {"probabilities": p, "loss": np.array([loss], F32)}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        inputs = {"p": op.outputs["probabilities"], "label": op.inputs["label"]}
        g.contribute(op, op.inputs["x"], "softmax_cross_entropy_grad", inputs)

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_softmax_cross_entropy", c.ptr(op.inputs["x"]), op.inputs["x"].shape[0], c.ptr(op.inputs["label"]),
            c.ptr(op.outputs["probabilities"]), c.ptr(op.outputs["loss"]),
        )  # fmt: skip


class SoftmaxCrossEntropyGrad(GradientOp):
    kind = "softmax_cross_entropy_grad"

    def check(self, op: Op) -> None:
        expect_tensor(op.inputs["label"], "int32", (1,))
        expect_tensor(op.inputs["p"], "float32", op.outputs["out0"].shape)
        check_epilogue(op, op.outputs["out0"].shape)

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        onehot = np.zeros_like(v["p"])
        onehot[int(v["label"][0])] = 1
        return v["p"] - onehot

    def call(self, op: Op, c: Emitter) -> str:
        p = op.inputs["p"]
        return c.call("tt_softmax_cross_entropy_grad", c.ptr(p), p.shape[0], c.ptr(op.inputs["label"]), c.epilogue(op))
