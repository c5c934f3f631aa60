"""A float network as a short list of layers: what `torch_export` writes and `quantize` reads.

Batch norm is folded, activations are clamps, weights lie in the device's order. Layers are in execution
order and refer to their inputs by name; the image is called "image".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch  # at run time only where a network runs: int8 checkpoints do without

__all__ = ["IMAGE", "FloatLayer", "FloatModel"]

IMAGE = "image"


@dataclass
class FloatLayer:
    """One layer; ``kind`` is conv2d, depthwise_conv2d, add, avg_pool or linear.

    weight: float32 [O, KH, KW, I] (conv2d), [C, KH, KW] (depthwise_conv2d), [N, I] (linear).
    bias: float32 [O]. pad: (top, left, bottom, right). clamp: range of the fused activation, in real units.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    stride: int = 1
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    clamp: tuple[float, float] = (-math.inf, math.inf)

    def run(self, *x: torch.Tensor) -> torch.Tensor:
        """The layer in float32; activations are (N, C, H, W), the output of ``linear`` is (N, classes)."""
        import torch
        from torch.nn import functional as F

        if self.kind == "add":
            y = x[0] + x[1]
        elif self.kind == "avg_pool":
            y = x[0].mean((2, 3), keepdim=True)
        else:
            assert self.weight is not None and self.bias is not None
            weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
            if self.kind == "linear":
                y = F.linear(x[0].flatten(1), weight, bias)
            else:
                top, left, bottom, right = self.pad
                padded = F.pad(x[0], (left, right, top, bottom))
                depthwise = self.kind == "depthwise_conv2d"
                weight = weight[:, None] if depthwise else weight.permute(0, 3, 1, 2)
                groups = weight.shape[0] if depthwise else 1
                y = F.conv2d(padded, weight, bias, stride=self.stride, groups=groups)
        return y.clamp(*self.clamp)


@dataclass
class FloatModel:
    """A network whose last layer is ``linear``; ``shape`` is that of one image, (H, W, C)."""

    name: str
    shape: tuple[int, int, int]
    layers: list[FloatLayer] = field(default_factory=list)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Every activation by layer name, (N, C, H, W). images: float32 (N, H, W, C), as the network expects them."""
        import torch

        values = {IMAGE: torch.from_numpy(images).permute(0, 3, 1, 2)}
        with torch.no_grad():
            for layer in self.layers:
                values[layer.name] = layer.run(*(values[name] for name in layer.inputs))
        return {name: value.numpy() for name, value in values.items()}
