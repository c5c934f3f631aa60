"""`nn.Module` -> `FloatModel`, by way of `torch.export`.

Understands networks of MobileNetV2 kind: convolutions, depthwise convolutions, batch norm (folded), ReLU,
ReLU6 and other clamps (fused), residual adds, global average pooling, linear layers, and what does nothing
at inference. Anything else is refused by the name of its op and the path of the module that asked for it.

To support another ATen op, add a method and its line in ``_RULES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.float_model import IMAGE, FloatLayer, FloatModel

__all__ = ["import_module"]

_CLAMPED = ("conv2d", "depthwise_conv2d", "add")  # kinds whose kernel can clamp its output


def import_module(model: nn.Module, shape: tuple[int, int, int], name: str = "model") -> FloatModel:
    """Read ``model`` (as it is in eval mode) for images of ``shape`` (H, W, C).

    Raises UnsupportedError, naming the op and the module path, for anything the system does not do.
    """
    training = model.training
    try:
        program = torch.export.export(model.eval(), (torch.zeros(1, shape[2], shape[0], shape[1]),))
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UnsupportedError(f"torch.export cannot trace '{name}': {reason[0]}") from error
    finally:
        model.train(training)
    return _Importer(program, FloatModel(name, shape)).run()


class _Importer:
    """Walks the exported nodes in order; ``source`` says which layer (or image) a node's value comes from."""

    def __init__(self, program: torch.export.ExportedProgram, model: FloatModel) -> None:
        self.program = program
        self.model = model
        self.layers: dict[str, FloatLayer] = {}
        self.source: dict[fx.Node, str] = {}
        self.constants = self._constants()

    def _constants(self) -> dict[str, np.ndarray]:
        """Parameters, buffers and lifted constants by placeholder name."""
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        return {name: state[target].detach().numpy() for name, target in targets.items()}

    def run(self) -> FloatModel:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.constants:
                    if IMAGE in self.source.values():
                        raise UnsupportedError("the model takes more than one input; it must take one image")
                    self.source[node] = IMAGE
            elif node.op == "call_function":
                rule = _RULES.get(str(node.target).removesuffix(".default"))
                if rule is None:
                    raise self._refuse(node, "is not supported")
                rule(self, node)
            elif node.op == "output":
                self._finish(node)
        self.model.layers = list(self.layers.values())
        return self.model

    # ---- one method per kind of ATen op ------------------------------------------------------
    def convolution(self, node: fx.Node) -> None:
        x, weight, bias, stride, padding, dilation, groups = _arguments(
            node, None, None, None, (1, 1), (0, 0), (1, 1), 1
        )
        kernel = self._constant(node, weight)
        outputs, inputs = kernel.shape[:2]
        vertical, horizontal = _pair(padding)
        steps = _pair(stride)
        if _pair(dilation) != (1, 1):
            raise self._refuse(node, f"with dilation {dilation} is not supported; only dilation 1 is")
        if steps[0] != steps[1]:
            raise self._refuse(node, f"with stride {stride} is not supported; both strides must be equal")
        if groups != 1 and not (groups == outputs and inputs == 1):
            raise self._refuse(
                node, f"with {groups} groups is not supported; only 1, or one per channel (depthwise), is"
            )
        depthwise = groups != 1
        self._add(
            node,
            "depthwise_conv2d" if depthwise else "conv2d",
            (x,),
            weight=kernel[:, 0].copy() if depthwise else kernel.transpose(0, 2, 3, 1).copy(),
            bias=np.zeros(outputs, np.float32) if bias is None else self._constant(node, bias),
            stride=steps[0],
            pad=(vertical, horizontal, vertical, horizontal),
        )

    def batch_norm(self, node: fx.Node) -> None:
        """Fold into the convolution before it: w f and (b - mean) f + beta, f = gamma / sqrt(var + eps)."""
        x, gamma, beta, mean, variance, training, _, epsilon, _ = _arguments(node, *[None] * 9)
        layer = self._sole_reader(node, x, ("conv2d", "depthwise_conv2d"))
        if training or mean is None:
            raise self._refuse(node, "uses the statistics of its batch; only running statistics can be folded")
        assert layer.weight is not None and layer.bias is not None
        factor = 1 / np.sqrt(self._constant(node, variance).astype(np.float64) + epsilon)
        if gamma is not None:
            factor *= self._constant(node, gamma)
        offset = 0.0 if beta is None else self._constant(node, beta)
        layer.bias = ((layer.bias - self._constant(node, mean)) * factor + offset).astype(np.float32)
        layer.weight = (layer.weight * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))).astype(np.float32)
        self.source[node] = layer.name

    def clamp(self, node: fx.Node, low: float = -math.inf, high: float = math.inf) -> None:
        layer = self._sole_reader(node, node.args[0], _CLAMPED)
        layer.clamp = (max(layer.clamp[0], low), min(layer.clamp[1], high))
        self.source[node] = layer.name

    def relu(self, node: fx.Node) -> None:
        self.clamp(node, 0.0)

    def relu6(self, node: fx.Node) -> None:
        self.clamp(node, 0.0, 6.0)

    def hardtanh(self, node: fx.Node) -> None:
        _, low, high = _arguments(node, None, -1.0, 1.0)
        self.clamp(node, float(low), float(high))

    def clip(self, node: fx.Node) -> None:
        _, low, high = _arguments(node, None, None, None)
        self.clamp(node, -math.inf if low is None else float(low), math.inf if high is None else float(high))

    def add(self, node: fx.Node) -> None:
        a, b = node.args[:2]
        if not (a in self.source and b in self.source):
            raise self._refuse(node, "adds a constant; only the sum of two activations is supported")
        if node.kwargs.get("alpha", 1) != 1 or _shape(a) != _shape(b):
            raise self._refuse(node, f"of {_shape(a)} and {_shape(b)} is not supported; shapes must agree, alpha be 1")
        self._add(node, "add", (a, b))

    def mean(self, node: fx.Node) -> None:
        x, dims = _arguments(node, None, (2, 3))
        if len(_shape(x)) != 4 or sorted(d % 4 for d in dims) != [2, 3]:
            raise self._refuse(node, f"over dimensions {dims} is not supported; only over height and width is")
        self._add(node, "avg_pool", (x,))

    def adaptive_avg_pool(self, node: fx.Node) -> None:
        x, size = _arguments(node, None, None)
        if _pair(size) != (1, 1):
            raise self._refuse(node, f"to size {size} is not supported; only global pooling (to 1) is")
        self._add(node, "avg_pool", (x,))

    def avg_pool(self, node: fx.Node) -> None:
        x, kernel, _, padding = _arguments(node, None, None, None, (0, 0))
        if _pair(kernel) != _shape(x)[2:] or _pair(padding) != (0, 0):
            raise self._refuse(node, f"with kernel {kernel} is not supported; only one as large as its input is")
        self._add(node, "avg_pool", (x,))

    def linear(self, node: fx.Node) -> None:
        x, weight, bias = _arguments(node, None, None, None)
        if len(_shape(x)) != 2:
            raise self._refuse(node, f"on input {_shape(x)} is not supported; flatten it to (N, features)")
        matrix = self._constant(node, weight)
        offset = np.zeros(len(matrix), np.float32) if bias is None else self._constant(node, bias)
        # until it proves to be the last layer, it is a 1x1 convolution on a 1x1 image: the same sum
        self._add(node, "conv2d", (x,), weight=matrix[:, None, None].copy(), bias=offset)

    def reshape(self, node: fx.Node) -> None:
        """Flattening is free while each image has one pixel; otherwise channel order would change."""
        (x,) = _arguments(node, None)
        shape, wanted = _shape(x), _shape(node)
        if math.prod(shape[2:]) != 1 or wanted[0] != shape[0] or math.prod(wanted[2:]) != 1:
            raise self._refuse(node, f"from {shape} to {wanted} is not supported; pool to 1x1 first")
        self.source[node] = self.source[x]

    def nothing(self, node: fx.Node) -> None:
        (x,) = _arguments(node, None)
        self.source[node] = self.source[x]

    # ---- helpers -----------------------------------------------------------------------------
    def _add(self, node: fx.Node, kind: str, inputs: tuple[Any, ...], **fields: Any) -> None:
        path = _path(node)
        name = path if kind in ("conv2d", "depthwise_conv2d") else f"{path}.{kind}".lstrip(".")
        if "weight" in fields and (not path or path in self.layers):
            raise self._refuse(node, "shares its weights with an earlier call; every layer must own its weights")
        unique, count = name, 1
        while unique in self.layers:
            count += 1
            unique = f"{name}{count}"
        self.layers[unique] = FloatLayer(unique, kind, tuple(self.source[x] for x in inputs), **fields)
        self.source[node] = unique

    def _sole_reader(self, node: fx.Node, x: Any, kinds: tuple[str, ...]) -> FloatLayer:
        """The layer behind ``x``, if it is of a fusible kind and nobody else reads its raw output."""
        layer = self.layers.get(self.source[x])
        if layer is None or layer.kind not in kinds:
            what = layer.kind if layer else "the image"
            raise self._refuse(node, f"after {what} is not supported; it must follow {' or '.join(kinds)}")
        readers = [user for user in x.users if user.op == "call_function"]
        if len(readers) != 1:
            raise self._refuse(node, f"cannot be fused: '{layer.name}' is also read before it")
        return layer

    def _constant(self, node: fx.Node, x: Any) -> np.ndarray:
        if not isinstance(x, fx.Node) or x.name not in self.constants:
            raise self._refuse(node, "has weights computed at run time; they must be parameters or buffers")
        return self.constants[x.name].astype(np.float32)

    def _finish(self, node: fx.Node) -> None:
        results = node.args[0]
        layer = self.layers.get(self.source.get(results[0], "")) if len(results) == 1 else None  # type: ignore
        if layer is None or layer.kind != "conv2d" or len(layer.bias) != np.prod(_shape(results[0])):  # type: ignore
            raise UnsupportedError("the model must return one tensor, the logits (N, classes) of a linear layer")
        assert layer.weight is not None
        if layer.weight.shape[1:3] != (1, 1) or layer.clamp != (-math.inf, math.inf):
            raise UnsupportedError(f"'{layer.name}': the last layer must be linear, without activation")
        layer.kind, layer.weight = "linear", layer.weight[:, 0, 0]

    def _refuse(self, node: fx.Node, reason: str) -> UnsupportedError:
        return UnsupportedError(f"{node.target} in module '{_path(node) or 'the model itself'}' {reason}")


def _arguments(node: fx.Node, *defaults: Any) -> list[Any]:
    """Positional arguments completed by keyword and by default, in the order of the op's schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: v for a, v in zip(schema, node.args, strict=False)} | node.kwargs
    return [given.get(a.name, default) for a, default in zip(schema, defaults, strict=False)]


def _pair(value: Any) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return (values[0], values[-1])


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _path(node: fx.Node) -> str:
    """Path of the innermost module that made the node, "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack.values()))[0] if stack else ""


_RULES: dict[str, Callable[[_Importer, fx.Node], None]] = {
    "aten.conv2d": _Importer.convolution,
    "aten.batch_norm": _Importer.batch_norm,
    "aten.relu": _Importer.relu,
    "aten.relu_": _Importer.relu,
    "aten.relu6": _Importer.relu6,
    "aten.relu6_": _Importer.relu6,
    "aten.hardtanh": _Importer.hardtanh,
    "aten.hardtanh_": _Importer.hardtanh,
    "aten.clamp": _Importer.clip,
    "aten.clamp_": _Importer.clip,
    "aten.add.Tensor": _Importer.add,
    "aten.add_.Tensor": _Importer.add,
    "aten.mean.dim": _Importer.mean,
    "aten.adaptive_avg_pool2d": _Importer.adaptive_avg_pool,
    "aten.avg_pool2d": _Importer.avg_pool,
    "aten.linear": _Importer.linear,
    "aten.flatten.using_ints": _Importer.reshape,
    "aten.view": _Importer.reshape,
    "aten.reshape": _Importer.reshape,
    "aten.squeeze.dims": _Importer.reshape,
    "aten.dropout": _Importer.nothing,
    "aten.dropout_": _Importer.nothing,
    "aten.contiguous": _Importer.nothing,
}
