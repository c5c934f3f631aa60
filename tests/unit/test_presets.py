"""Update schemes: the published ones on the published networks, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.sparse.presets import find_scheme, published
from tinytrain_lite.sparse.scheme import UpdateScheme

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"

# As they stand in the published source: n_bias_update (which does not count the head), then
# manual_weight_idx: weight_update_ratio.
PUBLISHED = {
    "mcunet-5fps": {
        "49kb": (20, {23: 0, 24: 0.25, 27: 0.5, 30: 0.5, 33: 0, 39: 0}),
        "74kb": (21, {21: 1, 23: 0, 24: 1, 26: 0, 27: 0.5, 30: 1}),
        "99kb": (22, {21: 1, 24: 1, 27: 1, 30: 1, 36: 0.125, 39: 0.25}),
        "124kb": (24, {21: 0.25, 24: 1, 27: 1, 30: 1, 33: 0.5, 39: 0.5}),
        "148kb": (23, {21: 1, 24: 1, 27: 1, 30: 1, 36: 1, 39: 0.5}),
    },
    "mbv2-w0.35": {
        "49kb": (16, {36: 1, 39: 1, 40: 0, 41: 0.25, 42: 0.125, 45: 0.125, 48: 0.125, 49: 0.125}),
        "73kb": (20, {32: 0.125, 33: 0.5, 36: 0.5, 39: 1, 41: 0.25, 42: 0.125, 45: 0.125, 48: 1}),
        "99kb": (25, {27: 1, 30: 1, 33: 1, 36: 1, 39: 1, 42: 0.125, 45: 0.5, 48: 1}),
        "123kb": (31, {27: 1, 30: 1, 33: 1, 36: 1, 39: 1, 42: 0.5, 45: 1, 48: 1}),
        "138kb": (34, {27: 1, 30: 1, 33: 1, 36: 1, 39: 1, 42: 1, 45: 1, 48: 1}),
    },
    "proxyless-w0.3": {
        "49kb": (21, {39: 0.25, 42: 1, 44: 0, 45: 1, 50: 0, 51: 0.125, 54: 0.25, 57: 0.25}),
        "74kb": (28, {33: 0.5, 36: 0.25, 39: 1, 42: 1, 45: 1, 51: 0.5, 54: 0.25, 57: 0.5}),
        "98kb": (25, {36: 1, 39: 0.5, 42: 1, 45: 1, 48: 0.25, 51: 0.5, 54: 1, 57: 1}),
        "120kb": (32, {36: 1, 39: 1, 42: 1, 45: 1, 48: 0.5, 51: 1, 54: 1, 57: 1}),
        "148kb": (45, {36: 1, 39: 1, 42: 1, 45: 1, 48: 1, 51: 1, 54: 1, 57: 1}),
    },
}


@pytest.fixture(scope="module", params=PUBLISHED)
def graph(request) -> Graph:
    path = MODELS / f"{request.param}.pkl"
    if not path.is_file():
        pytest.skip(f"the published checkpoint {path} is not on this machine")
    return import_checkpoint(path, 10)


def test_published_schemes_on_the_published_networks(graph: Graph):
    """Every scheme trains what its source lists: the biases, the weights, and the head on top."""
    ops = [op for op in graph if "w" in op.inputs]
    names = [op.name for op in ops]
    assert names[-1] == "head"
    for title, (biases, ratios) in PUBLISHED[graph.name].items():
        scheme = find_scheme(graph.name, title)
        assert scheme.resolve_biases(names) == names[len(names) - 1 - biases :]
        expected = {names[i]: ratio for i, ratio in ratios.items() if ratio} | {"head": 1}
        assert scheme.resolve_weights(names) == expected


def test_a_weight_learns_only_where_its_bias_does(graph: Graph):
    """What the search space assumes is true of every published scheme."""
    names = [op.name for op in graph if "w" in op.inputs]
    for title in PUBLISHED[graph.name]:
        scheme = published(graph.name, title)
        assert set(scheme.resolve_weights(names)) <= set(scheme.resolve_biases(names))


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(UnsupportedError, match="no update scheme '50kb' for mcunet-5fps; choose 49kb, 74kb"):
        find_scheme("mcunet-5fps", "50kb")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("biases: -1", r"biases is -1; expected how many last layers"),
        ("biases: 2.5", r"biases is 2\.5; expected"),
        ("biases: true", r"biases is True; expected"),
        ("biases: some", r"biases is 'some'; expected"),
        ("weights: [head]", r"weights is \['head'\]; expected 'all', or layer: fraction"),
        ("weights: {head: 0}", r"layer 'head' learns a fraction 0; expected a number above 0"),
        ("weights: {head: 1.5}", r"layer 'head' learns a fraction 1\.5; expected .* at most 1"),
        ("weights: {head: .nan}", r"layer 'head' learns a fraction nan"),
        ("weights: {head: half}", r"layer 'head' learns a fraction 'half'"),
        ("weights: {head: yes}", r"layer 'head' learns a fraction True"),
        ("weights: {2.5: 1}", r"2\.5 is no layer"),
        ("bias: 3", r"unknown field bias; a scheme has name, biases and weights"),
        ("- 1", r"expected the fields name, biases and weights"),
        ("{", r"update scheme .*wrong\.yaml: "),
        ("", r"expected the fields name, biases and weights"),
    ],
)
def test_wrong_yaml_says_what_is_wrong(tmp_path: Path, text: str, message: str):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UnsupportedError, match=message) as error:
        UpdateScheme.from_yaml(path)
    assert str(path) in str(error.value)


def test_missing_yaml(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"nowhere\.yaml"):
        find_scheme("demo", str(tmp_path / "nowhere.yaml"))


def test_a_layer_named_twice():
    with pytest.raises(UnsupportedError, match="layer 'head' is named twice"):
        UpdateScheme("s", 1, {"head": 1.0, -1: 0.5}).resolve_weights(["stem", "head"])


@given(
    biases=st.integers(0, 60) | st.just("all"),
    weights=st.just("all")
    | st.dictionaries(st.integers(-60, 60) | st.from_regex(r"[a-z]+\.[a-z]+", fullmatch=True), st.floats(1e-6, 1)),
)
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, biases, weights):
    scheme = UpdateScheme("mine", biases, weights)
    path = tmp_path_factory.mktemp("yaml") / "scheme.yaml"
    path.write_text(scheme.to_yaml())
    assert UpdateScheme.from_yaml(path) == scheme
