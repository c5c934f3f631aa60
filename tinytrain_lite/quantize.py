"""Post-training quantization: a `FloatModel` and some images -> the int8 forward graph.

Weights: symmetric, one scale per output channel, s_w = max|w| / 127. Biases: int32 at s_w s_x.
Activations: per tensor, real = s (q - z), from ranges seen on calibration images (Jacob et al. 2018,
arXiv 1712.05877, sections 2.1 and 3). The image: q = pixel - 128, whatever its scale: see `quantize_image`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tinytrain_lite.builder import INT8, Builder
from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.frontend.float_model import IMAGE, FloatLayer, FloatModel
from tinytrain_lite.graph import Graph, Tensor

__all__ = [
    "HEAD_SCALE",
    "PIXEL_SCALE",
    "PIXEL_ZERO",
    "Range",
    "calibrate",
    "quantize",
    "quantize_image",
    "quantize_weight",
    "revive_channels",
]

# A network trained on pixel / 255: s (q - z) = (pixel - 128 + 128) / 255, without loss.
PIXEL_SCALE = 1 / 255
PIXEL_ZERO = -128

# A dead channel (hardly any weight) still gets a scale on which it can learn and its bias fits int32: no less
# than this part of the largest scale of its layer.
SMALLEST_SCALE = 2.0**-10

# Weight scale of an untrained (all-zero) head: room for weights within +-1.
HEAD_SCALE = 1 / 127

BATCH = 64


@dataclass(frozen=True)
class Range:
    """Smallest and largest value an activation takes, in real units; always holds 0, which padding needs."""

    low: float
    high: float

    def grid(self) -> tuple[float, int]:
        """(scale, zero point) that spread the range over -128..127."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = (high - low) / 255 or 1.0
        return scale, int(np.clip(round(-128 - low / scale), -128, 127))


def quantize_image(images: np.ndarray) -> np.ndarray:
    """uint8 pixels -> int8 of the same shape: q = pixel - 128 (on the device, one exclusive or with 0x80).

    Raises TinyTrainError for anything but uint8.
    """
    if images.dtype != np.uint8:
        raise TinyTrainError(f"an image must be uint8 pixels 0..255, not {images.dtype}; convert it first")
    return (images ^ np.uint8(0x80)).view(np.int8)


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float (O, ...) -> int8 of the same shape within +-127, and float32 scales (O,)."""
    peak = np.abs(weight.reshape(len(weight), -1).astype(np.float64)).max(axis=1)
    scale = np.maximum(peak, SMALLEST_SCALE * peak.max()) / 127
    if not scale.any():  # an untrained head
        scale = np.full_like(scale, HEAD_SCALE)
    scale = scale.astype(np.float32)
    columns = scale.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(weight / columns), -127, 127).astype(np.int8), scale


def revive_channels(
    weight: np.ndarray, scale: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move the dead channels of an int8 layer to the smallest scale that `quantize_weight` would give them.

    weight: int8 (O, ...), scale: float32 (O,), bias: int32 (O,). Other channels keep every bit.
    """
    floor = np.float32(SMALLEST_SCALE * scale.max())
    dead = scale < floor
    ratio = np.where(dead, scale.astype(np.float64) / floor, 1.0)
    return (
        np.rint(weight * ratio.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8),
        np.where(dead, floor, scale),
        np.rint(bias * ratio).astype(np.int32),
    )


def calibrate(model: FloatModel, images: np.ndarray) -> dict[str, Range]:
    """Range of every activation over calibration images, by layer name, after the activation's clamp.

    images: uint8 (N, H, W, C); a hundred typical ones are enough.
    Raises TinyTrainError if they do not fit the model.
    """
    if images.ndim != 4 or images.shape[1:] != model.shape or not len(images):
        raise TinyTrainError(
            f"{model.name}: calibration images are {images.shape}; expected (N, H, W, C) with {model.shape}"
        )
    ranges: dict[str, Range] = {}
    for start in range(0, len(images), BATCH):
        q = quantize_image(images[start : start + BATCH]).astype(np.float32)
        for name, value in model.run((q - PIXEL_ZERO) * np.float32(PIXEL_SCALE)).items():
            low, high = float(value.min()), float(value.max())
            if not math.isfinite(low + high):
                raise TinyTrainError(f"{model.name}: '{name}' takes the value {low + high} on calibration images")
            seen = ranges.get(name, Range(low, high))
            ranges[name] = Range(min(low, seen.low), max(high, seen.high))
    return ranges


def quantize(model: FloatModel, ranges: Mapping[str, Range]) -> Graph:
    """The int8 graph of ``model``, with activation grids from ``ranges`` (see `calibrate`).

    Pooling keeps the grid of its input, so that averaging needs no range of its own.
    """
    graph = Builder(model.name)
    tensors = {IMAGE: graph.input(IMAGE, model.shape, PIXEL_SCALE, PIXEL_ZERO)}
    for layer in model.layers:
        tensors[layer.name] = _append(graph, layer, [tensors[name] for name in layer.inputs], ranges)
    return graph.verify()


def _append(graph: Builder, layer: FloatLayer, x: list[Tensor], ranges: Mapping[str, Range]) -> Tensor:
    if layer.kind == "avg_pool":
        assert isinstance(x[0].scale, float)
        return graph.avg_pool(x[0], out_scale=x[0].scale, out_zero=x[0].zero_point, name=layer.name)
    if layer.kind == "linear":
        return graph.linear(x[0], *_parameters(layer, x[0]), name=layer.name)
    scale, zero = ranges[layer.name].grid()
    clamp = _clamp(layer, scale, zero)
    if layer.kind == "add":
        return graph.add(x[0], x[1], out_scale=scale, out_zero=zero, clamp=clamp, name=layer.name)
    append = graph.conv2d if layer.kind == "conv2d" else graph.depthwise_conv2d
    return append(
        x[0], *_parameters(layer, x[0]), stride=layer.stride, pad=layer.pad,
        out_scale=scale, out_zero=zero, clamp=clamp, name=layer.name,
    )  # fmt: skip


def _parameters(layer: FloatLayer, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight int8, weight scale float32, bias int32)."""
    assert layer.weight is not None and layer.bias is not None and isinstance(x.scale, float)
    weight, scale = quantize_weight(layer.weight)
    bias = np.rint(layer.bias / (scale.astype(np.float64) * x.scale))
    limit = np.iinfo(np.int32).max
    if np.abs(bias).max() > limit:
        raise TinyTrainError(
            f"layer '{layer.name}': a bias is {np.abs(bias).max():.3g} steps of its grid, beyond int32"
        )
    return weight, scale, bias.astype(np.int32)


def _clamp(layer: FloatLayer, scale: float, zero: int) -> tuple[int, int]:
    """The activation's range on the int8 grid, no wider than int8."""
    low, high = (zero + edge / scale for edge in layer.clamp)
    return (
        INT8[0] if low <= INT8[0] else round(low),
        INT8[1] if high >= INT8[1] else round(high),
    )
