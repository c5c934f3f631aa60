"""Contribution analysis: what is measured, what a gain is, resuming, and the same numbers on a Dask cluster."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import residual_network
from typer.testing import CliRunner

from tinytrain_lite.cli import app
from tinytrain_lite.cluster import dask_cluster
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph
from tinytrain_lite.sparse import analysis as module
from tinytrain_lite.sparse.analysis import Analysis, AnalysisError, Entry, analyze, entries_of
from tinytrain_lite.sparse.figures import analysis_table, draw_analysis
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.train.datasets import Dataset, Split
from tinytrain_lite.train.int8 import Int8Network
from tinytrain_lite.train.optimizers import Optimizer, cosine
from tinytrain_lite.train.trainer import Recipe

torch = pytest.importorskip("torch")
CLASSES = tuple("abcde")
RECIPE = Recipe(learning_rate=0.02, epochs=2, batch=4)
DEPTH = 4  # project, expand, depthwise, project of the last blocks are layers 9..12 of 14; the head is 13


def pictures(count: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 12, 12, 3)).astype(np.uint8)
    return Dataset("noise", images, np.arange(count) % len(CLASSES), CLASSES)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return residual_network(3)


@pytest.fixture(scope="module")
def data() -> Split:
    return Split(pictures(20, 0), pictures(30, 1), pictures(10, 2))


@pytest.fixture(scope="module")
def sequential(graph: Graph, data: Split, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analyze(graph, [data], RECIPE, tmp_path_factory.mktemp("analysis") / "a.json", DEPTH)


def test_entries_are_every_bias_and_every_distinct_slice(graph: Graph):
    """The last block is expand 7 -> 11, depthwise 11, project 11 -> 7: eighths, quarters and halves round to these."""
    entries = entries_of(graph, DEPTH)
    assert [e.biases for e in entries if e.layer is None] == [4, 3, 2, 1]
    ratios = {layer: [e.ratio for e in entries if e.layer == layer] for layer in {e.layer for e in entries}}
    del ratios[None]
    assert ratios == {
        "b3.expand": [0.125, 0.25, 0.5, 1],  # 7 channels: 1, 2, 4, 7
        "b3.depthwise": [0.125, 0.25, 0.5, 1],  # 11: 1, 3, 6, 11
        "b3.project": [0.125, 0.25, 0.5, 1],
    }
    assert entries_of(graph)[0] == Entry(14)
    stem = [e.ratio for e in entries_of(graph) if e.layer == "stem"]
    assert stem == [0.125, 0.5, 1]  # 3 channels: 1, 1, 2, 3
    with pytest.raises(UnsupportedError, match="has 14 layers; the last 15"):
        entries_of(graph, 15)


def test_a_weight_is_measured_with_the_biases_from_its_layer_on(graph: Graph):
    layers = [op.name for op in graph if "w" in op.inputs]
    for entry in entries_of(graph):
        biases = entry.scheme().resolve_biases(layers)
        weights = entry.scheme().resolve_weights(layers)
        assert weights.pop("head") == 1
        if entry.layer is not None:
            assert biases[0] == entry.layer and weights == {entry.layer: entry.ratio}


def test_an_entry_is_an_ordinary_training_run(graph: Graph, data: Split, sequential: Analysis):
    """The same run written out: same order of images, same schedule, accuracy on the validation images."""
    network = Int8Network(graph, UpdateScheme("by hand", 3, {"b3.depthwise": 0.5, "head": 1.0}))
    optimizer = Optimizer(network, "sgd+qas")
    x = {name: torch.from_numpy(d.images.transpose(0, 3, 1, 2).astype(np.int16) - 128).to(torch.int8)
         for name, d in (("train", data.train), ("validation", data.validation))}  # fmt: skip
    frontier = [t.name for t in network.frontier]
    rng, steps = np.random.default_rng(0), 10
    for step in range(steps):
        if step % 5 == 0:
            order = rng.permutation(20)
        chosen = order[4 * (step % 5) :][:4]
        features = network.evaluate({"image": x["train"][chosen]}, frontier)
        loss = torch.nn.functional.cross_entropy(network(features), torch.from_numpy(data.train.labels[chosen]))
        loss.backward()
        optimizer.step(cosine(0.02, step, steps))
    with torch.no_grad():
        predicted = network(network.evaluate({"image": x["validation"]}, frontier)).argmax(1).numpy()
    assert sequential.draws[0]["weight b3.depthwise 0.5"] == (predicted == data.validation.labels).mean()


def test_gains():
    """By hand: head 0.50; two biases 0.60; half of a weight on top 0.66; all of it diverged."""
    accuracy = {"bias 1": 0.5, "bias 2": 0.6, "weight conv 0.5": 0.66, "weight conv 1": None}
    a = Analysis("net", "data", 2, (1, 1, 1), ["stem", "conv", "head"], 100, {}, [accuracy])
    assert a.bias_gain(1) == 0
    assert a.bias_gain(2) == pytest.approx(0.1)
    assert a.weight_gain("conv", 0.5) == pytest.approx(0.06)
    assert a.weight_gain("conv", 1.0) is None and a.bias_gain(3) is None
    assert a.standard_error == pytest.approx(np.sqrt(0.5867 * 0.4133 / 100), rel=1e-3)


def test_gains_over_draws():
    """By hand: the weight adds 0.06 and 0.02 within the draws (mean 0.04, variance 0.0008), its half 0.01 and 0.03
    (mean 0.02, variance 0.0002); the second draw starts 0.1 lower, which no gain notices. Standard error of a gain:
    sqrt(mean variance / 2) = sqrt(0.00025). What one draw lacks has no gain, and no part in the error."""
    first = {"bias 1": 0.5, "bias 2": 0.6, "weight conv 0.5": 0.61, "weight conv 1": 0.66, "weight conv 0.25": 0.9}
    second = {"bias 1": 0.4, "bias 2": 0.5, "weight conv 0.5": 0.53, "weight conv 1": 0.52, "weight conv 0.25": None}
    a = Analysis("net", "data", 2, (1, 1, 1), ["stem", "conv", "head"], 100, {}, [first, second])
    assert a.head_accuracy() == pytest.approx(0.45) and a.bias_gain(2) == pytest.approx(0.1)
    assert a.weight_gain("conv", 1.0) == pytest.approx(0.04) and a.weight_gain("conv", 0.5) == pytest.approx(0.02)
    assert a.weight_gain("conv", 0.25) is None
    assert a.standard_error == pytest.approx(np.sqrt(0.00025))


def test_another_draw_is_added_later(graph: Graph, data: Split, tmp_path: Path):
    """Draw 1 is an ordinary analysis of its own images with the next seed."""
    other = Split(pictures(20, 5), pictures(30, 6), data.test)
    one = analyze(graph, [data], RECIPE, tmp_path / "both.json", 2)
    both = analyze(graph, [data, other], RECIPE, tmp_path / "both.json", 2)
    alone = analyze(graph, [other], replace(RECIPE, seed=1), tmp_path / "other.json", 2)
    assert both.draws == [one.draws[0], alone.draws[0]] and one.draws[0] != alone.draws[0]
    assert "2 draws" in str(analysis_table(both).caption)


def test_an_interrupted_analysis_continues(
    graph: Graph, data: Split, sequential: Analysis, tmp_path: Path, monkeypatch
):
    path, seen = tmp_path / "a.json", []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze(graph, [data], RECIPE, path, DEPTH, progress=stop)
    assert seen[-1] == (5, 16) and len(json.loads(path.read_text())["draws"][0]) == 5
    trained = []
    original = module.train
    monkeypatch.setattr(module, "train", lambda *a, **k: trained.append(a[1].name) or original(*a, **k))
    assert analyze(graph, [data], RECIPE, path, DEPTH, cache=tmp_path / "cache").draws == sequential.draws
    assert len(trained) == 11
    analyze(graph, [data], RECIPE, path, DEPTH)
    assert len(trained) == 11


def test_the_test_images_are_never_looked_at(graph: Graph, data: Split, sequential: Analysis, tmp_path: Path):
    other = replace(data, test=pictures(7, 9))
    assert analyze(graph, [other], RECIPE, tmp_path / "a.json", 1).draws[0]["bias 1"] == sequential.draws[0]["bias 1"]


def test_an_analysis_of_something_else_is_refused(graph: Graph, data: Split, tmp_path: Path):
    path = tmp_path / "a.json"
    analyze(graph, [data], RECIPE, path, 1)
    with pytest.raises(AnalysisError, match="measured with another model, data set or recipe"):
        analyze(graph, [data], replace(RECIPE, learning_rate=0.5), path, 1)
    path.write_text('{"format": 2}')
    with pytest.raises(AnalysisError, match=r"a\.json is not a file of `tinytrain analyze`"):
        Analysis.load(path)
    path.write_text("[]")
    with pytest.raises(AnalysisError, match="is not a file"):
        Analysis.load(path)
    with pytest.raises(AnalysisError, match="missing.json"):
        Analysis.load(tmp_path / "missing.json")


def test_a_diverged_entry_has_no_gain(graph: Graph, data: Split, tmp_path: Path):
    wild = analyze(graph, [data], replace(RECIPE, learning_rate=1e30), tmp_path / "a.json", 2)
    assert wild.draws[0]["weight b3.project 1"] is None and wild.weight_gain("b3.project", 1.0) is None
    assert Analysis.load(tmp_path / "a.json") == wild


def test_same_numbers_on_a_dask_cluster(graph: Graph, data: Split, sequential: Analysis, tmp_path: Path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        dask_cluster(cluster.scheduler_address, [data]),
    ):
        result = analyze(graph, [data], RECIPE, tmp_path / "a.json", DEPTH, jobs=-1)
    assert result.draws == sequential.draws


def test_no_cluster_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("tinytrain_lite.cluster.PATIENCE", "200ms")
    arguments = ["analyze", "demo", "--depth", "1", "-o", str(tmp_path / "a.json"), "--dask", "tcp://127.0.0.1:1"]
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, UnsupportedError) and not list(tmp_path.iterdir())
    assert "no Dask scheduler answers at 'tcp://127.0.0.1:1'" in str(refused)


def test_table_and_picture(sequential: Analysis, tmp_path: Path):
    table = analysis_table(sequential)
    assert table.row_count == DEPTH
    assert list(table.columns[0].cells)[0] == "head" and list(table.columns[1].cells)[0] == "+0.0"
    draw_analysis(sequential, tmp_path / "a.svg")
    first = (tmp_path / "a.svg").read_bytes()
    assert b"<svg" in first
    draw_analysis(sequential, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == first
