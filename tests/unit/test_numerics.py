"""The integer contract piece by piece, against hand-computed values, float64 and exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import images, residual_network

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.calibrate import calibrate_gradients
from tinytrain_lite.compiler import training_graph
from tinytrain_lite.ops.numerics import (
    F32,
    PEAK_DECAY,
    DfpState,
    apply_update,
    exp32,
    log32,
    random_unit,
    requantize,
    softmax_cross_entropy,
)
from tinytrain_lite.reference import Machine
from tinytrain_lite.sparse.scheme import preset

ULP = 2.0**-23
NO_NOISE = np.zeros(1, F32)


# ---- forward ------------------------------------------------------------------------------------------
def test_requantize_rounds_half_to_even_then_clamps() -> None:
    value = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0, 117.4, 117.6], F32)
    q, inside = requantize(value, 10, (-128, 127))
    assert q.tolist() == [10, 12, 12, 10, 8, 127, -128, 127, 127]
    assert inside.tolist() == [True] * 5 + [False, False, True, False]


@given(st.floats(-87, 0, width=32))
def test_exp_is_within_two_ulp(x: float) -> None:
    assert abs(float(exp32(F32(x))) / math.exp(x) - 1) < 2 * ULP * (1 + abs(x))  # x * log2(e) is rounded once


@given(st.floats(1, 1000, width=32))
def test_log_is_close_to_float64(x: float) -> None:
    assert abs(float(log32(F32(x))) - math.log(x)) < 4 * ULP * max(1.0, math.log(x))


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12), st.integers(0, 11))
def test_softmax_cross_entropy_agrees_with_pytorch(logits: list[float], label: int) -> None:
    label %= len(logits)
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(x[None], torch.tensor([label]))
    loss.backward()
    p, ours = softmax_cross_entropy(np.array(logits, F32), label)
    onehot = np.eye(len(logits))[label]
    assert abs(float(ours) - float(loss.detach())) < 1e-5
    np.testing.assert_allclose(p - onehot, x.grad.numpy(), atol=2e-6)


# ---- dynamic fixed point ------------------------------------------------------------------------------
@given(st.floats(2.0**-30, 2.0**30, width=32), st.sampled_from([255, 2055, 8224, 16383, 32767]))
def test_exponent_leaves_between_one_and_two_bits_of_headroom(peak: float, limit: int) -> None:
    mantissa = Fraction(peak) / Fraction(2) ** DfpState(F32(peak), limit).exponent()
    assert mantissa <= Fraction(limit + 1, 2)
    assert mantissa >= Fraction(limit + 1, 8)


def test_store_saturates_and_remembers_the_unsaturated_peak() -> None:
    state = DfpState(F32(1.0), 32767)
    exponent = state.exponent()
    assert exponent == -13  # 1.0 is just not below 2^0: 2^1 * 2^13 fills half of 2^15
    stored = state.store(np.array([0.25, -100.0, 100.0], F32))
    assert stored.mantissa.tolist() == [2048, -32767, 32767]
    assert state.peak == 100.0
    state.store(np.zeros(3, F32))
    assert state.peak == F32(100.0) * PEAK_DECAY


# ---- updates --------------------------------------------------------------------------------------------
def step(param: int, fraction: int, delta: float, rounding: str = "fraction8") -> tuple[int, int]:
    p, f = apply_update(
        np.array([param], np.int8), np.array([fraction], np.int8), np.array([delta], F32), rounding, 127, NO_NOISE
    )
    return int(p[0]), 0 if f is None else int(f[0])


@pytest.mark.parametrize(
    ("before", "delta", "after"),
    [
        ((5, 0), 256.0, (4, 0)),  # one LSB down
        ((5, 0), 100.0, (5, -100)),  # below half an LSB: remembered
        ((5, -100), 100.0, (4, 56)),  # and carried with the next
        ((5, 0), -128.0, (6, -128)),  # exactly half rounds up
        ((127, 0), -256.0, (127, 0)),  # saturates, never wraps
        ((-127, -128), 512.0, (-127, 0)),
        ((127, 0), 1e30, (-127, 0)),
    ],
)
def test_fraction8_by_hand(before: tuple[int, int], delta: float, after: tuple[int, int]) -> None:
    assert step(*before, delta) == after


@given(st.integers(-120, 120), st.lists(st.integers(-200, 200), max_size=30))
def test_fraction8_adds_up_exactly(start: int, deltas: list[int]) -> None:
    """Weight and fraction together are a 16-bit fixed-point number: nothing is lost until it saturates."""
    param, fraction, exact = start, 0, start * 256
    for d in deltas:
        param, fraction = step(param, fraction, float(d))
        exact -= d
        if abs(exact) >= 127 * 256 - 128:
            return
        assert param * 256 + fraction == exact


def test_truncation_decays_weights_and_nearest_forgets_small_steps() -> None:
    """The two defects that `fraction8` and `stochastic` avoid."""
    assert step(50, 0, 0.3, "nearest") == (50, 0)
    assert step(50, 0, 1e-6, "truncate") == (50, 0)  # 50 - 1e-6 is 50.0 in float32
    assert step(50, 0, 0.01, "truncate") == (49, 0)
    assert step(-50, 0, -0.01, "truncate") == (-49, 0)


def test_stochastic_rounding_is_unbiased() -> None:
    count, delta = 200_000, 0.3
    noise = random_unit(np.arange(count), 1234, 7)
    moved, _ = apply_update(np.zeros(count, np.int8), None, np.full(count, delta, F32), "stochastic", 127, noise)
    standard_error = math.sqrt(delta * (1 - delta) / count)
    assert abs(-moved.mean() - delta) < 5 * standard_error


def test_random_numbers_are_uniform_and_differ_by_seed_and_step() -> None:
    from scipy.stats import kstest

    draws = [random_unit(np.arange(20_000), seed, step) for seed, step in ((0, 0), (1, 0), (0, 1))]
    for d in draws:
        assert kstest(d, "uniform").pvalue > 1e-3
        assert d.min() >= 0 and d.max() < 1
    for a, b in ((0, 1), (0, 2), (1, 2)):
        # seeds one apart shift the counter by one: compare element-wise, and the shifted sequence by its correlation
        assert abs(np.corrcoef(draws[a], draws[b])[0, 1]) < 0.05


def test_random_number_by_hand() -> None:
    """The finalizer written out in plain Python integers."""

    def scalar(index: int, seed: int, step: int) -> float:
        x = (index + seed) & 0xFFFFFFFF
        x ^= (step * 0x9E3779B1) & 0xFFFFFFFF
        x ^= x >> 16
        x = (x * 0x7FEB352D) & 0xFFFFFFFF
        x ^= x >> 15
        x = (x * 0x846CA68B) & 0xFFFFFFFF
        x ^= x >> 16
        return (x >> 8) / 2**24

    for index, seed, at in ((0, 0, 0), (5, 0xDEADBEEF, 17), (123456, 0xFFFFFFFF, 2**31)):
        assert random_unit(np.array([index]), seed, at)[0] == scalar(index, seed, at)


# ---- whole steps ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rounding", ["fraction8", "stochastic", "nearest"])
def test_weights_do_not_drift_when_the_gradient_is_zero(rounding: str) -> None:
    graph = residual_network(0)
    x, y = images(graph, 2)
    train = calibrate_gradients(training_graph(graph, preset("full"), UpdateRule(rounding)), x, y)
    machine = Machine(train, learning_rate=0.0)
    before = {name: p.copy() for name, p in machine.params.items()}
    for i in range(20):
        machine.train(x[i % 2], int(y[i % 2]))
    for name, p in machine.params.items():
        np.testing.assert_array_equal(p, before[name], err_msg=name)


def test_updates_below_half_an_lsb_still_accumulate() -> None:
    """The same small gradient step after step: no single one moves a weight, forty do."""
    graph = residual_network(0)
    x, y = images(graph, 1)
    train = calibrate_gradients(training_graph(graph, preset("last")), x, y)
    machine = Machine(train)
    start = machine.params["head.w"].copy()
    machine.learning_rate = F32(1.0)
    machine.train(x[0], int(y[0]))
    largest = np.abs((machine.params["head.w"].astype(float) - start) + machine.params["head.w.fraction"] / 256).max()
    machine.reset()
    machine.learning_rate = F32(0.1 / largest)  # a tenth of an LSB
    machine.train(x[0], int(y[0]))
    np.testing.assert_array_equal(machine.params["head.w"], start)
    for _ in range(40):
        machine.train(x[0], int(y[0]))
    assert np.abs(machine.params["head.w"].astype(int) - start).max() >= 2


def test_a_weight_saturates_at_127() -> None:
    graph = residual_network(0)
    x, y = images(graph, 1)
    machine = Machine(calibrate_gradients(training_graph(graph, preset("last")), x, y), learning_rate=1e6)
    machine.train(x[0], int(y[0]))
    assert set(np.unique(np.abs(machine.params["head.w"].astype(int)))) & {127}
    assert np.abs(machine.params["head.w"].astype(int)).max() == 127
