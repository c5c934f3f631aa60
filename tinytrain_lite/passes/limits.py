"""Prove that no int32 accumulator can overflow, by choosing how many bits a gradient's mantissa may use.

A kernel that reads gradient g sums at most K products of |g| <= limit with a factor of at most F, so
limit = floor((2^31 - 1) / (K F)), over all readers, at most 32767. Up to 256 positions that costs nothing; a
64x64 map leaves 11 bits, still far finer than the gradient's own noise. 64-bit kernels are never needed.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.ops.conv2d import weight_shape
from tinytrain_lite.ops.update import BIAS_BOUND, WEIGHT_BOUND

INT32_MAX = 2**31 - 1
MANTISSA_MAX = 32767
FEWEST = 255  # below 8 bits a gradient is not worth having


def assign_limits(graph: Graph) -> Graph:
    """Set `limit` of every gradient. Raises UnsupportedError naming the op no limit can save."""
    graph = graph.copy()
    for op in graph:
        if op.kind in ("conv2d", "depthwise_conv2d", "linear"):
            _check_forward(op)
    for t in graph.tensors.values():
        if t.dtype != "dfp16":
            continue
        worst, reader = max(((gain(op), op) for op in graph.readers(t)), key=lambda item: item[0], default=(1, None))
        t.limit = min(MANTISSA_MAX, INT32_MAX // max(worst, 1))
        if reader is not None and t.limit < FEWEST:
            raise UnsupportedError(
                f"op '{reader.name}' ({reader.kind}) sums so many products that gradient '{t.name}' would keep "
                f"fewer than 8 bits; use a smaller input or train fewer of the early layers"
            )
    return graph.verify()


def gain(op: Op) -> int:
    """Largest |accumulator| the op can reach per unit of its gradient mantissa."""
    g = op.inputs.get("g")
    if g is None:
        return 1  # elementwise readers work in float32
    positions = g.elements // g.shape[-1]
    if op.kind == "grad_bias":
        return positions
    if op.kind.endswith("_grad_weight"):
        return positions * _largest_offset(op.inputs["x"])
    if op.kind == "conv2d_grad_input":
        o, kh, kw, _ = weight_shape(op)
        return o * kh * kw * WEIGHT_BOUND
    if op.kind == "depthwise_grad_input":
        return op.inputs["w"].shape[1] * op.inputs["w"].shape[2] * WEIGHT_BOUND
    if op.kind == "linear_grad_input":
        return op.inputs["w"].shape[0] * WEIGHT_BOUND
    return 1


def _largest_offset(x: Tensor) -> int:
    """max |x - z_x| over all int8 x."""
    return max(127 - x.zero_point, x.zero_point + 128)


def _check_forward(op: Op) -> None:
    b, w = op.inputs["b"], op.inputs["w"]
    assert b.data is not None
    terms = w.elements // w.shape[0] if "w_frozen" not in op.inputs else int(np.prod(weight_shape(op)[1:]))
    bias = BIAS_BOUND if b.role == "param" else int(np.abs(b.data.astype(np.int64)).max(initial=0))
    if bias + terms * _largest_offset(op.inputs["x"]) * (WEIGHT_BOUND + 1) > INT32_MAX:
        raise UnsupportedError(f"op '{op.name}' ({op.kind}) may overflow its int32 accumulator ({terms} products)")
