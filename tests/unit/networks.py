"""Small random int8 networks for the tests: residuals, k = 1/3/5/7, stride 1/2, odd channel counts, any zero point."""

from __future__ import annotations

import numpy as np

from tinytrain_lite.builder import Builder
from tinytrain_lite.graph import Graph, Tensor


class RandomNetwork:
    """Draws layers whose outputs use the int8 range: some elements clamp, most do not."""

    def __init__(self, seed: int, name: str = "net"):
        self.rng = np.random.default_rng(seed)
        self.b = Builder(name)

    def weights(self, *shape: int) -> np.ndarray:
        return self.rng.integers(-127, 128, shape).astype(np.int8)

    def _quant(self, terms: int, out: int, x: Tensor) -> dict[str, object]:
        """Scales that bring the typical accumulator to about +-60 output steps."""
        out_scale = float(self.rng.uniform(0.01, 0.05))
        spread = 73.0 * 60.0 * np.sqrt(terms) * float(x.scale)  # type: ignore[arg-type]
        w_scale = self.rng.uniform(0.5, 1.5, out) * 50 * out_scale / spread
        bias = self.rng.normal(0, 73 * 20 * np.sqrt(terms), out).astype(np.int32)
        zero = int(self.rng.integers(-60, 60))
        return {"w_scale": w_scale, "bias": bias, "out_scale": out_scale, "out_zero": zero}

    def conv(self, x: Tensor, out: int, k: int, stride: int, name: str) -> Tensor:
        quant = self._quant(k * k * x.shape[2], out, x)
        return self.b.conv2d(
            x, self.weights(out, k, k, x.shape[2]), stride=stride, pad=(k // 2,) * 4, name=name, **quant
        )

    def depthwise(self, x: Tensor, k: int, stride: int, name: str) -> Tensor:
        quant = self._quant(k * k, x.shape[2], x)
        return self.b.depthwise_conv2d(
            x, self.weights(x.shape[2], k, k), stride=stride, pad=(k // 2,) * 4, name=name, **quant
        )

    def block(self, x: Tensor, out: int, expand: int, k: int, stride: int, name: str) -> Tensor:
        """Inverted residual: expand, depthwise, project; the skip is added where shapes allow."""
        y = self.conv(x, expand, 1, 1, f"{name}.expand")
        y = self.depthwise(y, k, stride, f"{name}.depthwise")
        y = self.conv(y, out, 1, 1, f"{name}.project")
        if y.shape == x.shape:
            y = self.b.add(x, y, out_scale=float(self.rng.uniform(0.02, 0.06)),
                           out_zero=int(self.rng.integers(-40, 40)), name=f"{name}.add")  # fmt: skip
        return y

    def head(self, x: Tensor, classes: int) -> Graph:
        pool = self.b.avg_pool(x, out_scale=float(x.scale) * 0.7, out_zero=int(self.rng.integers(-40, 40)), name="pool")  # type: ignore[arg-type]
        quant = self._quant(x.shape[2], classes, pool)
        self.b.linear(pool, self.weights(classes, x.shape[2]), quant["w_scale"], quant["bias"], name="head")  # type: ignore[arg-type]
        return self.b.verify()


def residual_network(seed: int, size: int = 12, classes: int = 5) -> Graph:
    """Stem stride 2, four blocks with k = 3, 7, 5, 3, a stride-2 block between residual ones."""
    net = RandomNetwork(seed, "residual")
    rng = net.rng
    x = net.b.input("image", (size, size, 3), 1 / 127.5, int(rng.integers(-20, 20)))
    y = net.conv(x, 6, 3, 2, "stem")
    y = net.block(y, 6, 9, 3, 1, "b0")
    y = net.block(y, 7, 13, 7, 2, "b1")
    y = net.block(y, 7, 14, 5, 1, "b2")
    y = net.block(y, 7, 11, 3, 1, "b3")
    return net.head(y, classes)


def images(graph: Graph, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random int8 images (N, H, W, C) and labels (N,)."""
    rng = np.random.default_rng(seed)
    classes = next(op for op in graph if op.kind == "linear").inputs["w"].shape[0]
    x = rng.integers(-128, 128, (count, *graph.image.shape)).astype(np.int8)
    return x, rng.integers(0, classes, count)
