"""Global average pool: (H, W, C) int8 -> (1, 1, C) int8.

y = clamp(rint(float32(sum(x - z_x)) * m) + z_y), m = s_x / (s_y H W) in float32; the gradient spreads g m evenly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import OpDefinition, check_clamp, expect, expect_tensor
from tinytrain_lite.ops.epilogue import GradientOp, check_epilogue
from tinytrain_lite.ops.numerics import F32, Dfp, power_of_two, requantize

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine


class AvgPool(OpDefinition):
    kind = "avg_pool"

    def check(self, op: Op) -> None:
        x, y = op.inputs["x"], op.outputs["y"]
        expect(x.dtype == "int8" and len(x.shape) == 3, f"input '{x.name}' is not int8[H,W,C]")
        expect_tensor(y, "int8", (1, 1, x.shape[2]))
        check_clamp(op)

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        x, y = op.inputs["x"], op.outputs["y"]
        sums = (v["x"].astype(np.int32) - x.zero_point).sum(axis=(0, 1), keepdims=True)
        q, inside = requantize(sums.astype(F32) * F32(op.attrs["m"]), y.zero_point, op.attrs["clamp"])
        return {"y": q, "mask": inside}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        grad = g.gradient(op)
        g.contribute(op, op.inputs["x"], "avg_pool_grad_input", {"g": grad}, m=op.attrs["m"])

    def call(self, op: Op, c: Emitter) -> str:
        return c.call("tt_avg_pool", c.input(op.inputs["x"]), c.float(op.attrs["m"]), c.requant(op))


class AvgPoolGradInput(GradientOp):
    kind = "avg_pool_grad_input"

    def check(self, op: Op) -> None:
        out = op.outputs["out0"]
        expect_tensor(op.inputs["g"], "dfp16", (1, 1, out.shape[2]))
        check_epilogue(op, out.shape)

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        g: Dfp = v["g"]
        spread = g.mantissa.astype(F32) * (F32(op.attrs["m"]) * power_of_two(g.exponent))
        return np.broadcast_to(spread, op.outputs["out0"].shape)

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_avg_pool_grad_input", c.dfp(op.inputs["g"]), c.float(op.attrs["m"]), c.dims(op.outputs["out0"]),
            c.epilogue(op),
        )  # fmt: skip
