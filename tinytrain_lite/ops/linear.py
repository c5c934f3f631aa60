"""Classifier head: x (1, 1, I) int8 -> logits float32[N]; and its gradients.

logits = float32(b + sum (x - z_x) w) * m,  m = s_w s_x in float32. The logits stay in float: they are N numbers,
and no output range has to be guessed for a head that is about to be trained from scratch. A linear layer in the
middle of a network is a 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import OpDefinition, expect, expect_tensor
from tinytrain_lite.ops.epilogue import GradientOp, check_epilogue
from tinytrain_lite.ops.numerics import F32, Dfp, matmul_exact, power_of_two
from tinytrain_lite.ops.update import ParameterGradient

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine


class Linear(OpDefinition):
    kind = "linear"

    def check(self, op: Op) -> None:
        x, w = op.inputs["x"], op.inputs["w"]
        expect(w.dtype == "int8" and len(w.shape) == 2, f"weight '{w.name}' is not int8[N,I]")
        expect_tensor(x, "int8", (1, 1, w.shape[1]))
        expect_tensor(op.inputs["b"], "int32", (w.shape[0],))
        expect_tensor(op.inputs["m"], "float32", (w.shape[0],))
        expect_tensor(op.outputs["y"], "float32", (w.shape[0],))

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        x = v["x"].astype(np.int32).ravel() - op.inputs["x"].zero_point
        acc = matmul_exact(v["w"], x) + v["b"]
        return {"y": acc.astype(np.int32).astype(F32) * v["m"]}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        x, w = op.inputs["x"], op.inputs["w"]
        grad = g.gradient(op, mult=op.inputs["m"])
        g.contribute(op, x, "linear_grad_input", {"g": grad, "w": w})
        if w.role == "param":
            g.parameter(op, w, "linear_grad_weight", {"g": grad, "x": x})
        if op.inputs["b"].role == "param":
            g.parameter(op, op.inputs["b"], "grad_bias", {"g": grad})

    def call(self, op: Op, c: Emitter) -> str:
        x, w = op.inputs["x"], op.inputs["w"]
        return c.call(
            "tt_linear", c.ptr(x), x.zero_point, c.ptr(w), c.ptr(op.inputs["b"]), c.ptr(op.inputs["m"]),
            w.shape[0], w.shape[1], c.ptr(op.outputs["y"]),
        )  # fmt: skip

    def macs(self, op: Op) -> int:
        return op.inputs["w"].elements


class LinearGradInput(GradientOp):
    kind = "linear_grad_input"

    def check(self, op: Op) -> None:
        n, channels = op.inputs["w"].shape
        expect_tensor(op.inputs["g"], "dfp16", (n,))
        check_epilogue(op, (1, 1, channels))

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        g: Dfp = v["g"]
        acc = matmul_exact(g.mantissa, v["w"])
        return (acc.astype(np.int32).astype(F32) * power_of_two(g.exponent)).reshape(op.outputs["out0"].shape)

    def call(self, op: Op, c: Emitter) -> str:
        n, channels = op.inputs["w"].shape
        return c.call("tt_linear_grad_input", c.dfp(op.inputs["g"]), c.ptr(op.inputs["w"]), n, channels, c.epilogue(op))

    def macs(self, op: Op) -> int:
        return op.inputs["w"].elements


class LinearGradWeight(ParameterGradient):
    kind = "linear_grad_weight"

    def gradient_shape(self, op: Op) -> tuple[int, ...]:
        return (op.inputs["g"].shape[0], op.inputs["x"].shape[2])

    def gradient(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        x = v["x"].astype(np.int64).ravel() - op.inputs["x"].zero_point
        return np.outer(v["g"].mantissa.astype(np.int64), x)

    def call(self, op: Op, c: Emitter) -> str:
        x = op.inputs["x"]
        n, channels = self.gradient_shape(op)
        return c.call("tt_linear_grad_weight", c.dfp(op.inputs["g"]), c.ptr(x), x.zero_point, n, channels, c.update(op))

    def macs(self, op: Op) -> int:
        n, channels = self.gradient_shape(op)
        return n * channels
