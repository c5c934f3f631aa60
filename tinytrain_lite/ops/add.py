"""Residual add: y = clamp(rint((a - z_a) s_a/s_y + (b - z_b) s_b/s_y) + z_y), all (H, W, C) int8.

Two float32 products and one float32 sum per element. The gradient of each operand is the masked gradient of y
times its own ratio; an operand read elsewhere too gets the *sum* (GradientBuilder collects contributions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import OpDefinition, check_clamp, expect, expect_tensor
from tinytrain_lite.ops.numerics import F32, requantize

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine


class Add(OpDefinition):
    kind = "add"

    def check(self, op: Op) -> None:
        y = op.outputs["y"]
        expect(len(y.shape) == 3, f"output '{y.name}' is not (H, W, C)")
        for role in ("a", "b"):
            expect_tensor(op.inputs[role], "int8", y.shape)
        check_clamp(op)

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        a, b, y = op.inputs["a"], op.inputs["b"], op.outputs["y"]
        left = (v["a"].astype(np.int32) - a.zero_point).astype(F32) * F32(op.attrs["ratio_a"])
        right = (v["b"].astype(np.int32) - b.zero_point).astype(F32) * F32(op.attrs["ratio_b"])
        q, inside = requantize(left + right, y.zero_point, op.attrs["clamp"])
        return {"y": q, "mask": inside}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        grad = g.gradient(op)
        g.contribute_scaled(op.inputs["a"], grad, op.attrs["ratio_a"])
        g.contribute_scaled(op.inputs["b"], grad, op.attrs["ratio_b"])

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_add", c.ptr(op.inputs["a"]), op.inputs["a"].zero_point, c.float(op.attrs["ratio_a"]),
            c.ptr(op.inputs["b"]), op.inputs["b"].zero_point, c.float(op.attrs["ratio_b"]),
            op.outputs["y"].elements, c.requant(op),
        )  # fmt: skip

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        return [("y", "a"), ("y", "b")]
