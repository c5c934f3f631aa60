"""An independent implementation of the forward graph in PyTorch float64, differentiable through rounding.

Convolutions, pooling and autograd are PyTorch's; only the float32 rounding of the requantization is repeated, so
that forward values are the same integers. Gradients pass rounding unchanged and a clamp where it changed nothing
(straight-through estimator).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from tinytrain_lite.graph import Graph, Op


def _as_float32(value: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Forward: the float32 result `exact`; backward: the float64 expression `value`."""
    return value + (exact.double() - value).detach()


class Oracle:
    """Runs a forward graph; `params` are float64 leaves by tensor name whose `.grad` autograd fills.

    passes: after `forward`, tensor name -> where its gradient passes the clamp (bool, or True for all of it).
    """

    def __init__(self, graph: Graph, train: bool = True):
        self.graph = graph
        self.passes: dict[str, torch.Tensor | bool] = {}
        self.params = {
            t.name: torch.tensor(t.data.astype(np.float64), requires_grad=train)
            for op in graph
            for role, t in op.inputs.items()
            if role in ("w", "b") and t.data is not None
        }

    def forward(self, image: np.ndarray) -> dict[str, torch.Tensor]:
        """image int8 (H, W, C) -> every tensor by name, activations as (1, C, H, W)."""
        nchw = torch.tensor(image.astype(np.float64)).permute(2, 0, 1)[None]
        values = {self.graph.image.name: nchw}
        for op in self.graph:
            values[op.outputs["y"].name] = self._op(op, values)
        return values

    def loss(self, image: np.ndarray, label: int) -> torch.Tensor:
        logits = self.forward(image)[self.graph.ops[-1].outputs["y"].name]
        return F.cross_entropy(logits[None], torch.tensor([label]))

    def _op(self, op: Op, values: dict[str, torch.Tensor]) -> torch.Tensor:
        if op.kind == "add":
            a, b = (values[op.inputs[r].name] - op.inputs[r].zero_point for r in "ab")
            ra, rb = op.attrs["ratio_a"], op.attrs["ratio_b"]
            exact = a.float() * np.float32(ra) + b.float() * np.float32(rb)
            return self._round_clamp(op, _as_float32(a * ra + b * rb, exact))
        x = values[op.inputs["x"].name] - op.inputs["x"].zero_point
        if op.kind == "avg_pool":
            total = x.sum(dim=(2, 3), keepdim=True)
            return self._round_clamp(op, _as_float32(total * op.attrs["m"], total.float() * np.float32(op.attrs["m"])))
        acc, m = accumulate(op, x, self.params), effective_scale(op)
        v = _as_float32(acc * m.double(), acc.float() * m)
        return v if op.kind == "linear" else self._round_clamp(op, v)

    def _round_clamp(self, op: Op, v: torch.Tensor) -> torch.Tensor:
        y, (low, high) = op.outputs["y"], op.attrs["clamp"]
        q = v + (torch.round(v) - v).detach() + y.zero_point
        self.passes[y.name] = (q >= low) & (q <= high)
        return torch.clamp(q, low, high)


def accumulate(op: Op, x: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a linear or convolution layer sums up; x (1, C, H, W) with its zero point taken off."""
    w, bias = params[op.inputs["w"].name], params[op.inputs["b"].name]
    if op.kind == "linear":
        return F.linear(x.flatten(), w, bias)
    top, left, bottom, right = op.attrs["pad"]
    padded = F.pad(x, (left, right, top, bottom))
    dense = op.kind == "conv2d"
    kernel = w.permute(0, 3, 1, 2) if dense else w[:, None]
    return F.conv2d(padded, kernel, bias, op.attrs["stride"], groups=1 if dense else x.shape[1])


def effective_scale(op: Op) -> torch.Tensor:
    """m = s_w s_x / s_y, float32, shaped to multiply an accumulator."""
    m = torch.tensor(op.inputs["m"].data)
    return m if op.kind == "linear" else m.view(1, -1, 1, 1)


def rounding_bounds(graph: Graph, image: np.ndarray, errors: dict[str, float]) -> dict[str, np.ndarray]:
    """How far rounding may carry the gradient of each parameter: first-order error analysis, worst case.

    errors: gradient tensor of the unfused training graph -> the most that an element of it is off by its own rounding.
    `op.g` is the gradient of what an op sums up, `y.d0`, `y.d1` are the gradients that reach its output. An error goes
    the way of the gradient, multiplied by magnitudes: |w|, |m|, |x - z|, and stopped by the clamp. That is the backward
    pass of a network of those magnitudes, which PyTorch runs.
    """
    oracle = Oracle(graph)
    with torch.no_grad():
        values = oracle.forward(image)
    params = {name: p.detach().abs().requires_grad_() for name, p in oracle.params.items()}
    paths = {graph.image.name: torch.zeros(())}
    total = torch.zeros((), dtype=torch.float64)
    for op in graph:
        y = op.outputs["y"]
        scale: torch.Tensor | float = 1.0
        if op.kind == "add":
            acc = sum(abs(op.attrs[f"ratio_{r}"]) * paths[op.inputs[r].name] for r in "ab")
        elif op.kind == "avg_pool":
            acc = paths[op.inputs["x"].name].sum(dim=(2, 3), keepdim=True) * op.attrs["m"]
        else:
            x = op.inputs["x"]
            magnitude = (values[x.name] - x.zero_point).abs()
            acc = accumulate(op, magnitude + paths[x.name] - paths[x.name].detach(), params)
            scale = effective_scale(op).abs().double()
        paths[y.name] = acc * scale * oracle.passes.get(y.name, True)
        total = total + errors.get(f"{op.name}.g", 0.0) * acc.sum()
        for name, error in errors.items():
            if name.startswith(f"{y.name}.d"):
                total = total + error * paths[y.name].sum()
    total.backward()
    return {name: p.grad.numpy() for name, p in params.items()}


def to_hwc(t: torch.Tensor) -> np.ndarray:
    return t.detach()[0].permute(1, 2, 0).numpy()
