"""Quantization: hand-computed grids, and the int8 graph against PyTorch in whole numbers and in float."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracle import Oracle, to_hwc
from torch import nn

from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.frontend.float_model import FloatLayer, FloatModel
from tinytrain_lite.frontend.torch_export import import_module
from tinytrain_lite.quantize import (
    HEAD_SCALE,
    PIXEL_SCALE,
    Range,
    calibrate,
    quantize,
    quantize_image,
    quantize_weight,
    revive_channels,
)
from tinytrain_lite.reference import Machine
from tinytrain_lite.train import datasets
from tinytrain_lite.train.models import load_pretrained
from tinytrain_lite.train.pretrain import to_batch

torch.set_num_threads(1)


def test_pixels_move_to_int8_without_loss():
    pixels = np.array([[[0], [1], [127], [128], [255]]], np.uint8)
    assert quantize_image(pixels).ravel().tolist() == [-128, -127, -1, 0, 127]
    every = np.arange(256, dtype=np.uint8)
    real = PIXEL_SCALE * (quantize_image(every).astype(np.float64) + 128)
    np.testing.assert_allclose(real, every / 255, rtol=1e-15)


def test_only_uint8_pixels_are_images():
    with pytest.raises(TinyTrainError, match="uint8.*float32"):
        quantize_image(np.zeros((2, 2, 1), np.float32))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0, 6, 6 / 255, -128),
        (-6, 0, 6 / 255, 127),
        (-128, 127, 1, 0),
        (-2, 8.2, 0.04, -78),
        (3, 5.1, 0.02, -128),
    ],
)
def test_grid_by_hand(low, high, scale, zero):
    assert Range(low, high).grid() == (pytest.approx(scale), zero)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_grid_covers_its_range_and_holds_zero(low, width):
    scale, zero = Range(low, low + width).grid()
    assert -128 <= zero <= 127
    assert scale * (-128 - zero) <= min(low, 0) + scale / 2 * 1.001
    assert scale * (127 - zero) >= max(low + width, 0) - scale / 2 * 1.001


def test_a_tensor_that_is_always_zero_has_a_grid():
    assert Range(0.0, 0.0).grid() == (1.0, -128)


@given(arrays(np.float32, (3, 2, 2), elements=st.floats(-10, 10, width=32)))
def test_weights_are_within_half_a_step(weight):
    q, scale = quantize_weight(weight)
    assert q.dtype == np.int8 and scale.dtype == np.float32 and q.min() >= -127
    step = scale.astype(np.float64)[:, None, None]
    assert np.all(np.abs(q * step - weight) <= step * 0.50001)


def test_weights_by_hand():
    q, scale = quantize_weight(np.array([[1.27, -0.632], [0.0254, 0.0002], [0, 0]], np.float32))
    np.testing.assert_allclose(scale, [0.01, 0.0002, 1.27 / 1024 / 127], rtol=1e-6)
    assert q.tolist() == [[127, -63], [127, 1], [0, 0]]


def test_an_untrained_head_has_room_to_learn():
    q, scale = quantize_weight(np.zeros((4, 8), np.float32))
    assert not q.any() and np.all(scale == np.float32(HEAD_SCALE))


def test_dead_channels_are_revived_and_the_others_untouched():
    weight = np.array([[127, -5], [127, -64], [100, 3]], np.int8)
    scale = np.array([0.01024, 1e-8, 0.0001], np.float32)
    bias = np.array([7, -(2**31), 9], np.int32)
    w, s, b = revive_channels(weight, scale, bias)
    # the floor is 0.01024 / 1024 = 1e-5, a thousand times the dead scale
    np.testing.assert_allclose(s, [0.01024, 1e-5, 0.0001], rtol=1e-6)
    assert w.tolist() == [[127, -5], [0, 0], [100, 3]]
    assert b[[0, 2]].tolist() == [7, 9] and b[1] == pytest.approx(-(2**31) / 1000, abs=2)


def layer(**fields) -> FloatLayer:
    weight = np.array([[[[0.5]]], [[[-1.0]]]], np.float32)
    return FloatLayer("c", "conv2d", ("image",), weight=weight, bias=np.array([0.1, -0.2], np.float32), **fields)


@pytest.mark.parametrize(
    ("activation", "seen", "clamp"),
    [
        ((0, 6), Range(0, 6), (-128, 127)),
        ((0, 6), Range(0, 4), (-128, 127)),
        ((0, 6), Range(-128 / 16, 127 / 16), (0, 96)),  # step 1/16, zero point 0: 6 is 96 steps
        ((-math.inf, math.inf), Range(-3, 3), (-128, 127)),
        ((-1, 1), Range(-128 / 64, 127 / 64), (-64, 64)),
    ],
)
def test_activation_becomes_a_clamp_on_the_grid(activation, seen, clamp):
    model = FloatModel("m", (2, 2, 1), [layer(clamp=activation)])
    assert quantize(model, {"c": seen}).ops[0].attrs["clamp"] == clamp


def test_bias_is_in_steps_of_weight_scale_times_input_scale():
    graph = quantize(FloatModel("m", (2, 2, 1), [layer()]), {"c": Range(-1, 1)})
    # s_w = 0.5/127 and 1/127, s_x = 1/255: 0.1 / (s_w s_x) = 6477, -0.2 / (s_w s_x) = -6477
    assert graph.ops[0].inputs["b"].data.tolist() == [6477, -6477]


def test_calibration_sees_the_extremes_of_every_image():
    images = np.zeros((70, 2, 2, 1), np.uint8)
    images[69] = 255  # in the second batch
    ranges = calibrate(FloatModel("m", (2, 2, 1), [layer()]), images)
    assert (ranges["image"].low, ranges["image"].high) == (0.0, 1.0)
    assert (ranges["c"].low, ranges["c"].high) == (pytest.approx(-1.2), pytest.approx(0.6))


def test_calibration_refuses_images_of_another_shape():
    with pytest.raises(TinyTrainError, match=r"m: calibration images are \(5, 3, 2, 1\)"):
        calibrate(FloatModel("m", (2, 2, 1), [layer()]), np.zeros((5, 3, 2, 1), np.uint8))


def test_calibration_refuses_values_that_are_no_numbers():
    bad = layer()
    bad.bias = np.array([math.nan, 0], np.float32)
    with pytest.raises(TinyTrainError, match="'c' takes the value nan"):
        calibrate(FloatModel("m", (2, 2, 1), [bad]), np.zeros((1, 2, 2, 1), np.uint8))


class Block(nn.Module):
    """Everything at once: odd kernels, stride 2, a residual add, signed activations."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=stride, padding=1)
        self.expand = nn.Conv2d(6, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, kernel, padding=kernel // 2, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.down = nn.Conv2d(6, 8, kernel, stride=2, padding=kernel // 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.expand(x))
        y = nn.functional.relu6(self.depthwise(y))
        x = x + self.project(y)
        return self.head(self.down(x).mean((2, 3)))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([3, 5, 7]), st.sampled_from([1, 2]), st.integers(8, 13), st.integers(0, 99))
def test_int8_graph_equals_pytorch_in_whole_numbers(kernel, stride, size, seed):
    torch.manual_seed(seed)
    images = np.random.default_rng(seed).integers(0, 256, (4, size, size, 3), np.uint8)
    model = import_module(Block(kernel, stride).eval(), (size, size, 3))
    graph = quantize(model, calibrate(model, images))
    image = quantize_image(images[0])
    ours = Machine(graph).run({"image": image})
    theirs = Oracle(graph, train=False).forward(image)
    for op in graph.ops[:-1]:
        if "w" in op.inputs:
            multiplier = op.inputs["w"].scale.astype(np.float64) * op.inputs["x"].scale / op.outputs["y"].scale
            np.testing.assert_array_equal(op.inputs["m"].data, multiplier.astype(np.float32))
        name = op.outputs["y"].name
        np.testing.assert_array_equal(ours[name], to_hwc(theirs[name]), err_msg=name)
    np.testing.assert_array_equal(ours["head.logits"], theirs["head.logits"].numpy())


def test_int8_demo_network_agrees_with_fp32():
    """On digits, which it has never seen: the hardest case for ranges from 100 other digits."""
    digits = datasets.pad(datasets.load("mnist"), 32)
    order = np.random.default_rng(0).permutation(len(digits))
    model = load_pretrained()
    imported = import_module(model, (32, 32, 1), "demo")
    graph = quantize(imported, calibrate(imported, digits.images[order[:100]]))
    images = digits.images[order[100:300]]
    with torch.no_grad():
        wanted = model(to_batch(images)).numpy()
    got = np.stack([Machine(graph).infer(quantize_image(image)) for image in images])
    assert (got.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    noise = np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean())
    assert noise < 0.1
