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


def _round_clamp(v: torch.Tensor, zero: int, clamp: tuple[int, int]) -> torch.Tensor:
    q = v + (torch.round(v) - v).detach() + zero
    return torch.clamp(q, *clamp)


class Oracle:
    """Runs a forward graph; `params` are float64 leaves by tensor name whose `.grad` autograd fills."""

    def __init__(self, graph: Graph, train: bool = True):
        self.graph = graph
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
        y = op.outputs["y"]
        if op.kind == "add":
            a, b = (values[op.inputs[r].name] - op.inputs[r].zero_point for r in "ab")
            ra, rb = op.attrs["ratio_a"], op.attrs["ratio_b"]
            exact = a.float() * np.float32(ra) + b.float() * np.float32(rb)
            return _round_clamp(_as_float32(a * ra + b * rb, exact), y.zero_point, op.attrs["clamp"])
        x = values[op.inputs["x"].name] - op.inputs["x"].zero_point
        if op.kind == "avg_pool":
            total = x.sum(dim=(2, 3), keepdim=True)
            v = _as_float32(total * op.attrs["m"], total.float() * np.float32(op.attrs["m"]))
            return _round_clamp(v, y.zero_point, op.attrs["clamp"])
        w, bias = self.params[op.inputs["w"].name], self.params[op.inputs["b"].name]
        m = torch.tensor(op.inputs["m"].data)
        if op.kind == "linear":
            acc = F.linear(x.flatten(), w, bias)
            return _as_float32(acc * m.double(), acc.float() * m)
        top, left, bottom, right = op.attrs["pad"]
        padded = F.pad(x, (left, right, top, bottom))
        dense = op.kind == "conv2d"
        kernel = w.permute(0, 3, 1, 2) if dense else w[:, None]
        acc = F.conv2d(padded, kernel, bias, op.attrs["stride"], groups=1 if dense else x.shape[1])
        m = m.view(1, -1, 1, 1)
        return _round_clamp(_as_float32(acc * m.double(), acc.float() * m), y.zero_point, op.attrs["clamp"])


def to_hwc(t: torch.Tensor) -> np.ndarray:
    return t.detach()[0].permute(1, 2, 0).numpy()
