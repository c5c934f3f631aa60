"""Row bands: the same integers as the whole layers, at a lower peak, for a few rows computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RandomNetwork, images

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.calibrate import calibrate_gradients
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import compile_program, inference_graph, passes
from tinytrain_lite.graph import Graph
from tinytrain_lite.memory import live_bytes, make_plan
from tinytrain_lite.ops.base import definition
from tinytrain_lite.passes.patch import bands_of, needed_rows, patch
from tinytrain_lite.reference import Machine
from tinytrain_lite.sparse.scheme import UpdateScheme, preset
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library


def wide_network(seed: int, size: int = 32, k: int = 3) -> Graph:
    """High-resolution, widely expanded blocks in front, as in a MobileNet."""
    net = RandomNetwork(seed, "wide")
    x = net.b.input("image", (size, size, 3), 1 / 127.5, int(net.rng.integers(-20, 20)))
    y = net.conv(x, 8, 3, 2, "stem")
    y = net.block(y, 4, 24, k, 1, "b0")
    y = net.block(y, 4, 24, k, 1, "b1")  # residual
    y = net.block(y, 6, 24, k, 2, "b2")
    y = net.block(y, 6, 12, 3, 2, "b3")
    return net.head(y, 4)


def before_and_after(graph: Graph, scheme: UpdateScheme) -> tuple[Graph, Graph]:
    before = graph
    for name, transform in passes(scheme, UpdateRule()):
        if name == "patch":
            return before, transform(before)
        before = transform(before)
    raise AssertionError("no patch pass")


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("scheme", [preset("last"), preset("last-4")], ids=lambda s: s.name)
def test_bands_compute_the_same_at_a_lower_peak(scheme: UpdateScheme, k: int) -> None:
    graph = wide_network(k, size=64, k=k)
    whole, banded = before_and_after(graph, scheme)
    assert max(live_bytes(banded)) < 0.9 * max(live_bytes(whole))
    assert make_plan(banded).arena_bytes < 0.9 * make_plan(whole).arena_bytes
    x, y = images(graph, 3, seed=k)
    a, b = (Machine(calibrate_gradients(g, x, y)) for g in (whole, banded))
    for image, label in zip(x, y, strict=True):
        loss_a, logits_a = a.train(image, int(label))
        loss_b, logits_b = b.train(image, int(label))
        assert loss_a == loss_b
        np.testing.assert_array_equal(logits_a, logits_b)
    for name, value in a.params.items():
        np.testing.assert_array_equal(value, b.params[name], err_msg=name)


def test_the_price_is_a_few_rows_computed_twice() -> None:
    whole, banded = before_and_after(wide_network(3), preset("last"))
    macs = [sum(definition(op.kind).macs(op) for op in g) for g in (whole, banded)]
    assert macs[0] < macs[1] < 1.5 * macs[0]


def test_layers_that_the_backward_pass_needs_stay_whole() -> None:
    whole, banded = before_and_after(wide_network(3), preset("full"))
    assert [op.kind for op in banded] == [op.kind for op in whole], "nothing is frozen, so nothing is banded"


def test_banding_again_changes_nothing() -> None:
    _, banded = before_and_after(wide_network(3), preset("last"))
    assert str(patch(banded)) == str(banded)


@given(st.integers(1, 200), st.data())
def test_bands_cover_every_row_once(height: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, height))
    rows = [r for band in bands_of(height, count) for r in range(band.first, band.last)]
    assert rows == list(range(height))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2]), st.integers(3, 14))
def test_needed_rows_are_what_the_window_touches(seed: int, k: int, stride: int, size: int) -> None:
    """Against brute force: list the input rows of every output row's window."""
    net = RandomNetwork(seed)
    x = net.b.input("image", (size, size, 2), 0.01, 0)
    y = net.conv(x, 2, k, stride, "layer")
    op = net.b.ops[0]
    for band in bands_of(y.shape[0], min(3, y.shape[0])):
        touched = [r * stride - k // 2 + i for r in range(band.first, band.last) for i in range(k)]
        inside = [r for r in touched if 0 <= r < size]
        rows = needed_rows(op, band)
        assert (rows.first, rows.last) == (min(inside), max(inside) + 1)
        assert rows.pad_top == max(0, -min(touched))
        assert rows.pad_bottom == max(0, max(touched) + 1 - size)


def test_banded_c_equals_the_reference(tmp_path: Path) -> None:
    graph = wide_network(5, k=5)
    x, y = images(graph, 6)
    program = compile_program(graph, preset("last-4"), x, y)
    assert any(op.kind == "slice_rows" for op in program.train)
    generate(program, tmp_path)
    reference = Machine(program.train)
    losses = [reference.train(image, int(label))[0] for image, label in zip(x, y, strict=True)]
    inference = Machine(inference_graph(program.train))
    inference.params = {name: reference.params[name] for name in inference.params}
    with HostTarget(build_host_library(tmp_path)) as host, UnicornTarget(build_firmware(tmp_path)) as board:
        for target in (host, board):
            np.testing.assert_array_equal(target.train_many(x, y).loss, np.array(losses, np.float32))
            for name, value in target.read_params().items():
                assert value.tobytes() == reference.params[name].tobytes()
            np.testing.assert_array_equal(target.infer(x[0]).logits, inference.infer(x[0]))
