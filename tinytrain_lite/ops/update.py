"""The parameter update, and the base of the weight- and bias-gradient ops it is fused into.

Unfused, a weight gradient is a `dfp32` tensor and `sgd_update` reads it. The fuse pass moves the update into
the gradient op, so a gradient element lives in one register between its sum and its weight: no buffer.

QAS (paper section 3.1, eq. 6-7): the gradient with respect to the *quantized* weight is divided by s_w^2
(bias: by s_w^2 s_x^2). That factor, times the LSBs a fraction counts in, is one float32 per output channel: `coef`.

    delta = float32(G) * (coef[c] * (learning_rate * 2^e))        then `numerics.apply_update`
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops.base import OpDefinition, expect, expect_tensor
from tinytrain_lite.ops.numerics import F32, UPDATE_ROUNDINGS, Dfp, apply_update, power_of_two, random_unit

if TYPE_CHECKING:
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine

WEIGHT_BOUND = 127
BIAS_BOUND = 2**30 - 1


def bound_of(param: Tensor) -> int:
    return WEIGHT_BOUND if param.dtype == "int8" else BIAS_BOUND


def seed_of(param: Tensor) -> int:
    """Each parameter draws its own random sequence; the name fixes which."""
    return zlib.crc32(param.name.split("'")[0].encode())


def trained_shape(op: Op) -> tuple[int, ...]:
    """Shape of the part of the parameter that learns: all of it, or the rows that input `rows` lists."""
    param = op.inputs["param"]
    return (op.inputs["rows"].shape[0], *param.shape[1:]) if "rows" in op.inputs else param.shape


def check_update(op: Op) -> None:
    """Parameter, fraction and per-channel coefficient agree; the output overwrites the parameter."""
    param, new = op.inputs["param"], op.outputs["param"]
    expect(op.attrs["rounding"] in UPDATE_ROUNDINGS, f"rounding '{op.attrs['rounding']}' is none of {UPDATE_ROUNDINGS}")
    expect(new.aliases is param, "the new version does not overwrite the parameter")
    expect_tensor(op.inputs["coef"], "float32", (param.shape[0],))
    expect(("fraction" in op.inputs) == (op.attrs["rounding"] == "fraction8"), "`fraction8` needs a fraction")
    if "fraction" in op.inputs:
        expect_tensor(op.inputs["fraction"], "int8", trained_shape(op))
    if "rows" in op.inputs:
        expect(op.inputs["rows"].dtype == "uint16", "`rows` is not uint16")


def update(op: Op, v: Mapping[str, Any], machine: Machine, gradient: Dfp) -> dict[str, Any]:
    """Reference of the update; gradient.mantissa has the parameter's shape (or its trained rows')."""
    param, rounding = v["param"], op.attrs["rounding"]
    rows = v["rows"] if "rows" in op.inputs else np.arange(param.shape[0])
    scale = F32(machine.learning_rate) * power_of_two(gradient.exponent)
    factor = (v["coef"][rows] * scale).reshape(-1, *[1] * (param.ndim - 1))
    delta = gradient.mantissa.astype(F32) * factor
    noise = random_unit(np.arange(delta.size).reshape(delta.shape), seed_of(op.inputs["param"]), machine.steps)
    new, fraction = apply_update(param[rows], v.get("fraction"), delta, rounding, bound_of(op.inputs["param"]), noise)
    result = param.copy()
    result[rows] = new
    return {"param": result} | ({} if fraction is None else {"fraction": fraction})


class SgdUpdate(OpDefinition):
    """Unfused update; codegen never sees it."""

    kind = "sgd_update"

    def check(self, op: Op) -> None:
        check_update(op)
        expect_tensor(op.inputs["grad"], "dfp32", trained_shape(op))

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        return update(op, v, machine, v["grad"])


class ParameterGradient(OpDefinition):
    """Base of `*_grad_weight` and `*_grad_bias`: `gradient()` either stored (unfused) or applied (fused)."""

    def gradient(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        """Integer sums, exact, in the shape of the trained part of the parameter."""
        raise NotImplementedError

    def gradient_shape(self, op: Op) -> tuple[int, ...]:
        raise NotImplementedError

    def check(self, op: Op) -> None:
        expect(op.inputs["g"].dtype == "dfp16", "`g` is not a gradient")
        shape = self.gradient_shape(op)
        if "param" in op.inputs:
            check_update(op)
            expect(trained_shape(op) == shape, f"parameter {list(trained_shape(op))} gets a gradient {list(shape)}")
        else:
            expect_tensor(op.outputs["grad"], "dfp32", shape)

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        sums = self.gradient(op, v)
        assert np.abs(sums).max(initial=0) < 2**31, f"{op.name}: an int32 accumulator would overflow"
        grad = Dfp(sums.reshape(self.gradient_shape(op)), v["g"].exponent)
        return update(op, v, machine, grad) if "param" in op.inputs else {"grad": grad}


class GradBias(ParameterGradient):
    """dL/db[c] = sum over positions of g[..., c]; the same rule for every op that has a bias."""

    kind = "grad_bias"

    def gradient_shape(self, op: Op) -> tuple[int, ...]:
        return (op.inputs["g"].shape[-1],)

    def gradient(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        m = v["g"].mantissa.astype(np.int64)
        return m.reshape(-1, m.shape[-1]).sum(axis=0)

    def call(self, op: Op, c: Emitter) -> str:
        g = op.inputs["g"]
        return c.call("tt_grad_bias", c.dfp(g), g.elements // g.shape[-1], g.shape[-1], c.update(op))
