"""Every gradient against PyTorch autograd (float64, straight-through), on whole networks and op by op."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RandomNetwork, images, residual_network
from oracle import Oracle, rounding_bounds, to_hwc

from tinytrain_lite.autodiff import UpdateRule, differentiate
from tinytrain_lite.builder import Builder
from tinytrain_lite.calibrate import _Calibrator, calibrate_gradients
from tinytrain_lite.compiler import inference_graph, training_graph
from tinytrain_lite.graph import Graph, Op
from tinytrain_lite.ops.base import definition
from tinytrain_lite.ops.numerics import Dfp
from tinytrain_lite.passes.fuse import fuse
from tinytrain_lite.passes.limits import assign_limits
from tinytrain_lite.passes.prune import prune
from tinytrain_lite.passes.sparse import apply_scheme
from tinytrain_lite.reference import Machine
from tinytrain_lite.sparse.scheme import UpdateScheme, preset

# One rounding to 14 significant bits per layer, some ten layers deep. Of the largest gradient of the tensor, or of
# the largest sum of magnitudes where a gradient cancels over positions: a sum is as exact as its terms.
GRADIENT_TOLERANCE = 4e-3
# A value is computed in float32 before it is rounded to a mantissa of at most 15 bits: at worst 2 % of an LSB more.
MANTISSA_ERROR = 0.52
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))


def autograd(graph: Graph, image: np.ndarray, label: int) -> dict[str, np.ndarray]:
    oracle = Oracle(graph)
    oracle.loss(image, label).backward()
    return {name: p.grad.numpy() for name, p in oracle.params.items()}


def check_unfused(graph: Graph, seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Every weight and bias gradient of the unfused graph is autograd's, but for the rounding of the gradients on the
    way, whose worst case is worked out element by element. Returns all values of ours, and autograd's gradients."""
    image, label = images(graph, 1, seed)
    machine = _Calibrator(prune(differentiate(apply_scheme(graph, preset("full")), UpdateRule())))
    values = machine.run({"image": image[0], "label": label[:1].astype(np.int32)})
    stored = {name: v for name, v in values.items() if isinstance(v, Dfp) and v.mantissa.dtype == np.int16}
    bounds = rounding_bounds(graph, image[0], {name: MANTISSA_ERROR * 2.0**v.exponent for name, v in stored.items()})
    theirs = autograd(graph, image[0], int(label[0]))
    for name, want in theirs.items():
        off = np.abs(values[f"{name}.grad"].to_float().reshape(want.shape) - want)
        assert (off <= bounds[name]).all(), f"{name}: {(off / bounds[name]).max():.2f} times what rounding allows"
    return values, theirs


@pytest.mark.parametrize("seed", range(6))
def test_forward_is_the_same_integers_as_pytorch(seed: int) -> None:
    graph = residual_network(seed)
    image, _ = images(graph, 1, seed)
    ours = Machine(graph).run({"image": image[0]})
    theirs = Oracle(graph).forward(image[0])
    for op in graph:
        y = op.outputs["y"]
        want = theirs[y.name].detach().numpy() if op.kind == "linear" else to_hwc(theirs[y.name])
        np.testing.assert_array_equal(ours[y.name], want.astype(ours[y.name].dtype), err_msg=op.name)


@pytest.mark.parametrize("seed", range(6))
def test_unfused_gradients_match_autograd(seed: int) -> None:
    """Two residual adds whose operands both carry gradient, nonzero zero points, k up to 7, stride 2."""
    values, theirs = check_unfused(residual_network(seed), seed)
    for name, want in theirs.items():  # the worst case is far from the usual one: these networks keep to the latter
        scale = np.abs(want).max()
        terms = np.abs(values[f"{name[:-2]}.g"].to_float())
        typical_factor = 64 if name.endswith(".w") else 1  # |x - z|
        scale = max(scale, typical_factor * terms.reshape(-1, terms.shape[-1]).sum(axis=0).max())
        worst = np.abs(values[f"{name}.grad"].to_float().reshape(want.shape) - want).max()
        assert worst <= GRADIENT_TOLERANCE * scale, f"{name}: off by {worst / scale:.2e} of the largest gradient"


@pytest.mark.parametrize("seed", range(6))
def test_fused_updates_match_autograd(seed: int) -> None:
    """The step a fused, scheduled graph takes is -lr * gradient / scale^2 (QAS), read back in 1/256 LSB."""
    graph = residual_network(seed)
    image, label = images(graph, 1, seed)
    train = calibrate_gradients(training_graph(graph, preset("full")), image, label)
    machine = Machine(train)
    gradients = autograd(graph, image[0], int(label[0]))
    for name, want in gradients.items():
        scale = np.asarray(graph.tensors[name].scale, np.float64).reshape(-1, *[1] * (want.ndim - 1))
        step = want / scale**2
        machine.reset()
        machine.learning_rate = np.float32(20 / np.abs(step).max())  # the largest step is 20 LSB
        before = machine.params[name].astype(np.int64) * 256
        machine.train(image[0], int(label[0]))
        after = machine.params[name].astype(np.int64) * 256 + machine.params[f"{name}.fraction"]
        free = np.abs(machine.params[name]) < (127 if want.ndim > 1 else 2**30 - 1)
        moved = (before - after) / 256 / float(machine.learning_rate)
        assert free.mean() > 0.5
        rounding = 0.5 / 256 / float(machine.learning_rate)
        worst = np.abs(moved - step)[free].max()
        # one shared bound here, as the fused graph keeps no gradient whose cancellation could be measured
        assert worst <= GRADIENT_TOLERANCE * np.abs(step).max() + rounding, f"{name}: {worst / np.abs(step).max():.2e}"


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([1, 3, 5, 7]),
    stride=st.sampled_from([1, 2]),
    size=st.integers(4, 11),
)
def test_gradients_of_random_blocks(seed: int, k: int, stride: int, size: int) -> None:
    net = RandomNetwork(seed)
    channels = int(net.rng.integers(1, 6))
    x = net.b.input("image", (size, size, channels), 0.01, int(net.rng.integers(-128, 128)))
    y = net.conv(x, int(net.rng.integers(1, 7)), int(net.rng.choice([1, 3])), 1, "first")
    y = net.block(y, y.shape[2], int(net.rng.integers(2, 9)), k, 1, "residual")
    y = net.block(y, int(net.rng.integers(1, 9)), int(net.rng.integers(2, 9)), k, stride, "down")
    check_unfused(net.head(y, 3), seed)


# ---- op by op: exact integers ---------------------------------------------------------------------
def conv_case(draw_seed: int, shape: tuple[int, int, int, int], k: int, stride: int, depthwise: bool):
    """A one-layer graph, its op, and random gradient mantissas; padding asymmetric but smaller than k."""
    rng = np.random.default_rng(draw_seed)
    h, w, c, o = shape
    h, w = max(h, k), max(w, k)
    pad = tuple(int(p) for p in rng.integers(0, k, 4)) if k > 1 else (0, 0, 0, 0)
    b = Builder("one")
    x = b.input("x", (h, w, c), 0.02, int(rng.integers(-128, 128)))
    out = c if depthwise else o
    weight = rng.integers(-127, 128, (out, k, k) if depthwise else (out, k, k, c)).astype(np.int8)
    build = b.depthwise_conv2d if depthwise else b.conv2d
    y = build(
        x,
        weight,
        np.full(out, 0.01),
        np.zeros(out, np.int32),
        stride=stride,
        pad=pad,
        out_scale=0.5,
        out_zero=0,
        name="l",
    )
    g = Dfp(rng.integers(-500, 501, y.shape).astype(np.int16), 0)
    data = rng.integers(-128, 128, (h, w, c)).astype(np.int8)
    return b, b.ops[0], weight, g, data


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), shapes, st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2]), st.booleans())
def test_convolution_gradients_are_exact(
    seed: int, shape: tuple[int, int, int, int], k: int, stride: int, depthwise: bool
) -> None:
    graph, op, weight, g, data = conv_case(seed, shape, k, stride, depthwise)
    x = torch.tensor(data.astype(np.float64) - op.inputs["x"].zero_point).permute(2, 0, 1)[None].requires_grad_()
    w64 = torch.tensor(weight.astype(np.float64)).requires_grad_()
    kernel = w64[:, None] if depthwise else w64.permute(0, 3, 1, 2)
    top, left, bottom, right = op.attrs["pad"]
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, None, stride, groups=x.shape[1] if depthwise else 1)
    y.backward(torch.tensor(g.mantissa.astype(np.float64)).permute(2, 0, 1)[None])

    family = "depthwise" if depthwise else "conv2d"
    window = {key: op.attrs[key] for key in ("stride", "pad")}
    out = graph.value("dx", op.inputs["x"].shape, "dfp16")
    gt = graph.value("g", g.mantissa.shape, "dfp16")
    dx = Op(f"{family}_grad_input", "l", {"g": gt, "w": op.inputs["w"]}, {"out0": out}, window)
    definition(dx.kind).check(dx)
    got = definition(dx.kind).value(dx, {"g": g, "w": weight})  # type: ignore[attr-defined]
    np.testing.assert_array_equal(got, to_hwc(x.grad).astype(np.float32))

    grad = graph.value("dw", weight.shape, "dfp32")
    dw = Op(
        f"{family}_grad_weight",
        "l",
        {"g": gt, "x": op.inputs["x"]},
        {"grad": grad},
        window | {"kernel": (k, k)},
    )
    definition(dw.kind).check(dw)
    got = definition(dw.kind).gradient(dw, {"g": g, "x": data})  # type: ignore[attr-defined]
    np.testing.assert_array_equal(got.reshape(weight.shape), w64.grad.numpy())


# ---- pruning ---------------------------------------------------------------------------------------
SLICED = UpdateScheme(
    "sliced", 9, {"b3.expand": 0.5, "b3.depthwise": 0.25, "b2.project": 0.25, "b2.expand": 1.0, "head": 1.0}
)


@pytest.mark.parametrize("scheme", [preset("last"), preset("bias"), preset("last-3"), SLICED], ids=lambda s: s.name)
def test_pruned_gradients_equal_the_unpruned_ones(scheme: UpdateScheme) -> None:
    """Same integers: pruning whole layers and slicing input channels must not touch what is left."""
    graph = residual_network(3)
    image, label = images(graph, 1, 3)
    feeds = {"image": image[0], "label": label[:1].astype(np.int32)}
    whole = _Calibrator(differentiate(apply_scheme(graph, preset("full")), UpdateRule())).run(feeds)
    sparse = apply_scheme(graph, scheme)
    pruned_graph = prune(differentiate(sparse, UpdateRule()))
    pruned = _Calibrator(pruned_graph).run(feeds)
    gradients = [t for t in pruned_graph.tensors.values() if t.dtype == "dfp32"]
    assert gradients
    for t in gradients:
        name = t.name.removesuffix(".grad")
        full = whole[f"{name.removesuffix('.trained')}.grad"]
        want = full.mantissa
        layer = next(op for op in sparse if name in (op.inputs.get("w", op).name, op.inputs.get("b", op).name))
        if name.endswith(".trained"):
            want = want[..., layer.inputs["perm"].data[: t.shape[-1]]]
        elif "rows" in layer.inputs and name.endswith(".w"):
            want = want[layer.inputs["rows"].data]
        assert pruned[t.name].exponent == full.exponent
        np.testing.assert_array_equal(pruned[t.name].mantissa, want, err_msg=name)


def test_slices_are_the_channels_of_largest_magnitude() -> None:
    graph = residual_network(3)
    op = next(op for op in apply_scheme(graph, SLICED) if op.name == "b3.expand")
    real = graph.tensors["b3.expand.w"].data.astype(float) * graph.tensors["b3.expand.w"].scale.reshape(-1, 1, 1, 1)
    norms = np.linalg.norm(real.reshape(len(real), -1), axis=0)
    k = op.inputs["w"].shape[3]
    assert k == round(0.5 * len(norms))
    assert set(op.inputs["perm"].data[:k]) == set(np.argsort(norms)[-k:])


def test_sliced_network_infers_like_the_whole_one() -> None:
    graph = residual_network(3)
    image, label = images(graph, 2, 3)
    train = calibrate_gradients(training_graph(graph, SLICED), image, label)
    for x in image:
        np.testing.assert_array_equal(Machine(inference_graph(train)).infer(x), Machine(graph).infer(x))


# ---- fusion and limits -----------------------------------------------------------------------------
@pytest.mark.parametrize("scheme", [preset("full"), preset("bias"), SLICED], ids=lambda s: s.name)
def test_fusion_leaves_no_pass_of_its_own(scheme: UpdateScheme) -> None:
    kinds = [op.kind for op in fuse(prune(differentiate(apply_scheme(residual_network(1), scheme), UpdateRule())))]
    assert "grad_map" not in kinds and "sgd_update" not in kinds


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 300))
def test_limits_keep_accumulators_within_int32(seed: int, size: int, channels: int) -> None:
    """Worst case by construction: every mantissa at its limit, every factor at its largest."""
    net = RandomNetwork(seed)
    x = net.b.input("image", (size, size, 2), 0.01, -128)
    graph = net.head(net.conv(net.conv(x, channels, 1, 1, "first"), 3, 3, 1, "second"), 3)
    train = assign_limits(fuse(prune(differentiate(apply_scheme(graph, preset("full")), UpdateRule()))))
    for t in [t for t in train.tensors.values() if t.dtype == "dfp16"]:
        for op in train.readers(t):
            positions, terms = t.elements // t.shape[-1], 0
            if op.kind.endswith("grad_weight"):
                z = op.inputs["x"].zero_point
                terms = positions * max(127 - z, z + 128)
            elif op.kind == "grad_bias":
                terms = positions
            elif op.kind == "conv2d_grad_input":
                w = op.inputs["w"].shape
                terms = w[0] * w[1] * w[2] * 127
            assert terms * t.limit < 2**31
