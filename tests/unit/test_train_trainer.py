"""One call for fp32, int8 and device: that they learn, agree, stop when they blow up, and keep weights in place."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import residual_network

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.errors import TinyTrainError, UnsupportedError
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.sparse.presets import published
from tinytrain_lite.sparse.scheme import preset
from tinytrain_lite.train.datasets import Dataset, Split
from tinytrain_lite.train.device import DeviceLearner
from tinytrain_lite.train.diagnostics import weight_gradient_ratios
from tinytrain_lite.train.features import frontier_features
from tinytrain_lite.train.int8 import Defects, FloatNetwork, Int8Network
from tinytrain_lite.train.trainer import Recipe, Record, best, make_learner, mean_accuracy, train, train_rates

SHARED = Path(os.environ.get("TINYTRAIN_SHARED", Path(__file__).resolve().parents[3] / "shared"))
GRAPH = residual_network(0)


def stripes(count: int, seed: int) -> Dataset:
    """Five classes of 12x12 noise, each brighter in columns of its own: easy, but not for an untrained head."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 5
    images = rng.integers(0, 80, (count, 12, 12, 3))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 3] += 150
    return Dataset("stripes", images.astype(np.uint8), labels.astype(np.int64), tuple("abcde"))


DATA = Split(stripes(40, 0), stripes(30, 1), stripes(50, 2))
DEVICE = Recipe("device", "sgd+qas", 0.02, epochs=2, batch=1, memory="fraction8")
INT8 = replace(DEVICE, mode="int8")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("fp32", "sgd", 0.05, epochs=6, batch=4, momentum=0.5, warmup=0.1),
        Recipe("int8", "sgd+qas", 0.05, epochs=6, batch=4, momentum=0.5, warmup=0.1),
        Recipe("int8", "adam", 4.0, epochs=6, batch=4),
        replace(DEVICE, epochs=6),
    ],
    ids=lambda r: f"{r.mode}-{r.optimizer}",
)
def test_every_mode_learns_and_reports_in_json(recipe: Recipe) -> None:
    record = train(GRAPH, preset("full"), DATA, replace(recipe, curve=True))
    assert record.status == "ok" and len(record.losses) == len(record.accuracy["test"]) == 6
    assert record.losses[-1] < 0.6 * record.losses[0]
    assert record.final("test") > 0.5, "chance is 0.2"
    plain = json.loads(json.dumps(record.to_json()))
    assert plain["recipe"]["mode"] == recipe.mode and plain["accuracy"]["test"][-1] == record.final("test")


def test_simulation_at_batch_one_follows_the_device() -> None:
    """Same order, rates and memory: the only difference is 15-bit gradients, so losses agree to a few per mille."""
    device, simulated = (train(GRAPH, preset("full"), DATA, recipe) for recipe in (DEVICE, INT8))
    np.testing.assert_allclose(simulated.losses, device.losses, rtol=0.02)
    learners = [make_learner(GRAPH, preset("full"), DATA, recipe) for recipe in (DEVICE, INT8)]
    losses = [learner.step(np.array([3]), 0.02) for learner in learners]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, ours in learners[1].network.integers().items():  # type: ignore[attr-defined]
        theirs = learners[0].integers()[name]  # type: ignore[attr-defined]
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1, name


def test_a_run_depends_on_its_seed_and_on_nothing_else() -> None:
    first, again, other = (train(GRAPH, preset("full"), DATA, replace(INT8, seed=seed, batch=4)) for seed in (1, 1, 2))
    assert first.losses == again.losses and first.accuracy == again.accuracy
    assert first.losses != other.losses


def test_a_diverging_run_says_so() -> None:
    record = train(GRAPH, preset("full"), DATA, Recipe("fp32", "sgd", 1e38, epochs=3))
    assert record.status == "diverged" and not math.isfinite(record.losses[-1])
    assert len(record.losses) < 3 and math.isnan(record.final("test"))
    assert json.loads(json.dumps(record.to_json(), allow_nan=False))["losses"][-1] is None


def test_a_run_that_gives_every_image_one_class_is_dead() -> None:
    record = train(GRAPH, preset("full"), DATA, replace(INT8, learning_rate=1e6, batch=4))
    assert record.status == "dead" and record.accuracy["test"] == [0.2] and math.isnan(record.final("test"))


def record(accuracy: float, rate: float = 0.1, status: str = "ok") -> Record:
    return Record(Recipe(learning_rate=rate), "s", status, [1.0], {"validation": [accuracy], "test": [accuracy]})


def test_runs_that_are_not_sound_are_neither_chosen_nor_averaged() -> None:
    records = [record(0.5, 0.1), record(0.7, 0.3), record(0.7, 0.2), record(0.9, 1.0, "dead")]
    assert best(records).recipe.learning_rate == 0.2
    mean, spread, lost = mean_accuracy(records)
    assert (mean, lost) == (pytest.approx(1.9 / 3), 1)
    assert spread == pytest.approx(math.sqrt(((1.9 / 3 - 0.5) ** 2 + 2 * (0.7 - 1.9 / 3) ** 2) / 2))
    with pytest.raises(TinyTrainError, match="1 dead, 2 diverged"):
        best([record(0.1, 1, "dead"), record(0.1, 2, "diverged")])


def test_rates_run_through_joblib() -> None:
    records = train_rates(GRAPH, preset("last"), DATA, replace(INT8, epochs=1, batch=8), [0.01, 0.1], jobs=2)
    alone = train(GRAPH, preset("last"), DATA, replace(INT8, epochs=1, batch=8, learning_rate=0.1))
    assert [r.recipe.learning_rate for r in records] == [0.01, 0.1]
    assert records[1].losses == alone.losses and records[1].accuracy == alone.accuracy


def test_cached_features_are_those_of_the_network_and_of_nothing_else(tmp_path: Path) -> None:
    network = Int8Network(GRAPH, preset("last"))
    fresh = frontier_features(network, DATA.train)
    frontier_features(network, DATA.train, tmp_path)
    (file,) = tmp_path.glob("*.npy")
    stamp = file.stat().st_mtime_ns
    cached = frontier_features(Int8Network(GRAPH, preset("last")), DATA.train, tmp_path)
    np.testing.assert_array_equal(cached["pool.y"], fresh["pool.y"])
    assert file.stat().st_mtime_ns == stamp, "computed a second time"
    changed = residual_network(0)
    changed.ops[0].inputs["w"].data = -changed.ops[0].inputs["w"].data  # type: ignore[operator]
    for other, data in (
        (FloatNetwork(GRAPH, preset("last")), DATA.train),
        (Int8Network(changed, preset("last")), DATA.train),
        (Int8Network(GRAPH, preset("last")), DATA.test),
    ):
        got = frontier_features(other, data, tmp_path)["pool.y"]
        np.testing.assert_array_equal(got, frontier_features(other, data)["pool.y"])
    assert len(list(tmp_path.glob("*.npy"))) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "fp16"}, "choose one of fp32, int8, device"),
        ({"mode": "fp32"}, "no quantization scales"),
        ({"mode": "device"}, "one image at a time"),
        ({"mode": "device", "batch": 1}, "memory must be one of"),
        ({"mode": "device", "batch": 1, "memory": "fraction8", "defects": Defects(True)}, "nor defects"),
        ({"learning_rate": 0.0}, "not positive"),
        ({"epochs": 0}, "at least one epoch"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Recipe(**fields)


def test_qas_restores_the_ratio_of_weight_to_gradient() -> None:
    """On the head, whose input the twin sees almost alike: int8 is off by s^-2, int8+QAS agrees with fp32."""
    ratios = weight_gradient_ratios(GRAPH, DATA.train)
    scale = GRAPH.tensors["head.w"].scale
    off = ratios["int8"]["head.w"] - ratios["fp32"]["head.w"]
    assert off == pytest.approx(-2 * np.log10(np.median(scale)), abs=0.3)
    for name in ("head.w", "head.b"):
        assert ratios["int8+QAS"][name] == pytest.approx(ratios["fp32"][name], abs=0.3)


@pytest.mark.parametrize(("rounding", "drifts"), [("fraction8", False), ("stochastic", False), ("truncate", True)])
def test_twenty_steps_on_constant_images_keep_the_weights_in_place(rounding: str, drifts: bool) -> None:
    """MCUNet-5FPS, 49 KB scheme. Rounding towards zero, as published, shrinks the weights whatever the rate."""
    path = SHARED / "models" / "mcunet-5fps.pkl"
    if not path.exists():
        pytest.skip(f"{path} is missing: the paper's checkpoints do not ship with the project")
    graph = import_checkpoint(path, 10)
    head = graph.ops[-1].inputs["w"]  # not zero, or no gradient would reach the layers before it
    head.data = np.random.default_rng(0).integers(-10, 11, head.shape).astype(np.int8)
    grey = Dataset("grey", np.full((20, *graph.image.shape), 128, np.uint8), np.arange(20) % 10, tuple("0123456789"))
    learner = DeviceLearner(graph, published("mcunet-5fps", "49kb"), Split(grey, grey, grey), UpdateRule(rounding))
    before = learner.integers()
    weights = [name for name in before if name.endswith(".trained")]
    assert len(weights) == 3
    for rate in (1e-4, 1e-2):
        learner.target.reset()
        for i in range(20):
            learner.step(np.array([i]), rate)
        after = learner.integers()
        assert any(np.any(before[name] != after[name]) for name in weights), "nothing was learned"
        for name in weights:
            old, new = (np.abs(q[name].astype(int)).sum() for q in (before, after))
            assert new < 0.95 * old if drifts else abs(new / old - 1) < 0.005, f"{name} at rate {rate}"
