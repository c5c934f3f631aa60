"""An int8 `Graph` as a torch module: mini-batches, the same forward bits as the device, float32 gradients.

Activations are (N, C, H, W) float32 that hold whole numbers, *centred*: q - z, so that padding is 0. A product of
int8 numbers summed in float32 is exact, in any order, while sum |w| |x - z| stays below 2^24; a layer that may go
beyond is summed in float64. Requantization is the contract's one float32 multiplication and one rounding, so
logits and every activation equal `ops/` bit for bit.

The backward pass is what `ops/` define: straight through the roundings, stopped where a clamp cut off, in the
coordinates of the integers (dL/dq, not dL/dw). Only dfp16 is missing; the compiled step has that (train/device.py).

`FloatNetwork` is the fp32 twin: the same layers, weights and clamps in real units, and nothing is rounded.

Layers that no trained parameter can influence are frozen: `frontier` names the tensors that the rest of the
network reads from them, and those are computed once for a data set (train/features.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.ops.update import WEIGHT_BOUND, bound_of
from tinytrain_lite.passes.sparse import apply_scheme
from tinytrain_lite.sparse.scheme import UpdateScheme

__all__ = ["Defects", "FloatNetwork", "Int8Network", "Network", "Trained"]

Values = dict[str, torch.Tensor]
EXACT_FLOAT32 = 2.0**24
LAYERS = ("conv2d", "depthwise_conv2d", "linear")


@dataclass(frozen=True)
class Defects:
    """Two errors of the paper's published code, for measuring what they cost. Never what you want otherwise.

    drop_skip: the gradient that reaches a tensor through the skip path of a residual add is overwritten by that of
        the other path, not summed.  ignore_zero_point: weight gradients multiply by x instead of x - z_x.
    """

    drop_skip: bool = False
    ignore_zero_point: bool = False


@dataclass(frozen=True)
class Trained:
    """One parameter that learns.

    value: the part that learns, in the layout of the graph: weights float32 (O, KH, KW, k), (rows, KH, KW) or
        (N, I); biases float64 (O,), because an int32 and a fraction do not fit float32.
    scale: float64, one a row of `value`: real units per unit of `value`.
    bound: |value| saturates here (infinity in the fp32 twin).
    """

    tensor: Tensor
    value: nn.Parameter
    scale: np.ndarray
    bound: float

    @property
    def name(self) -> str:
        return self.tensor.name

    def per_row(self, factors: np.ndarray) -> torch.Tensor:
        """One factor a row, shaped to multiply `value`."""
        column = torch.from_numpy(factors.reshape(-1, *[1] * (self.value.ndim - 1)))
        return column.to(self.value.dtype)


class _Round(torch.autograd.Function):
    """Nearest whole number (halves up, as a fraction in [-1/2, 1/2) is kept beside it); gradient straight through."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return (x + 0.5).floor_()

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
        return grad


class _RoundClamp(torch.autograd.Function):
    """clamp(rint(x)); the gradient passes where the clamp left the value alone."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, low: int, high: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
        y = x.round()
        clamped = y.clamp(low, high)
        ctx.save_for_backward(y == clamped)
        return clamped

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[no-untyped-def]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


class Network(nn.Module):
    """What both arithmetics share: which parameters learn, what is frozen, and the walk over the layers."""

    def __init__(self, graph: Graph, scheme: UpdateScheme, defects: Defects | None = None) -> None:
        """graph: a forward graph, not modified. Raises UnsupportedError if the scheme does not fit it."""
        super().__init__()
        self.graph = apply_scheme(graph, scheme)
        self.defects = defects or Defects()
        self.trained = [self._trained(op, t) for op in self.graph for t in op.inputs.values() if t.role == "param"]
        if not self.trained:
            raise UnsupportedError(f"scheme '{scheme.name}' trains nothing; name a bias or a weight")
        self.values = nn.ParameterList(t.value for t in self.trained)
        self._by_name = {t.name: t for t in self.trained}
        self._constants: Values = {}
        self._row_sums: dict[str, float] = {}  # largest sum |w| of a frozen layer's rows
        self.logits = self.graph.ops[-1].outputs["y"].name
        moving: set[str] = {t.name for t in self.trained}
        self.live = []
        for op in self.graph:
            if any(t.name in moving for t in op.inputs.values()):
                moving.add(op.outputs["y"].name)
                self.live.append(op)
        read = {t.name: t for op in self.live for t in op.inputs.values() if t.role in ("value", "input")}
        self.frontier = [t for name, t in read.items() if name not in moving]

    # ---- running --------------------------------------------------------------------------
    def forward(self, features: Values) -> torch.Tensor:
        """Logits float32 (N, classes) from the frontier tensors as `evaluate` gives them."""
        return self._walk(self.live, {name: self._enter(name, q) for name, q in features.items()})[self.logits]

    @torch.no_grad()
    def evaluate(self, known: Values, wanted: Iterable[str]) -> Values:
        """The tensors named in `wanted`, from `known` ones: {"image": int8 (N, C, H, W)} will always do.

        Int8 activations come and go as int8 q (the twin's: float32, real units), logits as float32 (N, classes).
        """
        wanted = list(wanted)
        needed, ops = set(wanted) - set(known), []
        for op in reversed(self.graph.ops):
            if op.outputs["y"].name in needed:
                ops.append(op)
                needed |= {t.name for t in op.inputs.values() if t.role in ("value", "input")} - set(known)
        values = self._walk(ops[::-1], {name: self._enter(name, q) for name, q in known.items()}, set(wanted))
        return {name: self._leave(name, values[name]) for name in wanted}

    def _walk(self, ops: list[Op], values: Values, keep: set[str] | None = None) -> Values:
        last = {t.name: op for op in ops for t in op.inputs.values()}
        for op in ops:
            values[op.outputs["y"].name] = self._layer(op, values)
            for t in op.inputs.values():
                if keep is not None and last[t.name] is op and t.name not in keep:
                    values.pop(t.name, None)
        return values

    def _layer(self, op: Op, values: Values) -> torch.Tensor:
        if op.kind in LAYERS:
            return self._finish(op, self._accumulate(op, values[op.inputs["x"].name]))
        if op.kind == "add":
            a, b = values[op.inputs["a"].name], values[op.inputs["b"].name]
            if self.defects.drop_skip:
                a = a.detach() if len(self.graph.readers(op.inputs["a"])) > 1 else a
                b = b.detach() if len(self.graph.readers(op.inputs["b"])) > 1 else b
            return self._add(op, a, b)
        if op.kind == "avg_pool":
            return self._pool(op, values[op.inputs["x"].name])
        raise UnsupportedError(f"op '{op.name}': {op.kind} has no torch counterpart in train/int8.py")

    # ---- layers ---------------------------------------------------------------------------
    def _accumulate(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        """sum (x - z_x) w + b: float32, exact before its final rounding (the twin: plain float32)."""
        w, b = self._weight(op), self._bias(op)
        if not self._fits_float32(op, w, b):
            x, w = x.double(), w.double()
        b = b.to(x.dtype)
        if self.defects.ignore_zero_point and op.inputs["w"].role == "param":
            acc = self._product(op, x, w.detach(), b)
            wrong = self._product(op, x.detach(), w, None, op.inputs["x"].zero_point)
            return (acc + (wrong - wrong.detach())).float()  # adds 0 to the value, the wrong gradient to that of w
        return self._product(op, x, w, b).float()

    @staticmethod
    def _product(
        op: Op, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, shift: int = 0
    ) -> torch.Tensor:  # fmt: skip
        """Convolution of x + shift, padded with `shift` as well."""
        if op.kind == "linear":
            return F.linear(x.flatten(1) + shift if shift else x.flatten(1), w, b)
        top, left, bottom, right = op.attrs["pad"]
        groups = w.shape[0] if op.kind == "depthwise_conv2d" else 1
        if (top, left) == (bottom, right) and not shift:
            return F.conv2d(x, w, b, op.attrs["stride"], (top, left), 1, groups)
        padded = F.pad(x, (left, right, top, bottom)) + shift
        return F.conv2d(padded, w, b, op.attrs["stride"], 0, 1, groups)

    def _weight(self, op: Op) -> torch.Tensor:
        """The whole weight as torch wants it, (O, I, KH, KW) or (N, I): trained part and frozen part together."""
        t = op.inputs["w"]
        if t.role != "param":
            return self._constant(t, t)
        w = self._read(self._by_name[t.name])
        if "rows" in op.inputs:
            whole = self._constant(t, t)
            return whole.index_copy(0, torch.from_numpy(_array(op.inputs["rows"]).astype(np.int64)), _torch_layout(w))
        if "w_frozen" in op.inputs:
            order = torch.from_numpy(np.argsort(_array(op.inputs["perm"])))
            return torch.cat([_torch_layout(w), self._constant(op.inputs["w_frozen"], t)], 1)[:, order]
        return _torch_layout(w)

    def _bias(self, op: Op) -> torch.Tensor:
        t = op.inputs["b"]
        return self._read(self._by_name[t.name]) if t.role == "param" else self._constant(t, t)

    def _constant(self, t: Tensor, scaled_as: Tensor) -> torch.Tensor:
        if t.name not in self._constants:
            value = self._initial(_array(t), scaled_as)
            self._constants[t.name] = value if value.ndim == 1 else _torch_layout(value)
        return self._constants[t.name]

    def _trained(self, op: Op, t: Tensor) -> Trained:
        rows = _array(op.inputs["rows"]) if "rows" in op.inputs and t is op.inputs["w"] else np.arange(t.shape[0])
        return Trained(t, nn.Parameter(self._initial(_array(t), t)[rows]), self._units(t)[rows], self._bound(t))

    # ---- the arithmetic -------------------------------------------------------------------
    def _initial(self, data: np.ndarray, t: Tensor) -> torch.Tensor:
        """Integers on the scale of `t` in the units of this network: weights float32, biases float64."""
        raise NotImplementedError

    def _units(self, t: Tensor) -> np.ndarray:
        """Real units per unit of a parameter, one a row."""
        raise NotImplementedError

    def _bound(self, t: Tensor) -> float:
        raise NotImplementedError

    def _read(self, trained: Trained) -> torch.Tensor:
        """What the forward pass sees of a parameter that learns."""
        raise NotImplementedError

    def _fits_float32(self, op: Op, w: torch.Tensor, b: torch.Tensor) -> bool:
        """True if every partial sum of the layer is exact in float32, or need not be."""
        raise NotImplementedError

    def _enter(self, name: str, q: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _leave(self, name: str, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _finish(self, op: Op, acc: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _add(self, op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _pool(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Int8Network(Network):
    """The integer contract. Parameters that learn are float copies in units of an LSB, rounded when they are read."""

    def integers(self) -> dict[str, np.ndarray]:
        """Trained parameters as the device would hold them, by tensor name: int8 weights, int32 biases."""
        result = {}
        for op in self.graph:
            for role in ("w", "b"):
                t = op.inputs.get(role)
                if t is not None and t.name in self._by_name:
                    q = self._read(self._by_name[t.name]).detach().numpy().astype(t.dtype)
                    result[t.name] = q
                    if role == "w" and "rows" in op.inputs:
                        result[t.name] = _array(t).copy()
                        result[t.name][_array(op.inputs["rows"])] = q
        return result

    def _initial(self, data: np.ndarray, t: Tensor) -> torch.Tensor:
        return torch.from_numpy(data.astype(_dtype(data)))

    def _units(self, t: Tensor) -> np.ndarray:
        return np.asarray(t.scale, np.float64)

    def _bound(self, t: Tensor) -> float:
        return float(bound_of(t))

    def _read(self, trained: Trained) -> torch.Tensor:
        return _Round.apply(trained.value)

    def _fits_float32(self, op: Op, w: torch.Tensor, b: torch.Tensor) -> bool:
        x = op.inputs["x"]
        largest = max(127 - x.zero_point, x.zero_point + 128)
        room = EXACT_FLOAT32 - float(b.detach().abs().max())
        if w[0].numel() * WEIGHT_BOUND * largest <= room:
            return True
        rows = self._row_sums.get(op.name) or float(w.detach().abs().flatten(1).sum(1).max())
        if op.inputs["w"].role != "param":
            self._row_sums[op.name] = rows
        return rows * largest <= room

    def _enter(self, name: str, q: torch.Tensor) -> torch.Tensor:
        return q.float() - self.graph.tensors[name].zero_point

    def _leave(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value if name == self.logits else (value + self.graph.tensors[name].zero_point).to(torch.int8)

    def _finish(self, op: Op, acc: torch.Tensor) -> torch.Tensor:
        m = self._constants.setdefault(op.inputs["m"].name, torch.from_numpy(_array(op.inputs["m"])))
        if op.kind == "linear":
            return acc * m
        return self._requantize(op, acc * m.reshape(-1, 1, 1))

    def _add(self, op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left, right = a * np.float32(op.attrs["ratio_a"]).item(), b * np.float32(op.attrs["ratio_b"]).item()
        return self._requantize(op, left + right)

    def _pool(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        return self._requantize(op, x.sum((2, 3), keepdim=True) * np.float32(op.attrs["m"]).item())

    @staticmethod
    def _requantize(op: Op, value: torch.Tensor) -> torch.Tensor:
        z = op.outputs["y"].zero_point
        low, high = op.attrs["clamp"]
        return _RoundClamp.apply(value, low - z, high - z)


class FloatNetwork(Network):
    """The fp32 twin: parameters are s_w q (biases s_w s_x q), activations s (q - z), clamps at the same real values."""

    def _initial(self, data: np.ndarray, t: Tensor) -> torch.Tensor:
        scale = np.asarray(t.scale, np.float64).reshape(-1, *[1] * (data.ndim - 1))
        return torch.from_numpy((data * scale).astype(_dtype(data)))

    def _units(self, t: Tensor) -> np.ndarray:
        return np.ones(t.shape[0])

    def _bound(self, t: Tensor) -> float:
        return float("inf")

    def _read(self, trained: Trained) -> torch.Tensor:
        return trained.value

    def _fits_float32(self, op: Op, w: torch.Tensor, b: torch.Tensor) -> bool:
        return True

    def _enter(self, name: str, q: torch.Tensor) -> torch.Tensor:
        t = self.graph.tensors[name]
        return q if q.dtype == torch.float32 else (q.float() - t.zero_point) * float(t.scale)  # type: ignore[arg-type]

    def _leave(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value

    def _finish(self, op: Op, acc: torch.Tensor) -> torch.Tensor:
        return acc if op.kind == "linear" else self._clamp(op, acc)

    def _add(self, op: Op, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self._clamp(op, a + b)

    def _pool(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        return self._clamp(op, x.mean((2, 3), keepdim=True))

    @staticmethod
    def _clamp(op: Op, value: torch.Tensor) -> torch.Tensor:
        y = op.outputs["y"]
        low, high = op.attrs["clamp"]
        assert isinstance(y.scale, float)
        return value.clamp((low - y.zero_point) * y.scale, (high - y.zero_point) * y.scale)


def _torch_layout(w: torch.Tensor) -> torch.Tensor:
    """(O, KH, KW, I) -> (O, I, KH, KW), (C, KH, KW) -> (C, 1, KH, KW), (N, I) as it is."""
    if w.ndim == 4:
        return w.permute(0, 3, 1, 2)
    return w[:, None] if w.ndim == 3 else w


def _dtype(data: np.ndarray) -> type[np.floating]:
    return np.float64 if data.ndim == 1 else np.float32


def _array(t: Tensor) -> np.ndarray:
    assert t.data is not None
    return t.data
