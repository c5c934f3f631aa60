"""The torch module of an int8 graph: bits of the forward pass, gradients, slices, frozen prefix, defects."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RandomNetwork, images, residual_network
from oracle import Oracle

from tinytrain_lite.builder import Builder
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.reference import Machine
from tinytrain_lite.sparse.scheme import UpdateScheme, preset
from tinytrain_lite.train.int8 import Defects, FloatNetwork, Int8Network, Network

SHARED = Path(os.environ.get("TINYTRAIN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
SLICES = UpdateScheme("slices", 9, {"b3.expand": 0.5, "b3.depthwise": 0.25, "b2.project": 0.25, "head": 1.0})


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def start(network: Network, x: np.ndarray) -> dict[str, torch.Tensor]:
    return network.evaluate({network.graph.image.name: nchw(x)}, [t.name for t in network.frontier])


def assert_same_activations(graph: Graph, x: np.ndarray) -> None:
    """Every tensor of the mini-batch equals the NumPy definition of the integer contract."""
    names = [op.outputs["y"].name for op in graph]
    ours = Int8Network(graph, preset("full")).evaluate({graph.image.name: nchw(x)}, names)
    for i, image in enumerate(x):
        reference = Machine(graph).run({graph.image.name: image})
        for name in names:
            want = reference[name]
            got = ours[name][i].numpy()
            np.testing.assert_array_equal(got if got.ndim == 1 else got.transpose(1, 2, 0), want, err_msg=name)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_forward_equals_the_contract_on_random_networks(seed: int) -> None:
    graph = residual_network(seed)
    assert_same_activations(graph, images(graph, 3, seed)[0])


@pytest.mark.parametrize("model", ["mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3"])
def test_forward_equals_the_contract_on_the_papers_models(model: str) -> None:
    path = SHARED / "models" / f"{model}.pkl"
    if not path.exists():
        pytest.skip(f"{path} is missing: the paper's checkpoints do not ship with the project")
    graph = import_checkpoint(path)
    rng = np.random.default_rng(0)
    noise = rng.integers(-128, 128, (1, *graph.image.shape))
    ramp = np.broadcast_to(np.linspace(-128, 127, graph.image.shape[1])[:, None], noise.shape)
    assert_same_activations(graph, np.concatenate([noise, ramp]).astype(np.int8))


def wide_layer() -> Graph:
    """One pixel, 1,200 equal products: 1200 * 127 * 127 + 1 = 19,354,801 is odd and above 2^24."""
    b = Builder("wide")
    x = b.input("image", (1, 1, 1200), 1.0, 0)
    w = np.full((2, 1, 1, 1200), 127, np.int8)
    y = b.conv2d(x, w, np.ones(2), np.array([1, 0], np.int32), stride=1, pad=(0, 0, 0, 0), out_scale=2.0**18,
                 out_zero=0, name="wide")  # fmt: skip
    b.linear(y, np.array([[1, 0], [0, 1]], np.int8), np.ones(2), np.zeros(2, np.int32), name="head")
    return b.verify()


def test_sums_beyond_float32_are_still_exact() -> None:
    network = Int8Network(wide_layer(), preset("full"))
    wide = network.graph.ops[0]
    acc = network._accumulate(wide, torch.full((1, 1200, 1, 1), 127.0))
    assert acc.flatten().tolist() == [float(np.float32(19_354_801)), 19_354_800.0]
    assert not network._fits_float32(wide, network._weight(wide), network._bias(wide))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_mean_of_those_of_an_independent_implementation(seed: int) -> None:
    graph = residual_network(seed)
    x, y = images(graph, 3, seed)
    oracle = Oracle(graph)
    sum(oracle.loss(image, int(label)) for image, label in zip(x, y, strict=True)).backward()  # type: ignore[union-attr]
    network = Int8Network(graph, preset("full"))
    torch.nn.functional.cross_entropy(network(start(network, x)), torch.from_numpy(y)).backward()
    for trained in network.trained:
        want = oracle.params[trained.name].grad.numpy() / len(x)
        np.testing.assert_allclose(trained.value.grad.numpy(), want, atol=2e-6 * np.abs(want).max(), rtol=1e-4)


def test_a_slice_gets_the_same_gradient_as_in_the_whole_weight() -> None:
    graph = residual_network(4)
    x, y = images(graph, 4, 4)
    gradients = []
    for scheme in (preset("full"), SLICES):
        network = Int8Network(graph, scheme)
        torch.nn.functional.cross_entropy(network(start(network, x)), torch.from_numpy(y)).backward()
        gradients.append({t.name: t.value.grad.numpy() for t in network.trained})
    full, sliced = gradients
    ops = {op.name: op for op in network.graph}
    kept = {
        name: ops[name].inputs["perm"].data[: ops[name].inputs["w"].shape[3]] for name in ("b3.expand", "b2.project")
    }
    for name, channels in kept.items():
        np.testing.assert_allclose(sliced[f"{name}.w.trained"], full[f"{name}.w"][..., channels], rtol=1e-4, atol=1e-9)
    rows = ops["b3.depthwise"].inputs["rows"].data
    assert len(rows) == round(0.25 * 11)
    np.testing.assert_allclose(sliced["b3.depthwise.w"], full["b3.depthwise.w"][rows], rtol=1e-4, atol=1e-9)


def test_changed_slices_reach_the_forward_pass() -> None:
    """After an update of slices and rows, the module and a device that holds the same integers agree."""
    graph = residual_network(4)
    x, _ = images(graph, 2, 4)
    network = Int8Network(graph, SLICES)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for trained in network.trained:
            trained.value.add_(torch.from_numpy(rng.integers(-9, 10, trained.value.shape)) + 0.3)
            trained.value.clamp_(-trained.bound, trained.bound)
    logits = network(start(network, x)).detach().numpy()
    device = Machine(network.graph)
    before = device.infer(x[0])
    device.params |= network.integers()
    for i in range(2):
        np.testing.assert_array_equal(logits[i], device.infer(x[i]))
    assert not np.array_equal(before, logits[0])


def test_only_what_training_can_change_is_run() -> None:
    graph = residual_network(1)
    network = Int8Network(graph, UpdateScheme("one", 0, {"b3.expand": 1.0}))
    assert [op.name for op in network.live][0] == "b3.expand"
    assert {t.name for t in network.frontier} == {"b2.add.y"}, "the residual branch is read from it as well"
    middle = Int8Network(graph, UpdateScheme("middle", 0, {"b3.depthwise": 1.0}))
    assert {t.name for t in middle.frontier} == {"b3.expand.y", "b2.add.y"}


def test_frontier_can_be_computed_from_an_earlier_frontier() -> None:
    graph = residual_network(1)
    x, _ = images(graph, 2)
    early = Int8Network(graph, preset("full"))
    late = Int8Network(graph, preset("last"))
    known = early.evaluate({"image": nchw(x)}, ["b1.project.y"])
    again = late.evaluate(known, ["pool.y"])
    np.testing.assert_array_equal(again["pool.y"], start(late, x)["pool.y"])


def test_float_twin_is_the_network_in_real_units() -> None:
    """A network none of whose clamps bites: the twin's logits are the exact real-valued ones."""
    net = RandomNetwork(0)
    image = net.b.input("image", (4, 4, 3), 1 / 127.5, 5)
    y = net.conv(image, 6, 3, 1, "stem")
    graph = net.head(y, 4)
    x = images(graph, 2)[0] // 8
    stem, _, head = graph.ops
    w = stem.inputs["w"].data * stem.inputs["w"].scale[:, None, None, None].astype(np.float64)
    b = stem.inputs["b"].data * stem.inputs["b"].scale.astype(np.float64)
    padded = np.pad((x - 5.0) / 127.5, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((2, 6))
    for i in range(4):
        for j in range(4):
            out += np.einsum("nhwc,ohwc->no", padded[:, i : i + 3, j : j + 3], w) + b
    hw = head.inputs["w"].data * head.inputs["w"].scale[:, None].astype(np.float64)
    for image in x:
        values = Machine(graph).run({"image": image})
        assert max(np.abs(values[f"{op.name}.y"].astype(int)).max() for op in graph.ops[:2]) < 127, "a clamp bites"
    want = out / 16 @ hw.T + head.inputs["b"].data * head.inputs["b"].scale.astype(np.float64)
    network = FloatNetwork(graph, preset("full"))
    np.testing.assert_allclose(network(start(network, x)).detach().numpy(), want, rtol=1e-4, atol=1e-5)


def test_float_gradients_are_the_int8_ones_over_the_scale() -> None:
    """dL/dq = s dL/dw, exactly so only where nothing rounds: compared on the head, whose input is the same."""
    graph = residual_network(2)
    x, y = images(graph, 4)
    gradients = []
    for kind in (Int8Network, FloatNetwork):
        network = kind(graph, preset("last"))
        features = start(Int8Network(graph, preset("last")), x)
        torch.nn.functional.cross_entropy(network(features), torch.from_numpy(y)).backward()
        gradients.append({t.name: t.value.grad.numpy() for t in network.trained})
    for name in ("head.w", "head.b"):
        scale = graph.tensors[name].scale.reshape(-1, *[1] * (gradients[0][name].ndim - 1))
        np.testing.assert_allclose(gradients[0][name] / scale, gradients[1][name], rtol=1e-3, atol=1e-5)


def skip_network() -> Graph:
    """head(pool(add(x1, conv(x1)))), x1 = stem(image): one residual, 1x1 pixel, unit scales, nothing clamps."""
    b = Builder("skip")
    one = dict(stride=1, pad=(0, 0, 0, 0), out_scale=1.0, out_zero=0)
    x = b.input("image", (1, 1, 1), 1.0, 2)
    w1 = np.ones((1, 1, 1, 1), np.int8)
    x1 = b.conv2d(x, w1, np.ones(1), np.zeros(1, np.int32), name="stem", **one)  # type: ignore[arg-type]
    y = b.conv2d(x1, w1 * 2, np.ones(1), np.zeros(1, np.int32), name="conv", **one)  # type: ignore[arg-type]
    y = b.add(x1, y, out_scale=1.0, out_zero=0, name="add")
    y = b.avg_pool(y, out_scale=1.0, out_zero=0, name="pool")
    b.linear(y, np.array([[1], [0]], np.int8), np.ones(2), np.zeros(2, np.int32), name="head")
    return b.verify()


@pytest.mark.parametrize(
    ("defects", "factor"),
    [
        (Defects(), (1 + 2) * 5),  # by the skip and by the convolution's weight 2, times x - z = 7 - 2
        (Defects(drop_skip=True), 2 * 5),
        (Defects(ignore_zero_point=True), (1 + 2) * 7),
        (Defects(True, True), 2 * 7),
    ],
)
def test_defects_are_what_they_say(defects: Defects, factor: int) -> None:
    network = Int8Network(skip_network(), preset("full"), defects)
    image = np.full((1, 1, 1, 1), 7, np.int8)
    logits = network(start(network, image))
    assert logits.tolist() == [[15.0, 0.0]], "a defect of the gradient leaves the forward pass alone"
    logits[0, 0].backward()
    gradient = {t.name: t.value.grad for t in network.trained}
    assert float(gradient["stem.w"].flatten()) == factor


def test_a_scheme_that_trains_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="trains nothing"):
        Int8Network(residual_network(0), UpdateScheme("none", 0))
