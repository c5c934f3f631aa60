"""Depthwise convolution (one filter per channel): forward and gradients.

x (H, W, C) int8, w (C, KH, KW) int8 symmetric per channel, b (C,) int32, y (Ho, Wo, C) int8; the arithmetic
is that of ops/conv2d.py with the sum over one channel only.

The kernels take one channel at a time: it is copied into scratch as a padded int16 plane, then the results are
written. So the output may overwrite the input, channel by channel. Scratch sizes repeat those of
firmware/kernels/depthwise.c and depthwise_grad.c, whose comments show the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import OpDefinition, check_clamp, expect, expect_tensor
from tinytrain_lite.ops.epilogue import GradientOp, check_epilogue, skips
from tinytrain_lite.ops.numerics import F32, Dfp, power_of_two, requantize
from tinytrain_lite.ops.update import ParameterGradient
from tinytrain_lite.ops.window import check_window, col2im, im2col

if TYPE_CHECKING:
    from tinytrain_lite.autodiff import GradientBuilder
    from tinytrain_lite.codegen.emit import Emitter
    from tinytrain_lite.reference import Machine


MAX_KERNEL, MAX_STRIDE = 7, 2
BAND_BYTES = 2048  # a tall plane is taken in bands of rows that fit about this much scratch (plane.h)
PLANE_SLACK = 8  # elements behind the last row that the last sums of a row may touch


def band_rows(rows: int, row_bytes: int, fixed_bytes: int) -> int:
    """Output rows a kernel takes at a time."""
    return max(1, min(rows, (BAND_BYTES - fixed_bytes) // row_bytes))


def even(n: int) -> int:
    return n + n % 2


def tap_bytes(kernel_h: int, kernel_w: int, lead: int = 0) -> int:
    """One channel's kernel, int16, packed for sums that begin at even and at odd columns."""
    return 8 * kernel_h * ((kernel_w + lead) // 2 + 1)


class DepthwiseConv2d(OpDefinition):
    kind = "depthwise_conv2d"

    def check(self, op: Op) -> None:
        x, w, y = op.inputs["x"], op.inputs["w"], op.outputs["y"]
        expect(w.dtype == "int8" and len(w.shape) == 3, f"weight '{w.name}' is not int8[C,KH,KW]")
        channels, kh, kw = w.shape
        expect(len(x.shape) == 3 and x.dtype == "int8", f"input '{x.name}' is not int8[H,W,C]")
        expect(channels == x.shape[2], f"weight has {channels} channels, '{x.name}' has {x.shape[2]}")
        expect(kw <= MAX_KERNEL, f"kernel width {kw} is above {MAX_KERNEL}, the widest the kernels take")
        expect(op.attrs["stride"] <= MAX_STRIDE, f"stride {op.attrs['stride']} is above {MAX_STRIDE}")
        check_window(op, (kh, kw), x.shape[:2], y.shape[:2])
        expect_tensor(y, "int8", (*y.shape[:2], channels))
        expect_tensor(op.inputs["b"], "int32", (channels,))
        expect_tensor(op.inputs["m"], "float32", (channels,))
        check_clamp(op)

    def reference(self, op: Op, v: Mapping[str, Any], machine: Machine) -> dict[str, Any]:
        x, y = op.inputs["x"], op.outputs["y"]
        w = v["w"].astype(np.int32)
        columns = im2col(v["x"].astype(np.int32) - x.zero_point, w.shape[1:], op.attrs["stride"], op.attrs["pad"])
        acc = np.einsum("pqijc,cij->pqc", columns, w, dtype=np.int64) + v["b"]
        q, inside = requantize(acc.astype(np.int32).astype(F32) * v["m"], y.zero_point, op.attrs["clamp"])
        return {"y": q, "mask": inside}

    def vjp(self, op: Op, g: GradientBuilder) -> None:
        x, w = op.inputs["x"], op.inputs["w"]
        grad = g.gradient(op, mult=op.inputs["m"])
        window = {key: op.attrs[key] for key in ("stride", "pad")}
        g.contribute(op, x, "depthwise_grad_input", {"g": grad, "w": w}, **window)
        if w.role == "param":
            rows = {"rows": op.inputs["rows"]} if "rows" in op.inputs else {}
            g.parameter(op, w, "depthwise_grad_weight", {"g": grad, "x": x, **rows}, kernel=w.shape[1:], **window)
        if op.inputs["b"].role == "param":
            g.parameter(op, op.inputs["b"], "grad_bias", {"g": grad})

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_depthwise_conv2d", c.input(op.inputs["x"]), c.ptr(op.inputs["w"]), c.ptr(op.inputs["b"]),
            c.window(op), c.requant(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """int32 sums of a band, packed taps, and the plane of the band."""
        (height, width, _), (_, kh, kw), stride = op.outputs["y"].shape, op.inputs["w"].shape, op.attrs["stride"]
        pitch = even(max((width - 1) * stride + kw, op.attrs["pad"][1] + op.inputs["x"].shape[1]))
        band = band_rows(height, 4 * width + 2 * stride * pitch, 2 * max(kh - stride, 0) * pitch)
        plane = 2 * (((band - 1) * stride + kh) * pitch + PLANE_SLACK)
        return 4 * band * width + tap_bytes(kh, kw) + plane

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        """A band's input rows are read before its output rows are written; these lie above them if y is no wider."""
        return [("y", "x")] if op.outputs["y"].shape[1] <= op.inputs["x"].shape[1] else []

    def macs(self, op: Op) -> int:
        return op.outputs["y"].elements * op.inputs["w"].shape[1] * op.inputs["w"].shape[2]


class DepthwiseGradInput(GradientOp):
    kind = "depthwise_grad_input"

    def check(self, op: Op) -> None:
        g, w, out = op.inputs["g"], op.inputs["w"], op.outputs["out0"]
        expect_tensor(g, "dfp16", (*g.shape[:2], w.shape[0]))
        check_window(op, w.shape[1:], out.shape[:2], g.shape[:2])
        check_epilogue(op, (*out.shape[:2], w.shape[0]))

    def value(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        g: Dfp = v["g"]
        columns = np.einsum("pqc,cij->pqijc", g.mantissa.astype(np.int64), v["w"].astype(np.int64))
        acc = col2im(columns, op.outputs["out0"].shape[:2], op.attrs["stride"], op.attrs["pad"])
        return acc.astype(np.int32).astype(F32) * power_of_two(g.exponent)

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_depthwise_grad_input", c.dfp(op.inputs["g"]), c.dims(op.inputs["g"]), c.ptr(op.inputs["w"]),
            c.window(op), c.dims(op.outputs["out0"]), c.epilogue(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """int32 sums and packed taps of one channel, and its g framed by the zeros a full correlation meets."""
        out, (_, kh, kw), stride = op.outputs["out0"], op.inputs["w"].shape, op.attrs["stride"]
        height, width = (
            (pad + size - 1) // stride - pad // stride + 1 + (k - 1) // stride
            for size, k, pad in zip(out.shape[:2], (kh, kw), op.attrs["pad"][:2], strict=True)
        )
        return 4 * out.shape[0] * out.shape[1] + tap_bytes(kh, kw, lead=1) + 2 * (height * even(width) + PLANE_SLACK)

    def in_place(self, op: Op) -> list[tuple[str, str]]:
        return [("out0", f"skip{i}") for i in range(len(skips(op)))] or [("out0", "g")]

    def macs(self, op: Op) -> int:
        return op.inputs["g"].elements * op.inputs["w"].shape[1] * op.inputs["w"].shape[2]


class DepthwiseGradWeight(ParameterGradient):
    """dL/dw[c, i, j]; input `rows` uint16 (sparse update) lists the channels that learn."""

    kind = "depthwise_grad_weight"

    def gradient_shape(self, op: Op) -> tuple[int, ...]:
        rows = op.inputs["rows"].elements if "rows" in op.inputs else op.inputs["g"].shape[2]
        return (rows, *op.attrs["kernel"])

    def gradient(self, op: Op, v: Mapping[str, Any]) -> np.ndarray:
        x = v["x"].astype(np.int32) - op.inputs["x"].zero_point
        columns = im2col(x, op.attrs["kernel"], op.attrs["stride"], op.attrs["pad"])
        sums = np.einsum("pqijc,pqc->cij", columns, v["g"].mantissa.astype(np.int64), dtype=np.int64)
        return sums[v["rows"]] if "rows" in op.inputs else sums

    def call(self, op: Op, c: Emitter) -> str:
        return c.call(
            "tt_depthwise_grad_weight", c.dfp(op.inputs["g"]), c.dims(op.inputs["g"]), c.input(op.inputs["x"]),
            c.window(op), c.update(op), c.scratch(op),
        )  # fmt: skip

    def scratch_bytes(self, op: Op) -> int:
        """int32 sums of one channel, and the planes of a band: g, and x with its columns dealt out by the stride."""
        (height, width, _), (kh, kw), stride = op.inputs["g"].shape, op.attrs["kernel"], op.attrs["stride"]
        words = width // 2 + 1
        reach = (op.attrs["pad"][1] + op.inputs["x"].shape[1] - 1) // stride + 1
        pitch = stride * even(max(2 * (words + (kw - 1) // stride // 2), reach))
        band = band_rows(height, 8 * words + 2 * stride * pitch, 2 * max(kh - stride, 0) * pitch)
        return 4 * kh * kw + 8 * band * words + 2 * ((band - 1) * stride + kh) * pitch

    def macs(self, op: Op) -> int:
        rows, kh, kw = self.gradient_shape(op)
        return op.inputs["g"].shape[0] * op.inputs["g"].shape[1] * rows * kh * kw
