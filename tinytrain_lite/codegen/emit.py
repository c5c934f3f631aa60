"""How one op becomes a C call: expressions for tensors, windows, epilogues and updates.

An `OpDefinition.call` says *which* arguments its kernel takes; the emitter says how each is written in C, given
the memory plan. Everything is an address constant or a literal, so a reader sees the whole call in one place.
"""

from __future__ import annotations

import re

import numpy as np

from tinytrain_lite.graph import Graph, Op, Tensor
from tinytrain_lite.memory import Plan
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.conv2d import weight_shape
from tinytrain_lite.ops.epilogue import sinks, skips
from tinytrain_lite.ops.update import seed_of

C_TYPE = {
    "int8": "int8_t",
    "uint16": "uint16_t",
    "int32": "int32_t",
    "float32": "float",
    "dfp16": "int16_t",
    "bits": "uint8_t",
}
INDENT = " " * 6


def identifier(name: str) -> str:
    """A tensor's or layer's name as a C identifier. Layers of an nn.Sequential are called 0, 1, 2."""
    text = re.sub(r"\W+", "_", name.replace("'", "_new"))
    return f"layer{text}" if text[0].isdigit() else text


def c_float(value: float | np.floating) -> str:
    """A float32 literal that reads back to the same bits (nine significant digits)."""
    text = f"{np.float32(value):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


class Emitter:
    """C expressions over one graph and its plan. `tag` keeps the op functions of two graphs apart."""

    def __init__(self, graph: Graph, plan: Plan, tag: str):
        self.graph = graph
        self.plan = plan
        self.tag = tag
        self._index = {op: i for i, op in enumerate(graph.ops)}

    # ---- arguments ------------------------------------------------------------------------
    def ptr(self, t: Tensor) -> str:
        """Address of a tensor: an array by name, or a place in the arena."""
        if t.role == "argument":
            return f"&{identifier(t.name)}"
        if t.role in ("value", "input"):
            return f"AT({C_TYPE[t.dtype]}, {self.plan.offset(t)})"
        return identifier((t.aliases or t).name)

    def scratch(self, op: Op) -> str:
        index = self._index[op]
        return f"AT(void, {self.plan.scratch_offset(index)})" if definition(op.kind).scratch_bytes(op) else "NULL"

    def float(self, value: float) -> str:
        return c_float(value)

    def input(self, t: Tensor) -> str:
        h, w, c = t.shape
        return _struct("tt_input", data=self.ptr(t), zero_point=t.zero_point, height=h, width=w, channels=c)

    def dims(self, t: Tensor) -> str:
        h, w, c = t.shape
        return _struct("tt_dims", height=h, width=w, channels=c)

    def window(self, op: Op) -> str:
        kernel = op.attrs.get("kernel") or op.inputs["w"].shape[1:3]
        top, left, _, _ = op.attrs["pad"]
        return _struct("tt_window", kernel_h=kernel[0], kernel_w=kernel[1], stride=op.attrs["stride"],
                       pad_top=top, pad_left=left)  # fmt: skip

    def conv_weight(self, op: Op) -> str:
        o, _, _, channels = weight_shape(op)
        w, frozen, perm = op.inputs["w"], op.inputs.get("w_frozen"), op.inputs.get("perm")
        return _struct("tt_conv_weight", trained=self.ptr(w), frozen=self._optional(frozen), perm=self._optional(perm),
                       out_channels=o, in_channels=channels, trained_channels=w.shape[3])  # fmt: skip

    def requant(self, op: Op) -> str:
        y, (lo, hi) = op.outputs["y"], op.attrs["clamp"]
        h, w, c = y.shape
        return _struct("tt_requant", y=self.ptr(y), mask=self._optional(op.outputs.get("mask")),
                       multiplier=self._optional(op.inputs.get("m")), zero_point=y.zero_point, lo=lo, hi=hi,
                       height=h, width=w, channels=c)  # fmt: skip

    def dfp(self, t: Tensor) -> str:
        return _struct("tt_dfp", mantissa=self.ptr(t), state=self._state(t))

    def epilogue(self, op: Op) -> str:
        skip_list = [
            f"{{.mantissa = {self.ptr(t)}, .state = {self._state(t)}, .scale = {c_float(s)}}}" for t, s in skips(op)
        ]
        sink_list = [
            f"{{.mantissa = {self.ptr(t)}, .state = {self._state(t)}, .multiplier = {self._optional(mult)}, "
            f".mask = {self._optional(mask)}, .limit = {t.limit}}}"
            for t, mult, mask in sinks(op)
        ]
        return _struct(
            "tt_epilogue", mask=self._optional(op.inputs.get("mask")), skip_count=len(skip_list),
            sink_count=len(sink_list), **({"skips": "{" + ", ".join(skip_list) + "}"} if skip_list else {}),
            sinks="{" + ", ".join(sink_list) + "}",
        )  # fmt: skip

    def update(self, op: Op) -> str:
        param, rows = op.inputs["param"], op.inputs.get("rows")
        array = {"weight" if param.dtype == "int8" else "bias": self.ptr(param)}
        if rows is not None:
            array |= {"rows": self.ptr(rows), "row_count": str(rows.elements)}
        return _struct(
            "tt_update", **array, fraction=self._optional(op.inputs.get("fraction")),
            coefficient=self.ptr(op.inputs["coef"]), rounding="TT_" + op.attrs["rounding"].upper(),
            seed=f"0x{seed_of(param):08x}u",
        )  # fmt: skip

    def _optional(self, t: Tensor | None) -> str:
        return "NULL" if t is None else self.ptr(t)

    def _state(self, t: Tensor) -> str:
        return f"&states[STATE_{identifier(t.name).upper()}]"

    @property
    def kernel_ops(self) -> list[Op]:
        """The ops that become a function; views move no bytes."""
        return [op for op in self.graph if definition(op.kind).has_kernel]

    # ---- whole ops ------------------------------------------------------------------------
    def call(self, kernel: str, *arguments: object) -> str:
        """`kernel(arg, ...);` with one argument a line where they are structures."""
        texts = [str(a) for a in arguments]
        separator = f",\n{INDENT}" if any("{" in t for t in texts) else ", "
        lead = f"\n{INDENT}" if "\n" in separator else ""
        return f"{kernel}({lead}{separator.join(texts)});"

    def function_name(self, op: Op) -> str:
        """Symbol of the op's function; profiles are read back by it."""
        return f"tt_op_{self.tag}_{self._index[op]:03d}_{identifier(op.name)}_{op.kind}"

    def body(self, op: Op) -> str:
        return definition(op.kind).call(op, self)

    def comment(self, op: Op) -> list[str]:
        """The op as the IR prints it, its phase and work, and where its arena tensors lie."""
        macs = definition(op.kind).macs(op)
        head = f"{self._index[op]} {op.name}: {op.phase}" + (f", {macs:,} MACs" if macs else "")
        arena = [t for t in (*op.inputs.values(), *op.outputs.values()) if t.role in ("value", "input")]
        places = [f"{t.name} {self.plan.offset(t)}..{self.plan.offset(t) + t.nbytes}" for t in dict.fromkeys(arena)]
        return [head, str(op)] + (["arena: " + ", ".join(places)] if places else [])


def _struct(kind: str, **fields: object) -> str:
    """A compound literal; fields that C would zero anyway are left out."""
    shown = ", ".join(f".{name} = {value}" for name, value in fields.items() if value != "NULL")
    return f"&(const {kind}){{{shown}}}"
