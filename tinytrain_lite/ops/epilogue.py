"""What happens to a gradient between a kernel's accumulator and memory, in one pass.

Autodiff writes every rule with a separate `grad_map` op (sum the contributions of all readers, apply the
clamp mask, multiply by the producer's effective scale). The fuse pass folds `grad_map`s into the op that
computes the gradient; what is left of them is the *epilogue* of that op:

    v  = value + skip0 * skip_scale0 + skip1 * skip_scale1 ...   gradients that arrive by other readers
    v  = mask ? v : 0                                            clamp of the forward op
    u_j = mask_j ? v * mult_j[c] : 0                             one sink per consumer (one or two)
    out_j = saturate(rint(u_j * 2^-e_j))                         dfp16

Roles: inputs `skip{i}`, `mask`, `mult{j}`, `mask{j}`; outputs `out{j}`; attr `skip_scale` (floats).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops.base import OpDefinition, expect, expect_tensor
from tinytrain_lite.ops.numerics import F32, Dfp, power_of_two

if TYPE_CHECKING:
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine

MAX_SKIPS = 2
MAX_SINKS = 2


def skips(op: Op) -> list[tuple[Tensor, float]]:
    """(gradient, factor) pairs that are added to the op's own value."""
    scales = op.attrs.get("skip_scale", ())
    return [(op.inputs[f"skip{i}"], scale) for i, scale in enumerate(scales)]


def sinks(op: Op) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """(output, multiplier float32[C] or None, mask or None) of every gradient the op writes."""
    return [
        (op.outputs[f"out{j}"], op.inputs.get(f"mult{j}"), op.inputs.get(f"mask{j}"))
        for j in range(MAX_SINKS)
        if f"out{j}" in op.outputs
    ]


def is_plain(op: Op) -> bool:
    """True if the op stores its value as it is: no skip, no mask, one sink without multiplier."""
    return not skips(op) and "mask" not in op.inputs and len(sinks(op)) == 1 and sinks(op)[0][1:] == (None, None)


def check_epilogue(op: Op, shape: tuple[int, ...]) -> None:
    """Every gradient has the shape of the tensor it belongs to; multipliers are per channel."""
    expect(len(skips(op)) <= MAX_SKIPS, f"more than {MAX_SKIPS} skip gradients")
    expect(bool(sinks(op)), "writes no gradient")
    for t, _ in skips(op):
        expect_tensor(t, "dfp16", shape)
    if "mask" in op.inputs:
        expect_tensor(op.inputs["mask"], "bits", shape)
    for out, mult, mask in sinks(op):
        expect_tensor(out, "dfp16", shape)
        if mult is not None:
            expect_tensor(mult, "float32", (shape[-1],))
        if mask is not None:
            expect_tensor(mask, "bits", shape)


def finish(op: Op, v: Mapping[str, Any], machine: Machine, value: np.ndarray) -> dict[str, Any]:
    """Reference of the epilogue. `value` float32 in real gradient units, shaped like the outputs."""
    value = value.astype(F32)
    for i, (_, scale) in enumerate(skips(op)):
        skip: Dfp = v[f"skip{i}"]
        factor = F32(scale) * power_of_two(skip.exponent)
        value = value + skip.mantissa.astype(F32) * factor
    if "mask" in op.inputs:
        value = np.where(v["mask"], value, F32(0))
    results: dict[str, Any] = {}
    for j, (out, mult, mask) in enumerate(sinks(op)):
        u = value if mult is None else value * v[f"mult{j}"]
        if mask is not None:
            u = np.where(v[f"mask{j}"], u, F32(0))
        results[f"out{j}"] = machine.store_gradient(out, u)
    return results


class GradientOp(OpDefinition):
    """Base of the ops that produce an activation gradient: value() plus the epilogue above."""

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        """The gradient before the epilogue, float32, in the shape of the outputs."""
        raise NotImplementedError

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        return finish(op, v, machine, self.value(op, v))

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        """The kernels read a skip element before they write the same element of a sink."""
        return [("out0", f"skip{i}") for i in range(len(skips(op)))]


class GradMap(GradientOp):
    """Elementwise: nothing but an epilogue. Survives fusion only where no kernel computes the gradient."""

    kind = "grad_map"

    def check(self, op: Op) -> None:
        expect(bool(skips(op)), "has nothing to map")
        check_epilogue(op, skips(op)[0][0].shape)

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        return np.zeros(op.outputs["out0"].shape, F32)

    def call(self, op: Op, c: Emitter) -> str:
        out = op.outputs["out0"]
        return c.call("tt_grad_map", out.elements, out.shape[-1], c.epilogue(op))
