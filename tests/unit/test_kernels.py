"""Every C kernel against its NumPy reference, byte for byte, on random shapes: outputs, masks, exponents, peaks.

Memory is checked too: no kernel writes outside its tensors and its scratch, and outputs may share the memory
of the inputs that `in_place` offers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_bench import Bench, Steps, build_kernels

from tinytrain_lite.graph import Op, Tensor
from tinytrain_lite.ops import definition
from tinytrain_lite.ops.numerics import F32, UPDATE_ROUNDINGS, Dfp, DfpState
from tinytrain_lite.ops.window import output_size
from tinytrain_lite.passes.limits import INT32_MAX, MANTISSA_MAX, gain

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = st.integers(1, 19)
EXAMPLES = settings(max_examples=80, deadline=None)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_kernels(tmp_path_factory.mktemp("kernels"))


# ---- building random ops -----------------------------------------------------------------------
@st.composite
def windows(draw: st.DrawFn, biggest: int = 11) -> dict[str, Any]:
    """Input size, kernel, stride and padding that fit each other."""
    kernel = draw(st.one_of(st.sampled_from([(k, k) for k in (1, 3, 5, 7)]), st.tuples(*[st.integers(1, 4)] * 2)))
    stride = draw(st.sampled_from((1, 2)))
    top, bottom = (draw(st.integers(0, kernel[0] - 1)) for _ in range(2))
    left, right = (draw(st.integers(0, kernel[1] - 1)) for _ in range(2))
    height = draw(st.integers(max(1, kernel[0] - top - bottom), max(biggest, kernel[0])))
    width = draw(st.integers(max(1, kernel[1] - left - right), max(biggest, kernel[1])))
    pad = (top, left, bottom, right)
    return {"size": (height, width), "kernel": kernel, "stride": stride, "pad": pad,
            "out": output_size(height, width, kernel, stride, pad)}  # fmt: skip


class Maker:
    """Tensors and values of one op, filled from a seeded generator."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}

    def add(self, name: str, data: Any, dtype: str, **fields: Any) -> Tensor:
        array = data.mantissa if isinstance(data, Dfp) else data
        self.inputs[name] = Tensor(name, array.shape, dtype, **fields)
        self.values[name] = data
        return self.inputs[name]

    def out(self, role: str, shape: tuple[int, ...], dtype: str, **fields: Any) -> Tensor:
        self.outputs[role] = Tensor(f"{role}.new" if role in self.inputs else role, shape, dtype, **fields)
        return self.outputs[role]

    def ints(self, shape: Any, lo: int = -128, hi: int = 127, dtype: Any = np.int8) -> np.ndarray:
        return self.random.integers(lo, hi, shape, dtype, endpoint=True)

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.random.random() < probability)

    def activation(self, role: str, shape: tuple[int, ...]) -> Tensor:
        return self.add(role, self.ints(shape), "int8", zero_point=int(self.ints(())))

    def conv_weight(self, o: int, kernel: tuple[int, int], channels: int) -> None:
        """Whole, or cut into trained and frozen slices of a random order."""
        k = int(self.random.integers(1, channels)) if channels > 1 and self.chance() else channels
        self.add("w", self.ints((o, *kernel, k), -127), "int8")
        if k < channels:
            self.add("w_frozen", self.ints((o, *kernel, channels - k), -127), "int8")
            self.add("perm", self.random.permutation(channels).astype(np.uint16), "uint16")

    def requantized(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Output, mask or none, and the clamp."""
        lo = int(self.ints((), -128, 0)) if self.chance() else -128
        self.out("y", shape, "int8", zero_point=int(self.ints(())))
        if self.chance():
            self.out("mask", shape, "bits")
        return lo, int(self.ints((), lo + 1, 127)) if self.chance() else 127

    def gradient(self, role: str, shape: tuple[int, ...], limit: int = MANTISSA_MAX) -> None:
        lo, hi = (-limit, limit) if self.chance() else (-min(300, limit), min(300, limit))
        self.add(role, Dfp(self.ints(shape, lo, hi, np.int16), int(self.ints((), -30, 5))), "dfp16", limit=limit)

    def epilogue(self, shape: tuple[int, ...], need_skip: bool = False) -> tuple[float, ...]:
        """Random skips, masks and one or two sinks; returns `skip_scale`."""
        count = max(int(self.random.integers(0, 3)), int(need_skip))
        for i in range(count):
            self.gradient(f"skip{i}", shape)
        if self.chance():
            self.add("mask", self.random.random(shape) < 0.6, "bits")
        for j in range(1 + self.chance(0.3)):
            self.out(f"out{j}", shape, "dfp16", limit=int(self.random.choice([32767, 20000, 1023, 255])))
            if self.chance():
                self.add(f"mult{j}", self.random.uniform(1e-4, 1e-1, shape[-1:]).astype(F32), "float32")
            if self.chance():
                self.add(f"mask{j}", self.random.random(shape) < 0.6, "bits")
        return tuple(float(F32(s)) for s in self.random.uniform(0.1, 2, count))

    def updated(self, shape: tuple[int, ...], dtype: str, rounding: str, rows: int | None = None) -> None:
        """The parameter, its fraction, coefficients; values near the ends are common so that some saturate."""
        if dtype == "int8":
            data = self.random.choice([-127, -126, -3, 0, 5, 126, 127], shape).astype(np.int8)
        else:
            data = self.random.choice([-(2**30 - 1), -70000, 0, 12345, 2**30 - 1], shape).astype(np.int32)
        param = self.add("param", data, dtype, role="param")
        learns = shape
        if rows is not None:
            self.add("rows", np.sort(self.random.permutation(shape[0])[:rows]).astype(np.uint16), "uint16")
            learns = (rows, *shape[1:])
        self.add("coef", (10 ** self.random.uniform(-4, 3, shape[:1])).astype(F32), "float32")
        self.outputs["param"] = Tensor("param'", shape, dtype, aliases=param)
        if rounding == "fraction8":
            self.add("fraction", self.ints(learns), "int8")
            self.out("fraction", learns, "int8")

    def limited(self, kind: str, role: str, shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
        """A gradient whose mantissas are as large as passes/limits.py allows for this op."""
        probe = Op(kind, kind, {**self.inputs, role: Tensor(role, shape, "dfp16")}, self.outputs, attrs)
        self.gradient(role, shape, min(MANTISSA_MAX, INT32_MAX // gain(probe)))


def check(kernels: Any, maker: Maker, kind: str, **attrs: Any) -> None:
    """Reference and kernel from the same start, once in separate memory and once for every in-place offer."""
    op = Op(kind, kind, maker.inputs, maker.outputs, attrs)
    rule = definition(kind)
    rule.check(op)
    sinks = [t for t in op.outputs.values() if t.dtype == "dfp16"]
    probe = Steps(0, 0, {t.name: DfpState(limit=t.limit) for t in sinks})
    rule.reference(op, maker.values, probe)  # type: ignore[arg-type]
    factors = {t.name: F32(2 ** maker.random.uniform(-3, 3)) for t in sinks}
    rate, step = float(F32(10 ** maker.random.uniform(-4, 0))), int(maker.random.integers(0, 2**31))
    # Peaks around what this step will see: some sinks saturate, some do not.
    peaks = {t.name: F32(probe.states[t.name].peak * factors[t.name]) for t in sinks}

    def fresh() -> Steps:
        return Steps(rate, step, {t.name: DfpState(peaks[t.name], t.limit) for t in sinks})

    expected_machine = fresh()
    expected = rule.reference(op, maker.values, expected_machine)  # type: ignore[arg-type]
    for sharing in [None, *rule.in_place(op)]:
        bench = Bench(kernels, op, maker.values, fresh())
        if sharing:
            bench.share(*sharing)
        for role, got in bench.run().items():
            want, where = expected[role], f"{role}, in place {sharing}"
            if isinstance(want, Dfp):
                mantissa, exponent, peak = got
                np.testing.assert_array_equal(mantissa, want.mantissa, where)
                assert exponent == want.exponent, where
                assert peak == expected_machine.states[op.outputs[role].name].peak, where
            else:
                np.testing.assert_array_equal(got, want, where)


# ---- forward --------------------------------------------------------------------------------------
def forward_multiplier(maker: Maker, channels: int, terms: int) -> None:
    """float32 per channel such that sums of `terms` products land around the int8 range, often beyond it."""
    scale = 100 / (5000 * np.sqrt(terms))
    maker.add("m", (scale * maker.random.uniform(0.2, 2, channels)).astype(F32), "float32")


@EXAMPLES
@given(windows(), CHANNELS, CHANNELS, SEEDS)
def test_conv2d(kernels: Any, window: dict[str, Any], channels: int, o: int, seed: int) -> None:
    m = Maker(seed)
    m.activation("x", (*window["size"], channels))
    m.conv_weight(o, window["kernel"], channels)
    m.add("b", m.ints(o, -50000, 50000, np.int32), "int32")
    forward_multiplier(m, o, channels * window["kernel"][0] * window["kernel"][1])
    clamp = m.requantized((*window["out"], o))
    check(kernels, m, "conv2d", stride=window["stride"], pad=window["pad"], clamp=clamp)


def make_depthwise(m: Maker, window: dict[str, Any], channels: int) -> dict[str, Any]:
    m.activation("x", (*window["size"], channels))
    m.add("w", m.ints((channels, *window["kernel"]), -127), "int8")
    m.add("b", m.ints(channels, -50000, 50000, np.int32), "int32")
    forward_multiplier(m, channels, window["kernel"][0] * window["kernel"][1])
    clamp = m.requantized((*window["out"], channels))
    return {"stride": window["stride"], "pad": window["pad"], "clamp": clamp}


@EXAMPLES
@given(windows(), CHANNELS, SEEDS)
def test_depthwise_conv2d(kernels: Any, window: dict[str, Any], channels: int, seed: int) -> None:
    m = Maker(seed)
    check(kernels, m, "depthwise_conv2d", **make_depthwise(m, window, channels))


TALL = [(40, 33, 3, 1), (41, 40, 5, 2), (64, 60, 7, 1), (70, 64, 3, 2), (65, 64, 1, 2)]


def tall_window(height: int, width: int, k: int, stride: int) -> dict[str, Any]:
    pad = (k // 2, k // 2, k // 2, k // 2)
    return {"size": (height, width), "kernel": (k, k), "stride": stride, "pad": pad,
            "out": output_size(height, width, (k, k), stride, pad)}  # fmt: skip


@pytest.mark.parametrize("shape", TALL)
def test_depthwise_in_bands(kernels: Any, shape: tuple[int, int, int, int]) -> None:
    m = Maker(7)
    check(kernels, m, "depthwise_conv2d", **make_depthwise(m, tall_window(*shape), 3))


@EXAMPLES
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), CHANNELS), SEEDS)
def test_add(kernels: Any, shape: tuple[int, int, int], seed: int) -> None:
    m = Maker(seed)
    m.activation("a", shape)
    m.activation("b", shape)
    clamp = m.requantized(shape)
    ratios = [float(F32(r)) for r in m.random.uniform(0.1, 1.5, 2)]
    check(kernels, m, "add", ratio_a=ratios[0], ratio_b=ratios[1], clamp=clamp)


@EXAMPLES
@given(st.tuples(st.integers(1, 9), st.integers(1, 9), CHANNELS), SEEDS)
def test_avg_pool(kernels: Any, shape: tuple[int, int, int], seed: int) -> None:
    m = Maker(seed)
    m.activation("x", shape)
    clamp = m.requantized((1, 1, shape[2]))
    check(kernels, m, "avg_pool", m=float(F32(m.random.uniform(0.2, 2) / (shape[0] * shape[1]))), clamp=clamp)


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 12), SEEDS)
def test_linear(kernels: Any, channels: int, n: int, seed: int) -> None:
    m = Maker(seed)
    m.activation("x", (1, 1, channels))
    m.add("w", m.ints((n, channels), -127), "int8")
    m.add("b", m.ints(n, -50000, 50000, np.int32), "int32")
    forward_multiplier(m, n, channels)
    m.out("y", (n,), "float32")
    check(kernels, m, "linear")


@EXAMPLES
@given(st.integers(1, 20), st.floats(0.01, 60), SEEDS)
def test_softmax_cross_entropy(kernels: Any, n: int, spread: float, seed: int) -> None:
    m = Maker(seed)
    m.add("x", m.random.normal(0, spread, n).astype(F32), "float32")
    m.add("label", m.ints(1, 0, n - 1, np.int32), "int32")
    m.out("probabilities", (n,), "float32")
    m.out("loss", (1,), "float32")
    check(kernels, m, "softmax_cross_entropy")


@EXAMPLES
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), CHANNELS), SEEDS)
def test_gather_channels(kernels: Any, shape: tuple[int, int, int], seed: int) -> None:
    m = Maker(seed)
    x = m.activation("x", shape)
    m.add("perm", m.random.permutation(shape[2]).astype(np.uint16), "uint16")
    m.out("y", (*shape[:2], int(m.random.integers(1, shape[2] + 1))), "int8", zero_point=x.zero_point)
    check(kernels, m, "gather_channels")


# ---- gradients of activations -----------------------------------------------------------------------
@EXAMPLES
@given(st.integers(1, 20), SEEDS)
def test_softmax_cross_entropy_grad(kernels: Any, n: int, seed: int) -> None:
    m = Maker(seed)
    m.add("p", m.random.dirichlet(np.ones(n)).astype(F32), "float32")
    m.add("label", m.ints(1, 0, n - 1, np.int32), "int32")
    skip_scale = m.epilogue((n,))
    check(kernels, m, "softmax_cross_entropy_grad", skip_scale=skip_scale)


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 12), SEEDS)
def test_linear_grad_input(kernels: Any, channels: int, n: int, seed: int) -> None:
    m = Maker(seed)
    m.gradient("g", (n,))
    m.add("w", m.ints((n, channels), -127), "int8")
    skip_scale = m.epilogue((1, 1, channels))
    check(kernels, m, "linear_grad_input", skip_scale=skip_scale)


@EXAMPLES
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), CHANNELS), SEEDS)
def test_avg_pool_grad_input(kernels: Any, shape: tuple[int, int, int], seed: int) -> None:
    m = Maker(seed)
    m.gradient("g", (1, 1, shape[2]))
    skip_scale = m.epilogue(shape)
    check(kernels, m, "avg_pool_grad_input", m=float(F32(m.random.uniform(1e-3, 1))), skip_scale=skip_scale)


@EXAMPLES
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), CHANNELS), SEEDS)
def test_grad_map(kernels: Any, shape: tuple[int, int, int], seed: int) -> None:
    m = Maker(seed)
    skip_scale = m.epilogue(shape, need_skip=True)
    check(kernels, m, "grad_map", skip_scale=skip_scale)


@EXAMPLES
@given(windows(), CHANNELS, CHANNELS, SEEDS)
def test_conv2d_grad_input(kernels: Any, window: dict[str, Any], channels: int, o: int, seed: int) -> None:
    m = Maker(seed)
    attrs = {"stride": window["stride"], "pad": window["pad"]}
    m.conv_weight(o, window["kernel"], channels)
    m.limited("conv2d_grad_input", "g", (*window["out"], o), attrs)
    skip_scale = m.epilogue((*window["size"], channels))
    check(kernels, m, "conv2d_grad_input", **attrs, skip_scale=skip_scale)


@EXAMPLES
@given(windows(), CHANNELS, SEEDS)
def test_depthwise_grad_input(kernels: Any, window: dict[str, Any], channels: int, seed: int) -> None:
    m = Maker(seed)
    attrs = {"stride": window["stride"], "pad": window["pad"]}
    m.add("w", m.ints((channels, *window["kernel"]), -127), "int8")
    m.limited("depthwise_grad_input", "g", (*window["out"], channels), attrs)
    skip_scale = m.epilogue((*window["size"], channels))
    check(kernels, m, "depthwise_grad_input", **attrs, skip_scale=skip_scale)


# ---- gradients of parameters --------------------------------------------------------------------------
ROUNDINGS = st.sampled_from(UPDATE_ROUNDINGS)


@EXAMPLES
@given(st.tuples(st.integers(1, 6), st.integers(1, 6), CHANNELS), ROUNDINGS, SEEDS)
def test_grad_bias(kernels: Any, shape: tuple[int, int, int], rounding: str, seed: int) -> None:
    m = Maker(seed)
    m.gradient("g", shape)
    m.updated(shape[2:], "int32", rounding)
    check(kernels, m, "grad_bias", rounding=rounding)


@EXAMPLES
@given(st.integers(1, 40), st.integers(1, 12), ROUNDINGS, SEEDS)
def test_linear_grad_weight(kernels: Any, channels: int, n: int, rounding: str, seed: int) -> None:
    m = Maker(seed)
    m.gradient("g", (n,))
    m.activation("x", (1, 1, channels))
    m.updated((n, channels), "int8", rounding)
    check(kernels, m, "linear_grad_weight", rounding=rounding)


@EXAMPLES
@given(windows(), CHANNELS, CHANNELS, ROUNDINGS, SEEDS)
def test_conv2d_grad_weight(
    kernels: Any, window: dict[str, Any], channels: int, o: int, rounding: str, seed: int
) -> None:
    m = Maker(seed)
    attrs = {key: window[key] for key in ("stride", "pad", "kernel")}
    m.activation("x", (*window["size"], channels))
    m.limited("conv2d_grad_weight", "g", (*window["out"], o), attrs)
    m.updated((o, *window["kernel"], channels), "int8", rounding)
    check(kernels, m, "conv2d_grad_weight", **attrs, rounding=rounding)


def make_depthwise_grad_weight(m: Maker, window: dict[str, Any], channels: int, rounding: str) -> dict[str, Any]:
    attrs = {key: window[key] for key in ("stride", "pad", "kernel")}
    m.activation("x", (*window["size"], channels))
    m.limited("depthwise_grad_weight", "g", (*window["out"], channels), attrs)
    rows = int(m.random.integers(1, channels + 1)) if m.chance() else None
    m.updated((channels, *window["kernel"]), "int8", rounding, rows)
    return {**attrs, "rounding": rounding}


@EXAMPLES
@given(windows(), CHANNELS, ROUNDINGS, SEEDS)
def test_depthwise_grad_weight(kernels: Any, window: dict[str, Any], channels: int, rounding: str, seed: int) -> None:
    m = Maker(seed)
    check(kernels, m, "depthwise_grad_weight", **make_depthwise_grad_weight(m, window, channels, rounding))


@pytest.mark.parametrize("shape", TALL)
def test_depthwise_grad_weight_in_bands(kernels: Any, shape: tuple[int, int, int, int]) -> None:
    m = Maker(8)
    check(kernels, m, "depthwise_grad_weight", **make_depthwise_grad_weight(m, tall_window(*shape), 3, "fraction8"))
