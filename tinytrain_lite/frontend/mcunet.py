"""The paper's int8 checkpoints (MCUNet-5FPS, MobileNetV2-w0.35, ProxylessNAS-w0.3) -> the int8 forward graph.

A checkpoint is a first convolution, inverted-residual blocks (pointwise1, depthwise, pointwise2, residual)
and a 1x1-convolution classifier, each with int8 weights, int32 biases, per-channel `w_scales` and the scales
and zero points of input and output. Padding is (k - 1) // 2 on every side, at stride 2 too. Trained on
(pixel - 127.5) / 127.5; the device computes pixel - 128, half a grid step away.

About sixty channels a model are dead: scales near 4e-9 with the bias cut off at +-2^31, where adding a single
product overflows int32. They are moved to a scale on which they can learn (`revive_channels`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinytrain_lite.builder import Builder
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.checkpoint import CheckpointError, read_checkpoint
from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.quantize import HEAD_SCALE, revive_channels

__all__ = ["import_checkpoint"]

IMAGE_SCALE = 1 / 127.5
IMAGE_ZERO = 0


def import_checkpoint(path: Path | str, num_classes: int | None = None) -> Graph:
    """Read a checkpoint.

    num_classes: replace the head by an untrained one of so many classes (zero weights, so that training
    starts from equal odds); None keeps the 1,000 ImageNet classes.
    Raises CheckpointError for a file that is missing, damaged or inconsistent, UnsupportedError for layers
    the system does not do.
    """
    if num_classes is not None and num_classes < 2:
        raise UnsupportedError(f"a head of {num_classes} classes cannot learn; ask for at least 2")
    path = Path(path)
    content = read_checkpoint(path)
    try:
        return _Importer(path.stem).run(content, num_classes)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: not laid out as a checkpoint of the paper: {error!r}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


class _Importer:
    def __init__(self, name: str) -> None:
        self.graph = Builder(name)

    def run(self, content: dict[str, Any], num_classes: int | None) -> Graph:
        first = content["first_conv"]
        size = _integer(first["in_shape"], "first_conv.in_shape")
        channels = _integer(first["in_channel"], "first_conv.in_channel")
        x = self.graph.input("image", (size, size, channels), IMAGE_SCALE, IMAGE_ZERO)
        x = self.convolution(x, first, "stem")
        for index, block in enumerate(content["blocks"]):
            x = self.block(x, block, f"blocks.{index}")
        if content["feature_mix"] is not None:
            x = self.convolution(x, content["feature_mix"], "feature_mix")
        assert isinstance(x.scale, float)
        x = self.graph.avg_pool(x, out_scale=x.scale, out_zero=x.zero_point, name="avg_pool")
        weight, scale, bias = _parameters(x, content["classifier"], "head")
        if num_classes is not None:
            weight = np.zeros((num_classes, *weight.shape[1:]), np.int8)
            scale = np.full(num_classes, HEAD_SCALE, np.float32)
            bias = np.zeros(num_classes, np.int32)
        self.graph.linear(x, weight[:, 0, 0], scale, bias, name="head")
        return self.graph.verify()

    def block(self, x: Tensor, block: dict[str, Any], name: str) -> Tensor:
        if block.get("se") is not None:
            raise UnsupportedError(f"{name}: squeeze-and-excitation is not supported")
        y = x
        for key, layer in (("pointwise1", "expand"), ("depthwise", "depthwise"), ("pointwise2", "project")):
            if block[key] is not None:
                y = self.convolution(y, block[key], f"{name}.{layer}")
        residual = block["residual"]
        if residual is None:
            return y
        if "kernel_size" in residual:
            raise UnsupportedError(f"{name}: a convolution on the skip path is not supported")
        name = f"{name}.add"
        _expect_grid(x, residual["params"], name)
        if x.shape != y.shape:
            raise CheckpointError(f"{name}: adds {list(x.shape)} to {list(y.shape)}")
        scale, zero = _grid(residual["params"], "y", name)
        return self.graph.add(x, y, out_scale=scale, out_zero=zero, name=name)

    def convolution(self, x: Tensor, layer: dict[str, Any], name: str) -> Tensor:
        weight, scale, bias = _parameters(x, layer, name)
        kernel = weight.shape[1:3]
        window: dict[str, Any] = {
            "stride": _integer(layer["stride"], f"{name}.stride"),
            "pad": tuple((k - 1) // 2 for k in kernel) * 2,
        }
        window["out_scale"], window["out_zero"] = _grid(layer["params"], "y", name)
        if layer["groups"] == 1:
            return self.graph.conv2d(x, weight, scale, bias, **window, name=name)
        if layer["groups"] != len(weight) or weight.shape[3] != 1:
            raise UnsupportedError(f"{name}: {layer['groups']} groups; only 1, or one per channel (depthwise)")
        return self.graph.depthwise_conv2d(x, weight[..., 0].copy(), scale, bias, **window, name=name)


def _parameters(x: Tensor, layer: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weight int8 [O, KH, KW, I], scale float32 [O], bias int32 [O]), checked against each other and x."""
    params = layer["params"]
    _expect_grid(x, params, name)
    weight, bias, scale = params["weight"], params["bias"], params["w_scales"]
    for title, array, dtype, ndim in (
        ("weight", weight, "int8", 4),
        ("bias", bias, "int32", 1),
        ("w_scales", scale, "float32", 1),
    ):
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
            raise CheckpointError(f"{name}.{title}: expected a {dtype} array of {ndim} dimensions")
    if not len(weight) == len(bias) == len(scale):
        raise CheckpointError(f"{name}: {len(weight)} filters, {len(bias)} biases and {len(scale)} scales")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise CheckpointError(f"{name}.w_scales: a scale is not positive and finite")
    return revive_channels(np.ascontiguousarray(weight.transpose(0, 2, 3, 1)), scale, bias)


def _grid(params: dict[str, Any], which: str, name: str) -> tuple[float, int]:
    """(scale, zero point) of the input ("x") or output ("y")."""
    scale, zero = float(params[f"{which}_scale"]), params[f"{which}_zero"]
    if not (0 < scale < np.inf) or zero != int(zero) or not -128 <= zero <= 127:
        raise CheckpointError(f"{name}: {which}_scale {scale} with {which}_zero {zero} is not an int8 grid")
    return scale, int(zero)


def _expect_grid(x: Tensor, params: dict[str, Any], name: str) -> None:
    """The layer must read its input on the grid on which the layer before wrote it."""
    scale, zero = _grid(params, "x", name)
    assert isinstance(x.scale, float)
    if not np.isclose(scale, x.scale, rtol=1e-6) or zero != x.zero_point:
        raise CheckpointError(
            f"{name}: reads its input with scale {scale:.6g}, zero {zero}, "
            f"but '{x.name}' has scale {x.scale:.6g}, zero {x.zero_point}"
        )


def _integer(value: Any, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{name}: {value!r} is not a positive whole number")
    return value
