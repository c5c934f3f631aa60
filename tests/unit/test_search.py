"""Scheme search: prices, the linear bound, and all three methods against brute force."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images, residual_network
from typer.testing import CliRunner

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.cli import app
from tinytrain_lite.compiler import compile_program, training_graph
from tinytrain_lite.errors import DoesNotFitError, TinyTrainError, UnsupportedError
from tinytrain_lite.memory import static_bytes
from tinytrain_lite.sparse.analysis import RATIOS, Analysis, entries_of
from tinytrain_lite.sparse.bounds import lower_bound
from tinytrain_lite.sparse.figures import draw_search, search_table
from tinytrain_lite.sparse.presets import find_scheme
from tinytrain_lite.sparse.price import FIRMWARE_BYTES, Pricer, parse_bytes
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.sparse.search import run_search
from tinytrain_lite.sparse.space import Candidate, Space

GRAPH = residual_network(3)
LAYERS = [op.name for op in GRAPH if "w" in op.inputs]
DEPTH = 5
SCHEME = UpdateScheme("s", 4, {"b3.depthwise": 0.5, "b3.project": 1.0, "head": 1.0})


def made_up(depth: int = DEPTH, ratios: tuple[float, ...] = RATIOS, seed: int = 0) -> Analysis:
    """Gains that grow with depth and share, with noise; some are negative, one run died."""
    rng = np.random.default_rng(seed)
    accuracy: dict[str, float | None] = {}
    for entry in entries_of(GRAPH, depth):
        if entry.layer is None:
            accuracy[entry.key] = 0.5 + 0.02 * entry.biases
        elif entry.ratio in ratios:
            accuracy[entry.key] = 0.5 + 0.02 * entry.biases + 0.03 * entry.ratio + float(rng.normal(0, 0.01))
    accuracy["weight b2.project 1"] = None
    return Analysis(GRAPH.name, "made up", 5, (12, 12, 3), LAYERS, 1000, {}, [accuracy])


def everything(space: Space) -> Iterator[Candidate]:
    for biases in space.biases:
        layers = space.reachable(biases)
        for ratios in product(*([0.0, *space.weights[layer]] for layer in layers)):
            yield space.candidate(biases, dict(zip(layers, ratios, strict=True)))


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(GRAPH, made_up(ratios=(0.25, 1.0)))


@pytest.fixture(scope="module")
def pricer() -> Pricer:
    return Pricer(GRAPH)


@pytest.fixture(scope="module")
def prices(space: Space, pricer: Pricer) -> dict[Candidate, int]:
    """Brute force: every candidate of the space."""
    return {c: pricer.price(space.scheme(c, "c")) for c in everything(space)}


# ---- price ---------------------------------------------------------------------------------------
def test_price_is_what_a_compiled_program_declares(pricer: Pricer):
    x, y = images(GRAPH, 2)
    program = compile_program(GRAPH, SCHEME, x, y)
    assert pricer.price(SCHEME) == program.arena_bytes + static_bytes(program.train) + FIRMWARE_BYTES


def test_equal_schemes_are_priced_once():
    pricer = Pricer(GRAPH)
    counted = {-3: 0.5, -2: 1.0, -1: 1.0}
    assert pricer.price(SCHEME) == pricer.price(UpdateScheme("other name", 4, counted))
    assert pricer.evaluations == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("96KB", 98304), ("96 kb", 98304), ("1.5MB", 1572864), ("98304", 98304), ("7B", 7), ("2KiB", 2048)],
)
def test_amounts_of_memory(text: str, count: int):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "KB", "-3KB", "0", "96GBit", "ninety", "1e5"])
def test_amounts_that_are_none(text: str):
    with pytest.raises(UnsupportedError, match="is not an amount of memory; write it like 96KB"):
        parse_bytes(text)


# ---- the space -----------------------------------------------------------------------------------
def test_score_is_the_sum_of_gains():
    analysis = made_up()
    space = Space(GRAPH, analysis)
    candidate = space.candidate(4, {"b3.expand": 1.0, "b3.project": 1.0, "b2.project": 0.5, "stem": 1.0})
    assert dict(candidate.weights) == {
        "b3.expand": 1.0,
        "b3.project": 1.0,
    }  # the others lie in front of the last 4 biases
    a = analysis.draws[0]
    pairs = [("bias 4", "bias 1"), ("weight b3.expand 1", "bias 4"), ("weight b3.project 1", "bias 2")]
    gains = [float(a[with_it] or 0) - float(a[without] or 0) for with_it, without in pairs]
    assert space.score(candidate) == pytest.approx(sum(gains))


def test_only_what_helps_is_a_choice():
    analysis = made_up()
    analysis.draws[0]["weight b3.expand 0.5"] = 0.1
    space = Space(GRAPH, analysis)
    assert 0.5 not in space.weights["b3.expand"] and 1.0 not in space.weights.get("b2.project", {})
    assert all(gain > 0 for gains in space.weights.values() for gain in gains.values())


def test_analysis_of_another_network_is_refused():
    analysis = made_up()
    analysis.layers = analysis.layers[1:]
    with pytest.raises(UnsupportedError, match="the analysis is of 'residual' with 13 layers, not"):
        Space(GRAPH, analysis)
    with pytest.raises(UnsupportedError, match="no sound run of the head alone"):
        Space(GRAPH, Analysis("x", "x", 5, (1, 1, 1), LAYERS, 1, {}))


# ---- the bound -----------------------------------------------------------------------------------
CHOICES = {layer: list(RATIOS) for layer in LAYERS[:-1]}
SHARES = st.lists(st.sampled_from((0.0, *RATIOS)), min_size=13, max_size=13)


@pytest.fixture(scope="module")
def bounds() -> dict[int, object]:
    """By number of biases; filled on demand."""
    return {}


@settings(max_examples=60, deadline=None)
@given(biases=st.integers(1, 14), shares=SHARES)
def test_no_scheme_is_cheaper_than_the_bound(bounds, biases: int, shares: list[float]):
    reachable = LAYERS[len(LAYERS) - biases : -1]
    if biases not in bounds:
        bounds[biases] = lower_bound(GRAPH, biases, {layer: CHOICES[layer] for layer in reachable})
    bound = bounds[biases]
    choice = {layer: r for layer, r in zip(LAYERS[:-1], shares, strict=True) if r and layer in reachable}
    scheme = UpdateScheme("s", biases, {**choice, "head": 1.0})
    assert bound.at(choice.items()) <= Pricer(GRAPH).price(scheme)
    static = bound.constant + sum(bound.static[c] for c in choice.items())
    assert static == static_bytes(training_graph(GRAPH, scheme)) + FIRMWARE_BYTES


def test_the_bound_is_close(prices: dict[Candidate, int], space: Space):
    """Not a bound of zero: it meets the planner's price on most of the space and stays close on the rest."""
    slack: list[float] = []
    for biases in space.biases:
        bound = lower_bound(GRAPH, biases, {n: list(space.weights[n]) for n in space.reachable(biases)})
        slack += [1 - bound.at(c.weights) / price for c, price in prices.items() if c.biases == biases]
    assert min(slack) >= 0 and np.median(slack) == 0 and max(slack) < 0.1


def test_a_planner_that_undercuts_the_bound_is_noticed(space: Space):
    class Cheap(Pricer):
        def price(self, scheme: UpdateScheme) -> int:
            return super().price(scheme) - 500

    with pytest.raises(TinyTrainError, match="the bound says at least"):
        run_search("exact", space, Cheap(GRAPH), 10**6)


# ---- the methods ---------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.8, 1.0])
def test_exact_finds_what_brute_force_finds(space: Space, pricer: Pricer, prices: dict[Candidate, int], share: float):
    budget = int(np.quantile(list(prices.values()), share))
    best = max(space.score(c) for c, price in prices.items() if price <= budget)
    result = run_search("exact", space, pricer, budget, evaluations=500)
    assert result.score == pytest.approx(best, abs=1e-5)
    assert result.bound == pytest.approx(best, abs=1e-4) and result.bound >= result.score
    assert prices[result.candidate] == result.bytes <= budget


@pytest.mark.parametrize("method", ["random", "evolutionary", "exact"])
def test_methods_keep_their_word(space: Space, pricer: Pricer, prices: dict[Candidate, int], method: str):
    budget = int(np.quantile(list(prices.values()), 0.3))
    result = run_search(method, space, pricer, budget, evaluations=40, seed=5)
    assert prices[result.candidate] == result.bytes <= budget
    assert result.score == space.score(result.candidate)
    assert result.scheme == space.scheme(result.candidate, result.scheme.name)
    assert 1 <= result.evaluations <= 40
    counts, scores = zip(*result.curve, strict=True)
    assert list(counts) == sorted(counts) and list(scores) == sorted(scores)
    assert (counts[-1], scores[-1]) == (result.evaluations, result.score)
    again = run_search(method, space, pricer, budget, evaluations=40, seed=5)
    assert (again.candidate, again.curve) == (result.candidate, result.curve)


def test_a_bound_is_true_when_the_search_is_cut_short(space: Space, pricer: Pricer, prices: dict[Candidate, int]):
    for share in (0.1, 0.4, 0.7):
        budget = int(np.quantile(list(prices.values()), share))
        best = max(space.score(c) for c, price in prices.items() if price <= budget)
        result = run_search("exact", space, pricer, budget, evaluations=1)
        assert result.bound is not None and result.score <= best <= result.bound + 1e-9


def test_evolution_finds_the_optimum_of_a_small_space(space: Space, pricer: Pricer, prices: dict[Candidate, int]):
    budget = int(np.quantile(list(prices.values()), 0.3))
    best = max(space.score(c) for c, price in prices.items() if price <= budget)
    assert run_search("evolutionary", space, pricer, budget, evaluations=len(prices)).score == pytest.approx(best)


def test_a_search_ends_when_the_space_is_used_up(pricer: Pricer):
    tiny = Space(GRAPH, made_up(depth=1))
    for method in ("random", "evolutionary"):
        assert run_search(method, tiny, pricer, 10**6, evaluations=100).evaluations == 1


def test_a_budget_nothing_fits_says_what_the_cheapest_needs(space: Space, pricer: Pricer, prices: dict[Candidate, int]):
    needs = min(prices.values())
    for method in ("random", "evolutionary", "exact"):
        with pytest.raises(DoesNotFitError, match=rf"the cheapest, .* needs {needs:,}; give it 1 bytes more"):
            run_search(method, space, pricer, needs - 1)
    with pytest.raises(UnsupportedError, match="no search method 'greedy'; choose one of random"):
        run_search("greedy", space, pricer, needs)


def test_update_memory_is_priced():
    """Stochastic rounding keeps no fraction: one byte less for every int8 weight and int32 bias that learns."""
    fraction, stochastic = (
        Pricer(GRAPH, UpdateRule(rounding)).price(SCHEME) for rounding in ("fraction8", "stochastic")
    )
    assert fraction > stochastic


def test_table_and_picture(space: Space, pricer: Pricer, tmp_path: Path):
    results = [run_search(m, space, pricer, 10**6, evaluations=10) for m in ("random", "exact")]
    assert search_table(results, 10**6).row_count == 2
    draw_search({"random": results[:1], "exact": results[1:]}, tmp_path / "search.svg")
    assert b"<svg" in (tmp_path / "search.svg").read_bytes()


SEARCH = """
from test_search import GRAPH, made_up
from tinytrain_lite.sparse.price import Pricer
from tinytrain_lite.sparse.search import run_search
from tinytrain_lite.sparse.space import Space
analysis = made_up(depth=9)
analysis.draws[0] = {key: accuracy and round(accuracy, 2) for key, accuracy in analysis.draws[0].items()}  # many ties
print(run_search("evolutionary", Space(GRAPH, analysis), Pricer(GRAPH), 24_000, 120).candidate)
"""


def test_a_seed_gives_one_result_in_every_process():
    """Python's hashes of strings differ from process to process, and with them the order of a set."""
    found = {
        subprocess.run(
            [sys.executable, "-c", SEARCH], cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(found) == 1


# ---- the command ---------------------------------------------------------------------------------
def test_search_command_on_the_demo(tmp_path: Path):
    from tinytrain_lite.workload import outline

    graph = outline("demo", 10, (32, 32, 1))
    accuracy: dict[str, float | None] = {e.key: 0.5 + 0.01 * e.biases + 0.1 * e.ratio for e in entries_of(graph, 6)}
    layers = [op.name for op in graph if "w" in op.inputs]
    Analysis(graph.name, "mnist", 10, (32, 32, 1), layers, 100, {}, [accuracy]).save(tmp_path / "a.json")
    arguments = ["search", "demo", "--analysis", str(tmp_path / "a.json"), "-o", str(tmp_path / "s.yaml")]
    result = CliRunner().invoke(app, [*arguments, "--budget", "24KB", "--evaluations", "30"])
    assert result.exit_code == 0, result.output
    scheme = find_scheme("demo", str(tmp_path / "s.yaml"))
    assert Pricer(graph).price(scheme) <= 24 * 1024
    refused = CliRunner().invoke(app, [*arguments, "--budget", "1KB"])
    assert isinstance(refused.exception, TinyTrainError) and "the cheapest" in str(refused.exception)
