"""The IR: a graph of named tensors and ops in single static assignment, small enough to print and read.

    %stem.y: int8[16,16,16] s=0.0235 z=-128 = conv2d(x=%image, w=@stem.w, b=@stem.b) {stride=2}

A tensor is written once. A trained parameter is *updated* by an op whose output `aliases` the old
version: the new value lives in the same bytes, so `verify` refuses any reader that comes after.
The order of `Graph.ops` is the schedule. Nothing here knows what an op computes: that is in `ops/`.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinytrain_lite.errors import GraphError

# Bits an element takes in memory. `dfp16` is an int16 mantissa (the exponent is one per tensor and
# lives in the tensor's state); `dfp32` the int32 sums of an unfused weight gradient; `bits` a clamp mask.
DTYPE_BITS = {"int8": 8, "uint16": 16, "int32": 32, "float32": 32, "dfp16": 16, "dfp32": 32, "bits": 1}

# input: the image, in the arena, written from outside before the first op.  argument: a scalar likewise, in
# static SRAM.  const: flash.  param: static SRAM, trained, outlives the step.  value: the arena.
# output: static SRAM, read from outside after the last op.
ROLES = ("input", "argument", "const", "param", "value", "output")


@dataclass(eq=False)
class Tensor:
    """A named array. Activations are (H, W, C); `scale` is a float or float32[C] for weights."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str = "value"
    scale: float | np.ndarray | None = None
    zero_point: int = 0
    data: np.ndarray | None = None  # const and param: the (initial) contents
    aliases: Tensor | None = None  # the older version of the parameter that this one overwrites
    rows_of: Tensor | None = None  # a view: rows first_row, first_row + 1, ... of another tensor, in its bytes
    first_row: int = 0
    limit: int = 32767  # dfp16: mantissas saturate at +-limit (see passes/limits.py)
    peak: float | None = None  # dfp16: largest magnitude seen in calibration (see calibrate.py)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; a bit mask is padded to whole bytes."""
        return (self.elements * DTYPE_BITS[self.dtype] + 7) // 8

    def sigil(self) -> str:
        return {"const": "#", "param": "@"}.get(self.role, "%") + self.name

    def __str__(self) -> str:
        text = f"{self.sigil()}: {self.dtype}[{','.join(map(str, self.shape))}]"
        if isinstance(self.scale, float) and self.dtype == "int8":
            text += f" s={self.scale:.6g} z={self.zero_point}"
        if self.dtype == "dfp16" and self.limit != 32767:
            text += f" limit={self.limit}"
        if self.aliases is not None:
            text += f" overwrites {self.aliases.sigil()}"
        if self.rows_of is not None:
            text += f" rows {self.first_row}..{self.first_row + self.shape[0]} of {self.rows_of.sigil()}"
        return text


@dataclass(eq=False)
class Op:
    """One node: `kind` names its definition in `ops/`, `name` the layer of the model it serves."""

    kind: str
    name: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """`forward`, `backward` or `update`: where the cycles of this op are booked."""
        if any(t.aliases is not None for t in self.outputs.values()):
            return "update"
        return "backward" if "grad" in self.kind else "forward"

    def __str__(self) -> str:
        outs = ", ".join(map(str, self.outputs.values()))
        ins = ", ".join(f"{role}={t.sigil()}" for role, t in self.inputs.items())
        attrs = ", ".join(f"{k}={_show(v)}" for k, v in self.attrs.items())
        return f"{outs} = {self.kind}({ins})" + (f" {{{attrs}}}" if attrs else "")


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "(" + " ".join(_show(v) for v in value) + ")"
    return str(value)


class Graph:
    """An ordered list of ops over named tensors.

    `image` carries how a raw uint8 image becomes the int8 input: see `quantize_image`.
    """

    def __init__(self, name: str):
        self.name = name
        self.ops: list[Op] = []
        self.tensors: dict[str, Tensor] = {}

    # ---- building -------------------------------------------------------------------------
    def add_tensor(self, tensor: Tensor) -> Tensor:
        """Register a tensor. Raises GraphError if the name is taken or the role unknown."""
        if tensor.name in self.tensors:
            raise GraphError(f"{self.name}: tensor name '{tensor.name}' is used twice; give the layer another name")
        if tensor.role not in ROLES or tensor.dtype not in DTYPE_BITS:
            raise GraphError(f"{self.name}: tensor '{tensor.name}' has role '{tensor.role}', dtype '{tensor.dtype}'")
        self.tensors[tensor.name] = tensor
        return tensor

    def value(self, name: str, shape: Iterable[int], dtype: str, **fields: Any) -> Tensor:
        return self.add_tensor(Tensor(name, tuple(int(n) for n in shape), dtype, **fields))

    def const(self, name: str, data: np.ndarray, dtype: str | None = None, **fields: Any) -> Tensor:
        """A flash-resident array; equal name means equal contents, so asking twice is allowed."""
        if name in self.tensors:
            known = self.tensors[name]
            if known.data is None or not np.array_equal(known.data, data):
                raise GraphError(f"{self.name}: constant '{name}' is defined twice with different contents")
            return known
        return self.value(name, data.shape, dtype or str(data.dtype), role="const", data=data, **fields)

    def append(self, kind: str, name: str, inputs: dict[str, Tensor], outputs: dict[str, Tensor], **attrs: Any) -> Op:
        op = Op(kind, name, inputs, outputs, attrs)
        self.ops.append(op)
        return op

    # ---- reading --------------------------------------------------------------------------
    def by_role(self, role: str) -> list[Tensor]:
        return [t for t in self.tensors.values() if t.role == role]

    @property
    def parameters(self) -> list[Tensor]:
        """What learns, in SRAM: weights, biases and their fractions, as first flashed (not the updated versions)."""
        return [t for t in self.by_role("param") if t.aliases is None]

    @property
    def image(self) -> Tensor:
        """The one input, int8 (H, W, C)."""
        (image,) = self.by_role("input")
        return image

    def producer(self, tensor: Tensor) -> Op | None:
        return next((op for op in self.ops if tensor in op.outputs.values()), None)

    def readers(self, tensor: Tensor) -> list[Op]:
        return [op for op in self.ops if tensor in op.inputs.values()]

    def copy(self) -> Graph:
        """A deep copy that shares the (never written) arrays of constants and parameters."""
        twins: dict[int, Tensor] = {}

        def twin(t: Tensor) -> Tensor:
            if id(t) not in twins:
                twins[id(t)] = new = Tensor(**vars(t))
                new.aliases = t.aliases and twin(t.aliases)
                new.rows_of = t.rows_of and twin(t.rows_of)
            return twins[id(t)]

        def copied(op: Op) -> Op:
            inputs, outputs = ({role: twin(t) for role, t in part.items()} for part in (op.inputs, op.outputs))
            return Op(op.kind, op.name, inputs, outputs, dict(op.attrs))

        other = copy.copy(self)
        other.tensors = {name: twin(t) for name, t in self.tensors.items()}
        other.ops = [copied(op) for op in self.ops]
        return other

    def sweep(self) -> Graph:
        """Forget tensors that no op mentions any more (in place)."""
        used = {t.name for op in self.ops for t in (*op.inputs.values(), *op.outputs.values())}
        self.tensors = {n: t for n, t in self.tensors.items() if n in used or t.role == "input"}
        return self

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    def __str__(self) -> str:
        lines = [f"graph {self.name}"]
        lines += [f"  {t}" for role in ("input", "argument", "param") for t in self.by_role(role) if t.aliases is None]
        width = len(str(len(self.ops)))
        lines += [f"  {i:>{width}}  {op}   // {op.name}" for i, op in enumerate(self.ops)]
        return "\n".join(lines) + "\n"

    def digest(self) -> int:
        """CRC-32 over the text and every constant: equal digests mean the same training step."""
        crc = zlib.crc32(str(self).encode())
        for t in self.tensors.values():
            if t.data is not None:
                crc = zlib.crc32(np.ascontiguousarray(t.data).tobytes(), crc)
        return crc

    # ---- checking -------------------------------------------------------------------------
    def verify(self) -> Graph:
        """Check single assignment, order, aliasing and every op's own shape rule.

        Returns the graph, so that `return graph.verify()` ends a pass.
        Raises GraphError naming the op and the rule it breaks.
        """
        from tinytrain_lite.ops import definition  # ops import this module

        written: set[str] = {t.name for t in self.tensors.values() if t.role in ("input", "argument", "const", "param")}
        written -= {t.name for t in self.tensors.values() if t.aliases is not None}
        stale: set[str] = set()
        for op in self.ops:
            where = f"{self.name}: op '{op.name}' ({op.kind})"
            for role, t in op.inputs.items():
                if self.tensors.get(t.name) is not t:
                    raise GraphError(f"{where} reads {role}='{t.name}', which is not a tensor of this graph")
                if t.name not in written:
                    raise GraphError(f"{where} reads {role}='{t.name}' before any op has written it")
                if t.name in stale:
                    raise GraphError(f"{where} reads {role}='{t.name}' after an update has overwritten it")
            for role, t in op.outputs.items():
                if self.tensors.get(t.name) is not t:
                    raise GraphError(f"{where} writes {role}='{t.name}', which is not a tensor of this graph")
                if t.name in written:
                    raise GraphError(f"{where} writes {role}='{t.name}', which is already written")
                written.add(t.name)
                if t.aliases is not None:
                    stale.add(t.aliases.name)
            try:
                definition(op.kind).check(op)
            except GraphError as error:
                raise GraphError(f"{where}: {error}") from None
            except KeyError as error:
                raise GraphError(f"{where}: lacks {error}") from None
        return self
