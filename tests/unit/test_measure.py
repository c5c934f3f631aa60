"""Measuring: what is counted, what is planned, what is refused, and that a record survives its file."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import residual_network
from rich.console import Console

from tinytrain_lite.compiler import Program, compile_program
from tinytrain_lite.literature import figures
from tinytrain_lite.measure import host_accuracy, measure, placements, predict_sram, sample_order
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.record import Measurement, MeasurementError, load, save
from tinytrain_lite.sparse.scheme import preset
from tinytrain_lite.tables import run_table
from tinytrain_lite.target.base import TrainResult
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.train.datasets import Dataset, Split
from tinytrain_lite.train.verdict import verdict

STEPS, RATE = 12, 0.05


def dataset(shape: tuple[int, ...], count: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
    return Dataset("noise", images, rng.integers(0, 5, count), tuple("abcde"))


@pytest.fixture(scope="module")
def data() -> Split:
    shape = residual_network(3).image.shape
    return Split(*(dataset(shape, n, seed) for seed, n in enumerate((5, 6, 7))))


def compiled(scheme: str, data: Split) -> Program:
    images = quantize_image(data.train.images)
    return compile_program(residual_network(3), preset(scheme), images, data.train.labels)


@pytest.fixture(scope="module")
def on_device(data: Split) -> Measurement:
    return measure(compiled("last-3", data), data, rate=RATE, steps=STEPS)


@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 5))
def test_order_visits_every_image_once_an_epoch(images: int, steps: int, seed: int) -> None:
    order = sample_order(images, steps, seed)
    assert len(order) == steps
    for start in range(0, steps, images):
        epoch = order[start : start + images]
        assert len(set(epoch.tolist())) == len(epoch) and set(epoch.tolist()) <= set(range(images))


def test_device_and_host_runs_agree(on_device: Measurement, data: Split) -> None:
    here = measure(compiled("last-3", data), data, rate=RATE, steps=STEPS, target="host")
    results = ("status", "losses", "curve", "accuracy_before", "accuracy_after")
    for name in (*results, "predicted", "arena", "live", "lower_bound", "ir"):
        assert getattr(here, name) == getattr(on_device, name), name
    program = compiled("last-3", data)
    assert host_accuracy(program, data, rate=RATE, steps=STEPS) == on_device.accuracy_after
    assert here.train_instructions is None and here.flash is None and here.sram.runtime is None


def test_the_plan_is_what_the_device_uses(on_device: Measurement) -> None:
    got, planned = on_device.sram, on_device.predicted
    assert (got.parameters, got.state, got.arena) == (planned.parameters, planned.state, planned.arena)
    assert on_device.arena_written is not None
    assert got.arena - 4 < on_device.arena_written <= got.arena  # the last word may be padding
    assert on_device.live and max(on_device.live) <= on_device.lower_bound <= got.arena


def test_every_instruction_of_the_step_belongs_to_an_op(on_device: Measurement) -> None:
    """All but the handful between reading the cycle counter and the first op."""
    assert on_device.train_instructions is not None
    outside = on_device.train_instructions - sum(row.instructions for row in on_device.ops)
    assert 0 <= outside < 50
    assert all(row.instructions > row.macs / 4 for row in on_device.ops)  # a core with two 16-bit MACs an instruction
    assert {row.phase for row in on_device.ops} == {"forward", "backward", "update"}


def test_parameters_predicted_by_hand(data: Split) -> None:
    """Scheme last: int8 weights, int32 biases, and one byte of fraction for each, on word boundaries."""
    program = compiled("last", data)
    classes, features = 5, program.train.tensors["head.w"].shape[1]
    words = [classes * features, classes * features, 4 * classes, classes]
    assert predict_sram(program).parameters == sum(-(-n // 4) * 4 for n in words)


def test_placements_cover_the_plan(data: Split) -> None:
    plan = compiled("last-3", data).train_plan
    rows = placements(plan)
    assert max(row.offset + row.size for row in rows) == plan.arena_bytes
    for i, live in enumerate(plan.live):
        assert sum(row.size for row in rows if row.first <= i <= row.last) == live


def test_a_device_that_computes_something_else_is_caught(data: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, calls = UnicornTarget.train, []

    def wrong(self: UnicornTarget, image: np.ndarray, label: int) -> TrainResult:
        calls.append(label)
        result = honest(self, image, label)
        return result._replace(loss=result.loss * 1.0001) if len(calls) == 3 else result

    monkeypatch.setattr(UnicornTarget, "train", wrong)
    with pytest.raises(MeasurementError, match="step 3"):
        measure(compiled("last", data), data, rate=RATE, steps=5)


def test_a_parameter_that_differs_is_caught(data: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = UnicornTarget.read_params

    def wrong(self: UnicornTarget) -> dict[str, np.ndarray]:
        params = honest(self)
        params["head.b"] = params["head.b"] ^ np.uint8(1)
        return params

    monkeypatch.setattr(UnicornTarget, "read_params", wrong)
    with pytest.raises(MeasurementError, match="head.b"):
        measure(compiled("last", data), data, rate=RATE, steps=2)


def test_a_run_that_comes_to_nothing_says_so(data: Split) -> None:
    """At such a rate every logit of the head saturates: int8 cannot overflow, but all images get one class."""
    wild = measure(compiled("last-3", data), data, rate=1e20, steps=STEPS, target="host")
    assert wild.status == "dead"
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(run_table(wild))
    assert "every held-out image is given the same class; lower the learning rate" in console.export_text()


@pytest.mark.parametrize(("losses", "predictions", "expected"), [
    ([1.0, float("nan")], [([0, 1], [0, 1])], "diverged"),
    ([1.0, float("inf")], [], "diverged"),
    ([1.0], [], "ok"),
    ([1.0], [([2, 2], [0, 1])], "dead"),
    ([1.0], [([2, 2], [0, 1]), ([2, 1], [0, 1])], "ok"),
    ([1.0], [([2, 2], [2, 2])], "ok"),  # all images are of one class: nothing can be said
])  # fmt: skip
def test_verdict(losses: list[float], predictions: list[tuple[list[int], list[int]]], expected: str) -> None:
    assert verdict(losses, [(np.array(a), np.array(b)) for a, b in predictions]) == expected


def test_unknown_target(data: Split) -> None:
    with pytest.raises(MeasurementError, match="'moon'.*unicorn"):
        measure(compiled("last", data), data, rate=RATE, steps=1, target="moon")


def test_record_round_trip(on_device: Measurement, tmp_path: Path) -> None:
    other = dataclasses.replace(on_device, scheme="other", flash=None)
    save([on_device, other], tmp_path / "deep" / "record.json")
    assert load(tmp_path / "deep" / "record.json") == [on_device, other]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["record.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 99, "measurements": []}',
                                  '{"format": 2, "measurements": [{"model": "m"}]}'])  # fmt: skip
def test_a_bad_record_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(MeasurementError, match="record.json"):
        load(path)
    with pytest.raises(MeasurementError, match="missing.json"):
        load(tmp_path / "missing.json")


def test_published_figures() -> None:
    """Paper, figure of peak memory: 3650 / 560 / 173 KB for MCUNet-5FPS; 546 ms a step."""
    rows = figures("mcunet-5fps")
    assert [f.sram_bytes for f in rows if f.sram_bytes][:3] == [3_737_600, 573_440, 177_152]
    assert [f.milliseconds for f in rows if f.milliseconds] == [546, 5607]
    assert figures("somebody's net") == ()
