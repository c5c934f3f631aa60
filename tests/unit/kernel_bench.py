"""Run single kernels from Python: an emitter that calls instead of printing.

`OpDefinition.call` asks an emitter for its arguments and for the call. Codegen's answers with C text; this one
answers with live structures and calls the kernel in a shared library, so what codegen prints is what is tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cffi
import numpy as np

from tinytrain_lite.board import firmware_dir
from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops import definition
from tinytrain_lite.ops.conv2d import weight_shape
from tinytrain_lite.ops.epilogue import sinks, skips
from tinytrain_lite.ops.numerics import F32, Dfp, DfpState
from tinytrain_lite.ops.update import seed_of
from tinytrain_lite.toolchain import COMMON_FLAGS

GUARD, PATTERN = 32, 0xA5  # bytes on either side of every buffer that nobody may touch
STORAGE = {"int8": np.int8, "uint16": np.uint16, "int32": np.int32, "float32": F32, "dfp16": np.int16}
GLOBALS = '#include "tt_kernels.h"\nfloat tt_learning_rate;\nuint32_t tt_step;\n'


def build_kernels(directory: Path) -> tuple[cffi.FFI, Any]:
    """Compile firmware/kernels for this computer; returns (ffi, library) with the API of tt_kernels.h."""
    firmware = firmware_dir()
    (directory / "globals.c").write_text(GLOBALS)
    library = directory / "libkernels.so"
    sources = [str(directory / "globals.c"), *map(str, sorted((firmware / "kernels").glob("*.c")))]
    flags = [*COMMON_FLAGS, "-mcpu=native", "-shared", "-fPIC", f"-I{firmware / 'include'}"]
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *flags, *sources, "-o", str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ffi = cffi.FFI()
    header = (firmware / "include" / "tt_kernels.h").read_text()
    ffi.cdef(re.sub(r"^#.*$", "", re.sub(r"/\*.*?\*/", "", header, flags=re.S), flags=re.M))
    return ffi, ffi.dlopen(str(library))


class Steps:
    """What a reference needs of a machine: learning rate, step number, one state per gradient."""

    def __init__(self, learning_rate: float, steps: int, states: Mapping[str, DfpState]):
        self.learning_rate, self.steps, self.states = F32(learning_rate), steps, states

    def store_gradient(self, tensor: Tensor, value: np.ndarray) -> Dfp:
        return self.states[tensor.name].store(value)


class Bench:
    """Memory and structures for one op; `run` calls its kernel and returns the outputs by role."""

    def __init__(self, kernels: tuple[cffi.FFI, Any], op: Op, values: Mapping[str, Any], machine: Steps):
        self.ffi, self.library = kernels
        self.op, self.machine = op, machine
        self.alive: list[Any] = []
        self.buffers: dict[str, np.ndarray] = {}
        self.states: dict[str, Any] = {}
        for role, t in op.inputs.items():
            data = values[role].mantissa if isinstance(values[role], Dfp) else values[role]
            self._place(t, pack(t, data))
            if isinstance(values[role], Dfp):
                self._state(t).exponent = values[role].exponent
        for role, t in op.outputs.items():
            if t.aliases is not None:
                self.buffers[t.name] = self.buffers[t.aliases.name]
            elif role in op.inputs:  # fraction: read and written in place
                self.buffers[t.name] = self.buffers[op.inputs[role].name]
            else:
                self._place(t, np.full(t.nbytes, PATTERN, np.uint8))
            if t.dtype == "dfp16":
                self._state(t).peak = machine.states[t.name].peak

    def share(self, output: str, source: str) -> None:
        """Let an output overwrite an input, as the memory plan may."""
        out, old = self.op.outputs[output], self.op.inputs[source]
        content = self.buffers[old.name][GUARD:-GUARD].copy()
        size = max(out.nbytes, old.nbytes)
        self._place(out, np.resize(np.append(content, np.full(size, PATTERN, np.uint8)), size))
        self.buffers[old.name] = self.buffers[out.name]

    def run(self) -> dict[str, Any]:
        self.library.tt_learning_rate = float(self.machine.learning_rate)
        self.library.tt_step = self.machine.steps
        definition(self.op.kind).call(self.op, self)  # type: ignore[arg-type]
        for name, buffer in self.buffers.items():
            assert (buffer[:GUARD] == PATTERN).all() and (buffer[-GUARD:] == PATTERN).all(), f"wrote outside {name}"
        return {role: self._read(t) for role, t in self.op.outputs.items()}

    def _place(self, t: Tensor, content: np.ndarray) -> None:
        guard = np.full(GUARD, PATTERN, np.uint8)
        self.buffers[t.name] = np.concatenate([guard, content, guard])

    def _read(self, t: Tensor) -> Any:
        content = self.buffers[t.name][GUARD : GUARD + t.nbytes]
        if t.dtype == "bits":
            return np.unpackbits(content, count=t.elements, bitorder="little").astype(bool).reshape(t.shape)
        array = content.view(STORAGE[t.dtype]).reshape(t.shape)
        if t.dtype != "dfp16":
            return array
        state = self._state(t)
        return array, state.exponent, F32(state.peak)

    def _state(self, t: Tensor) -> Any:
        return self.states.setdefault(t.name, self.ffi.new("tt_dfp_state *"))

    def _struct(self, kind: str, **fields: Any) -> Any:
        struct = self.ffi.new(f"{kind} *", {k: v for k, v in fields.items() if v is not None})
        self.alive += [struct, fields]
        return struct

    # ---- what an emitter answers --------------------------------------------------------------
    def ptr(self, t: Tensor) -> Any:
        return self.ffi.cast("void *", self.buffers[t.name].ctypes.data + GUARD)

    def scratch(self, op: Op) -> Any:
        size = definition(op.kind).scratch_bytes(op)
        self.buffers["scratch"] = np.full(size + 2 * GUARD, PATTERN, np.uint8)
        return self.ffi.cast("void *", self.buffers["scratch"].ctypes.data + GUARD)

    def float(self, value: float) -> float:
        return float(value)

    def _optional(self, t: Tensor | None) -> Any:
        return None if t is None else self.ptr(t)

    def input(self, t: Tensor) -> Any:
        h, w, c = t.shape
        return self._struct("tt_input", data=self.ptr(t), zero_point=t.zero_point, height=h, width=w, channels=c)

    def dims(self, t: Tensor) -> Any:
        h, w, c = t.shape
        return self._struct("tt_dims", height=h, width=w, channels=c)

    def window(self, op: Op) -> Any:
        kernel = op.attrs.get("kernel") or op.inputs["w"].shape[1:3]
        top, left, _, _ = op.attrs["pad"]
        return self._struct(
            "tt_window", kernel_h=kernel[0], kernel_w=kernel[1], stride=op.attrs["stride"], pad_top=top, pad_left=left
        )

    def conv_weight(self, op: Op) -> Any:
        o, _, _, channels = weight_shape(op)
        return self._struct(
            "tt_conv_weight", trained=self.ptr(op.inputs["w"]), frozen=self._optional(op.inputs.get("w_frozen")),
            perm=self._optional(op.inputs.get("perm")), out_channels=o, in_channels=channels,
            trained_channels=op.inputs["w"].shape[3],
        )  # fmt: skip

    def requant(self, op: Op) -> Any:
        y, (lo, hi) = op.outputs["y"], op.attrs["clamp"]
        h, w, c = y.shape
        return self._struct(
            "tt_requant", y=self.ptr(y), mask=self._optional(op.outputs.get("mask")),
            multiplier=self._optional(op.inputs.get("m")), zero_point=y.zero_point, lo=lo, hi=hi,
            height=h, width=w, channels=c,
        )  # fmt: skip

    def dfp(self, t: Tensor) -> Any:
        return self._struct("tt_dfp", mantissa=self.ptr(t), state=self._state(t))

    def epilogue(self, op: Op) -> Any:
        e = self._struct("tt_epilogue", skip_count=len(skips(op)), sink_count=len(sinks(op)))
        e.mask = self._optional(op.inputs.get("mask")) or self.ffi.NULL
        for i, (t, scale) in enumerate(skips(op)):
            e.skips[i].mantissa, e.skips[i].state, e.skips[i].scale = self.ptr(t), self._state(t), scale
        for j, (t, multiplier, mask) in enumerate(sinks(op)):
            e.sinks[j].mantissa, e.sinks[j].state, e.sinks[j].limit = self.ptr(t), self._state(t), t.limit
            e.sinks[j].multiplier = self._optional(multiplier) or self.ffi.NULL
            e.sinks[j].mask = self._optional(mask) or self.ffi.NULL
        return e

    def update(self, op: Op) -> Any:
        param, rows = op.inputs["param"], op.inputs.get("rows")
        return self._struct(
            "tt_update", **{"weight" if param.dtype == "int8" else "bias": self.ptr(param)},
            fraction=self._optional(op.inputs.get("fraction")), coefficient=self.ptr(op.inputs["coef"]),
            rows=self._optional(rows), row_count=rows.elements if rows else 0,
            rounding=getattr(self.library, "TT_" + op.attrs["rounding"].upper()), seed=seed_of(param),
        )  # fmt: skip

    def call(self, kernel: str, *arguments: Any) -> str:
        getattr(self.library, kernel)(*arguments)
        return kernel


def pack(t: Tensor, data: np.ndarray) -> np.ndarray:
    """The bytes of a tensor in memory."""
    if t.dtype == "bits":
        return np.packbits(np.asarray(data, bool).ravel(), bitorder="little")
    return np.ascontiguousarray(data, STORAGE[t.dtype]).view(np.uint8).ravel().copy()
