"""Dense and pointwise convolution: forward, and the gradients of its input, weight and bias.

x (H, W, I) int8, w (O, KH, KW, I) int8 symmetric per output channel, b (O,) int32 at s_w s_x, y (Ho, Wo, O) int8.

    acc = b[o] + sum (x - z_x) w[o]            int32, proved not to overflow by passes/limits.py
    y   = clamp(rint(float32(acc) * m[o]) + z_y),   m = s_w s_x / s_y in float32

Gradients are taken in quantized coordinates: g = dL/dacc, so dL/dx = sum_o g[o] w[o] and
dL/dw = sum_positions g (x - z_x) need no scale of their own.

Sparse update splits the weight along its input channels (see passes/sparse.py): `w` holds the trained channels,
`w_frozen` (O, KH, KW, I - k) the others, and `perm` uint16[I] says which channel of x each column meets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops.base import OpDefinition, check_clamp, expect, expect_tensor
from tinytrain_lite.ops.epilogue import GradientOp, check_epilogue
from tinytrain_lite.ops.numerics import F32, Dfp, matmul_exact, power_of_two, requantize
from tinytrain_lite.ops.update import ParameterGradient
from tinytrain_lite.ops.window import check_window, col2im, im2col

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine

POSITIONS = 4  # windows that tt_conv2d expands to int16 at a time
PANEL_BYTES, COLUMNS = 2048, 16  # tt_conv2d_grad_weight: aim of its panels of x, and input channels at most


def weight_shape(op: Op) -> tuple[int, int, int, int]:
    """(O, KH, KW, I) of the whole weight, trained and frozen channels together."""
    o, kh, kw, k = op.inputs["w"].shape
    frozen = op.inputs.get("w_frozen")
    return o, kh, kw, k + (frozen.shape[3] if frozen is not None else 0)


def whole_weight(op: Op, v: Mapping[str, Any]) -> np.ndarray:
    """Trained and frozen slices put back in channel order, (O, KH, KW, I)."""
    if "w_frozen" not in op.inputs:
        return v["w"]
    merged = np.concatenate([v["w"], v["w_frozen"]], axis=3)
    return merged[..., np.argsort(v["perm"])]


def check_weight(op: Op) -> None:
    o, kh, kw, channels = weight_shape(op)
    if "w_frozen" in op.inputs:
        k = op.inputs["w"].shape[3]
        expect_tensor(op.inputs["w_frozen"], "int8", (o, kh, kw, channels - k))
        expect_tensor(op.inputs["perm"], "uint16", (channels,))


class Conv2d(OpDefinition):
    kind = "conv2d"

    def check(self, op: Op) -> None:
        x, w, y = op.inputs["x"], op.inputs["w"], op.outputs["y"]
        expect(w.dtype == "int8" and len(w.shape) == 4, f"weight '{w.name}' is not int8[O,KH,KW,I]")
        check_weight(op)
        o, kh, kw, channels = weight_shape(op)
        expect(len(x.shape) == 3 and x.dtype == "int8", f"input '{x.name}' is not int8[H,W,C]")
        expect(channels == x.shape[2], f"weight reads {channels} channels, '{x.name}' has {x.shape[2]}")
        check_window(op, (kh, kw), x.shape[:2], y.shape[:2])
        expect_tensor(y, "int8", (*y.shape[:2], o))
        expect_tensor(op.inputs["b"], "int32", (o,))
        expect_tensor(op.inputs["m"], "float32", (o,))
        check_clamp(op)

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        x, y = op.inputs["x"], op.outputs["y"]
        w = whole_weight(op, v)
        columns = im2col(v["x"].astype(np.int32) - x.zero_point, w.shape[1:3], op.attrs["stride"], op.attrs["pad"])
        acc = matmul_exact(columns.reshape(y.shape[0] * y.shape[1], -1), w.reshape(len(w), -1).T) + v["b"]
        q, inside = requantize(acc.astype(np.int32).astype(F32) * v["m"], y.zero_point, op.attrs["clamp"])
        return {"y": q.reshape(y.shape), "mask": inside.reshape(y.shape)}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        x, w = op.inputs["x"], op.inputs["w"]
        grad = g.gradient(op, mult=op.inputs["m"])
        window = {key: op.attrs[key] for key in ("stride", "pad")}
        weights: dict[str, Tensor] = {k: t for k, t in op.inputs.items() if k in ("w", "w_frozen", "perm")}
        g.contribute(op, x, "conv2d_grad_input", {"g": grad, **weights}, **window)
        if w.role == "param":
            saved = g.saved_slice(op, x, w.shape[3]) if "perm" in op.inputs else x
            g.parameter(op, w, "conv2d_grad_weight", {"g": grad, "x": saved}, kernel=w.shape[1:3], **window)
        if op.inputs["b"].role == "param":
            g.parameter(op, op.inputs["b"], "grad_bias", {"g": grad})

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_conv2d", c.input(op.inputs["x"]), c.conv_weight(op), c.ptr(op.inputs["b"]), c.window(op),
            c.requant(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """POSITIONS windows as int16 in groups of four channels, and one window as int8."""
        _, kh, kw, channels = weight_shape(op)
        trained = op.inputs["w"].shape[3]
        groups = sum(-(-kh * kw * part // 4) for part in (trained, channels - trained))
        return 8 * POSITIONS * groups + kh * kw * channels

    def macs(self, op: Op) -> int:
        o, kh, kw, channels = weight_shape(op)
        return op.outputs["y"].elements * kh * kw * channels


class Conv2dGradInput(GradientOp):
    """dL/dx: every g[o] spread over the window it came from, weighted by w[o]."""

    kind = "conv2d_grad_input"

    def check(self, op: Op) -> None:
        g, out = op.inputs["g"], op.outputs["out0"]
        check_weight(op)
        o, kh, kw, channels = weight_shape(op)
        expect_tensor(g, "dfp16", (*g.shape[:2], o))
        check_window(op, (kh, kw), out.shape[:2], g.shape[:2])
        check_epilogue(op, (*out.shape[:2], channels))

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        g: Dfp = v["g"]
        w = whole_weight(op, v)
        ho, wo, o = g.mantissa.shape
        columns = matmul_exact(g.mantissa.reshape(-1, o), w.reshape(o, -1)).reshape(ho, wo, *w.shape[1:])
        acc = col2im(columns, op.outputs["out0"].shape[:2], op.attrs["stride"], op.attrs["pad"])
        return acc.astype(np.int32).astype(F32) * power_of_two(g.exponent)

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_conv2d_grad_input", c.dfp(op.inputs["g"]), c.dims(op.inputs["g"]), c.conv_weight(op), c.window(op),
            c.dims(op.outputs["out0"]), c.epilogue(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """A panel of the weights of two input channels, int16, output channels in pairs."""
        o, kh, kw, _ = weight_shape(op)
        return 8 * kh * kw * (-(-o // 2))

    def macs(self, op: Op) -> int:
        o, kh, kw, channels = weight_shape(op)
        return op.inputs["g"].elements * kh * kw * channels


class Conv2dGradWeight(ParameterGradient):
    """dL/dw[o, i, j, c] = sum over positions of g[.., o] (x[.. + (i, j), c] - z_x), for the trained channels."""

    kind = "conv2d_grad_weight"

    def gradient_shape(self, op: Op) -> tuple[int, ...]:
        kh, kw = op.attrs["kernel"]
        return (op.inputs["g"].shape[2], kh, kw, op.inputs["x"].shape[2])

    def gradient(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        g = v["g"].mantissa
        x = v["x"].astype(np.int32) - op.inputs["x"].zero_point
        columns = im2col(x, op.attrs["kernel"], op.attrs["stride"], op.attrs["pad"])
        return matmul_exact(g.reshape(-1, g.shape[2]).T, columns.reshape(g.shape[0] * g.shape[1], -1))

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_conv2d_grad_weight", c.dfp(op.inputs["g"]), c.dims(op.inputs["g"]), c.input(op.inputs["x"]),
            c.window(op), c.update(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """Panels of int16, positions in pairs: two output channels of g, and some input channels of x."""
        height, width, _ = op.inputs["g"].shape
        half = -(-height * width // 2)
        return 8 * half * (1 + min(max(PANEL_BYTES // (8 * half), 1), COLUMNS // 2))

    def macs(self, op: Op) -> int:
        kh, kw = op.attrs["kernel"]
        return op.inputs["g"].elements * kh * kw * op.inputs["x"].shape[2]


class GatherChannels(OpDefinition):
    """Keep only the channels a sliced weight gradient will need: y[.., j] = x[.., perm[j]]."""

    kind = "gather_channels"

    def check(self, op: Op) -> None:
        x, y = op.inputs["x"], op.outputs["y"]
        expect(op.inputs["perm"].dtype == "uint16", "`perm` is not uint16")
        expect(y.shape[2] <= op.inputs["perm"].shape[0], "gathers more channels than `perm` lists")
        expect_tensor(y, "int8", (*x.shape[:2], y.shape[2]))
        expect(y.zero_point == x.zero_point, "changes the zero point")

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        return {"y": v["x"][:, :, v["perm"][: op.outputs["y"].shape[2]]]}

    def call(self, op: Op, c: Emitter) -> str:
        x, y = op.inputs["x"], op.outputs["y"]
        return c.call(
            "tt_gather_channels", c.ptr(x), x.shape[0] * x.shape[1], x.shape[2], c.ptr(op.inputs["perm"]),
            y.shape[2], c.ptr(y),
        )  # fmt: skip
