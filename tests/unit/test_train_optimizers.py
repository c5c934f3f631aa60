"""Optimizers against torch.optim and hand-computed steps; update memories against `numerics.apply_update`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import residual_network

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.ops.numerics import apply_update
from tinytrain_lite.sparse.scheme import UpdateScheme, preset
from tinytrain_lite.train.int8 import FloatNetwork, Int8Network, Network
from tinytrain_lite.train.optimizers import LARS_TRUST, Optimizer, cosine


def gradients(network: Network, step: int) -> None:
    rng = np.random.default_rng(step)
    for trained in network.trained:
        g = torch.from_numpy(rng.normal(0, 1, trained.value.shape))
        trained.value.grad = g.to(trained.value.dtype)


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0)])
def test_sgd_and_adam_are_those_of_torch(name: str, momentum: float) -> None:
    ours, theirs = (FloatNetwork(residual_network(0), preset("full")) for _ in range(2))
    optimizer = Optimizer(ours, name, momentum)
    if name == "adam":
        reference: torch.optim.Optimizer = torch.optim.Adam(theirs.values, lr=0.02)
    else:
        reference = torch.optim.SGD(theirs.values, lr=0.02, momentum=momentum)
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step(0.02)
        reference.step()
    for a, b in zip(ours.trained, theirs.trained, strict=True):
        np.testing.assert_allclose(a.value.detach(), b.value.detach(), rtol=1e-5, atol=1e-7)


def test_lars_moves_every_tensor_by_the_same_share_of_its_norm() -> None:
    network = FloatNetwork(residual_network(0), preset("full"))
    before = {t.name: t.value.detach().clone() for t in network.trained}
    gradients(network, 0)
    Optimizer(network, "lars").step(2.0)
    for t in network.trained:
        moved = (t.value.detach() - before[t.name]).norm() / before[t.name].norm()
        assert float(moved) == pytest.approx(2.0 * LARS_TRUST, rel=1e-3)


def test_qas_is_the_coefficient_of_the_compiled_step() -> None:
    graph = residual_network(0)
    scheme = UpdateScheme("rows", 10, {"b3.depthwise": 0.25, "b3.expand": 0.5, "head": 1.0})
    network = Int8Network(graph, scheme)
    gradients(network, 1)
    before = {t.name: t.value.detach().clone() for t in network.trained}
    grads = {t.name: t.value.grad.clone() for t in network.trained}
    Optimizer(network, "sgd+qas").step(1e-9)
    ops = {op.name: op for op in network.graph}
    for t in network.trained:
        coefficient = UpdateRule("nearest").coefficient(t.tensor).astype(np.float64)
        if t.name == "b3.depthwise.w":
            coefficient = coefficient[ops["b3.depthwise"].inputs["rows"].data]
        delta = 1e-9 * grads[t.name].numpy() * coefficient.reshape(-1, *[1] * (t.value.ndim - 1))
        want = before[t.name].numpy() - delta
        np.testing.assert_allclose(t.value.detach().numpy(), want, rtol=1e-6, atol=1e-6 * np.abs(delta).max())


def test_float_head_scales_the_head_alone() -> None:
    moved = {}
    for name, scaled in (("sgd", False), ("sgd", True), ("sgd+qas", False)):
        network = Int8Network(residual_network(0), preset("full"))
        before = [t.value.detach().clone() for t in network.trained]
        gradients(network, 1)
        Optimizer(network, name, head_scaled=scaled).step(1e-7)
        pairs = zip(network.trained, before, strict=True)
        moved[name, scaled] = {t.name: (t.value.detach() - b).abs().max().item() for t, b in pairs}
    for name, distance in moved["sgd", True].items():
        assert distance == moved["sgd+qas" if name.startswith("head") else "sgd", False][name]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 0.3, 3.0, 200.0]))
@pytest.mark.parametrize("memory", ["fraction8", "nearest", "truncate"])
def test_update_memories_keep_what_the_device_keeps(memory: str, seed: int, size: float) -> None:
    """Three steps from one state: integers and fractions equal those of the reference of the device."""
    graph = residual_network(seed % 5)
    network = Int8Network(graph, preset("full"))
    optimizer = Optimizer(network, "sgd", memory=memory)
    state = {t.name: (graph.tensors[t.name].data, np.zeros(t.value.shape, np.int8)) for t in network.trained}
    rng = np.random.default_rng(seed)
    for _ in range(3):
        for t in network.trained:
            grad = rng.normal(0, size, t.value.shape).astype(np.float32)
            t.value.grad = torch.from_numpy(grad).to(t.value.dtype)
            param, fraction = state[t.name]
            delta = grad * np.float32(0.5) * (np.float32(256) if memory == "fraction8" else np.float32(1))
            bound = 127 if param.dtype == np.int8 else 2**30 - 1
            noise = np.zeros_like(delta)
            new, kept = apply_update(param, fraction, delta, memory, bound, noise)
            state[t.name] = (new, fraction if kept is None else kept)
        optimizer.step(0.5)
    ours = network.integers()
    for t in network.trained:
        param, fraction = state[t.name]
        np.testing.assert_array_equal(ours[t.name], param)
        np.testing.assert_array_equal((t.value.detach().numpy() - param) * 256, fraction)


def test_stochastic_rounding_is_unbiased_and_whole() -> None:
    network = Int8Network(residual_network(0), preset("full"))
    head = network.trained[-2]
    start = head.value.detach().clone()
    optimizer = Optimizer(network, "sgd", memory="stochastic", seed=3)
    for _ in range(400):
        for t in network.trained:
            t.value.grad = torch.full_like(t.value, 0.01)
        optimizer.step(1.0)
    inner = start.abs() < 100  # saturation is another matter
    moved = (start - head.value.detach())[inner]
    assert torch.equal(moved, moved.round())
    expected, deviation = 400 * 0.01, (400 * 0.01 * 0.99 / int(inner.sum())) ** 0.5
    assert abs(float(moved.mean()) - expected) < 5 * deviation


def test_saturation() -> None:
    network = Int8Network(residual_network(0), preset("full"))
    for t in network.trained:
        t.value.grad = torch.full_like(t.value, 1e12)
    Optimizer(network, "sgd").step(1.0)
    for name, q in network.integers().items():
        assert np.all(q == (-127 if q.dtype == np.int8 else -(2**30 - 1))), name


def test_schedule() -> None:
    """Four warm-up steps of a tenth each, then half a cosine: full at its start, half in the middle."""
    rates = [cosine(0.4, step, 14, 4) for step in range(14)]
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[9] == pytest.approx(0.2)
    assert rates[13] == pytest.approx(0.2 * (1 - np.cos(np.pi / 10)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rmsprop"}, "optimizer 'rmsprop' is unknown"),
        ({"name": "sgd", "memory": "int4"}, "memory 'int4' is unknown"),
        ({"name": "adam", "momentum": 0.9}, "momentum 0.9 with adam"),
        ({"name": "sgd", "momentum": 1.0}, "momentum 1.0"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, message: str) -> None:
    network = Int8Network(residual_network(0), preset("last"))
    with pytest.raises(UnsupportedError, match=message):
        Optimizer(network, **arguments)
