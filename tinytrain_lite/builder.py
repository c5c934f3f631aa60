"""Build the forward graph of an int8 network, layer by layer. Front ends call this and nothing else.

Activations are (H, W, C) int8 with one scale and zero point; weights are int8, symmetric, one scale per
output channel; biases are int32 at scale s_w[c] s_x. Every layer needs a name that is unique in the graph.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.errors import GraphError
from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.ops.window import Pad, output_size

INT8 = (-128, 127)


class Builder(Graph):
    """A `Graph` that can append forward layers. Each method returns the layer's output tensor."""

    def input(self, name: str, shape: tuple[int, int, int], scale: float, zero_point: int) -> Tensor:
        """The image, (H, W, C) int8."""
        return self.value(name, shape, "int8", role="input", scale=float(scale), zero_point=int(zero_point))

    def conv2d(
        self, x: Tensor, weight: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, *, stride: int, pad: Pad,
        out_scale: float, out_zero: int, clamp: tuple[int, int] = INT8, name: str,
    ) -> Tensor:  # fmt: skip
        """weight int8 (O, KH, KW, I), w_scale float (O,), bias int32 (O,); pad (top, left, bottom, right)."""
        return self._convolve("conv2d", x, weight, w_scale, bias, weight.shape[1:3], weight.shape[0],
                              stride, pad, out_scale, out_zero, clamp, name)  # fmt: skip

    def depthwise_conv2d(
        self, x: Tensor, weight: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, *, stride: int, pad: Pad,
        out_scale: float, out_zero: int, clamp: tuple[int, int] = INT8, name: str,
    ) -> Tensor:  # fmt: skip
        """weight int8 (C, KH, KW), w_scale float (C,), bias int32 (C,)."""
        return self._convolve("depthwise_conv2d", x, weight, w_scale, bias, weight.shape[1:3], weight.shape[0],
                              stride, pad, out_scale, out_zero, clamp, name)  # fmt: skip

    def add(
        self, a: Tensor, b: Tensor, *, out_scale: float, out_zero: int, clamp: tuple[int, int] = INT8, name: str
    ) -> Tensor:
        """Residual add of two tensors of one shape."""
        y = self._activation(name, a.shape, out_scale, out_zero)
        self.append("add", name, {"a": a, "b": b}, {"y": y}, ratio_a=float(_scale(a) / out_scale),
                    ratio_b=float(_scale(b) / out_scale), clamp=_pair(clamp))  # fmt: skip
        return y

    def avg_pool(self, x: Tensor, *, out_scale: float, out_zero: int, name: str) -> Tensor:
        """Global average pool to (1, 1, C)."""
        y = self._activation(name, (1, 1, x.shape[2]), out_scale, out_zero)
        m = float(_scale(x) / out_scale / (x.shape[0] * x.shape[1]))
        self.append("avg_pool", name, {"x": x}, {"y": y}, m=m, clamp=INT8)
        return y

    def linear(self, x: Tensor, weight: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, *, name: str) -> Tensor:
        """Classifier head, weight int8 (N, I): float32 logits (N,)."""
        inputs = self._parameters(x, weight, w_scale, bias, 1.0, name)
        y = self.value(f"{name}.logits", (weight.shape[0],), "float32", role="output")
        self.append("linear", name, inputs, {"y": y})
        return y

    # ---- shared ---------------------------------------------------------------------------
    def _convolve(
        self, kind: str, x: Tensor, weight: np.ndarray, w_scale: np.ndarray, bias: np.ndarray,
        kernel: tuple[int, int], channels: int, stride: int, pad: Pad, out_scale: float, out_zero: int,
        clamp: tuple[int, int], name: str,
    ) -> Tensor:  # fmt: skip
        inputs = self._parameters(x, weight, w_scale, bias, out_scale, name)
        hw = output_size(x.shape[0], x.shape[1], kernel, stride, pad)
        y = self._activation(name, (*hw, channels), out_scale, out_zero)
        self.append(kind, name, inputs, {"y": y}, stride=int(stride), pad=tuple(int(p) for p in pad),
                    clamp=_pair(clamp))  # fmt: skip
        return y

    def _parameters(
        self, x: Tensor, weight: np.ndarray, w_scale: np.ndarray, bias: np.ndarray, out_scale: float, name: str
    ) -> dict[str, Tensor]:
        if weight.dtype != np.int8 or bias.dtype != np.int32:
            raise GraphError(f"layer '{name}': weight is {weight.dtype}, bias {bias.dtype}; expected int8 and int32")
        if len(w_scale) != len(weight) or len(bias) != len(weight):
            raise GraphError(
                f"layer '{name}': {len(weight)} output channels, {len(w_scale)} scales, {len(bias)} biases"
            )
        s_w = np.asarray(w_scale, np.float64)
        if not (np.all(np.isfinite(s_w)) and s_w.min() > 0 and out_scale > 0):
            raise GraphError(f"layer '{name}': a scale is not positive and finite")
        m = (s_w * _scale(x) / out_scale).astype(np.float32)
        w = self.const(f"{name}.w", weight, scale=s_w.astype(np.float32))
        b = self.const(f"{name}.b", bias, scale=(s_w * _scale(x)).astype(np.float32))
        return {"x": x, "w": w, "b": b, "m": self.const(f"{name}.m", m)}

    def _activation(self, name: str, shape: tuple[int, ...], scale: float, zero: int) -> Tensor:
        return self.value(f"{name}.y", shape, "int8", scale=float(scale), zero_point=int(zero))


def _scale(t: Tensor) -> float:
    assert isinstance(t.scale, float)
    return t.scale


def _pair(clamp: tuple[int, int]) -> tuple[int, int]:
    return int(clamp[0]), int(clamp[1])
