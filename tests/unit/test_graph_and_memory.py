"""The IR's checker, the memory planner and its independent overlap checker."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import RandomNetwork, images, residual_network

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.compiler import compile_program, passes, training_graph
from tinytrain_lite.errors import GraphError, UnsupportedError
from tinytrain_lite.graph import Op
from tinytrain_lite.memory import Buffer, buffers_of, check_plan, greedy_by_size, live_bytes, make_plan
from tinytrain_lite.passes.schedule import dependencies
from tinytrain_lite.sparse.scheme import UpdateScheme, preset


# ---- IR ---------------------------------------------------------------------------------------------
def test_the_printed_graph_can_be_read() -> None:
    text = str(residual_network(0))
    assert "%b0.add.y: int8[6,6,6] s=" in text
    assert "= conv2d(x=%image, w=#stem.w, b=#stem.b, m=#stem.m) {stride=2, pad=(1 1 1 1), clamp=(-128 127)}" in text


def test_printing_and_digest_are_deterministic() -> None:
    first, second = (training_graph(residual_network(0), preset("bias")) for _ in range(2))
    assert str(first) == str(second)
    assert first.digest() == second.digest() != training_graph(residual_network(1), preset("bias")).digest()


def test_verify_names_the_op_that_reads_a_value_before_it_exists() -> None:
    graph = residual_network(0)
    graph.ops[2], graph.ops[3] = graph.ops[3], graph.ops[2]
    with pytest.raises(GraphError, match=r"op 'b0.project' \(conv2d\) reads x='b0.depthwise.y' before"):
        graph.verify()


def test_verify_names_the_op_with_a_wrong_shape() -> None:
    graph = residual_network(0)
    graph.tensors["b1.depthwise.y"].shape = (3, 4, 13)
    with pytest.raises(GraphError, match=r"op 'b1.depthwise' \(depthwise_conv2d\): output is \(3, 4\)"):
        graph.verify()


def test_verify_refuses_a_reader_behind_the_update() -> None:
    """The stale read that would make the result depend on the memory plan."""
    graph = training_graph(residual_network(0), preset("full"))
    update = next(op for op in graph if op.kind == "conv2d_grad_weight" and op.name == "b2.expand")
    reader = next(op for op in graph.readers(update.inputs["param"]) if op.kind == "conv2d_grad_input")
    graph.ops.remove(update)
    graph.ops.insert(graph.ops.index(reader), update)
    with pytest.raises(GraphError, match=r"op 'b2.expand' \(conv2d_grad_input\) reads w=.* after an update has overwr"):
        graph.verify()


def test_verify_names_an_unknown_kind() -> None:
    graph = residual_network(0)
    op = graph.ops[0]
    graph.ops[0] = Op("conv3d", op.name, op.inputs, op.outputs, op.attrs)
    with pytest.raises(GraphError, match="unknown op kind 'conv3d'"):
        graph.verify()


def test_a_second_tensor_of_one_name_is_refused() -> None:
    net = RandomNetwork(0)
    x = net.b.input("image", (4, 4, 2), 0.01, 0)
    net.conv(x, 2, 1, 1, "layer")
    with pytest.raises(GraphError, match="'layer"):
        net.conv(x, 2, 1, 1, "layer")


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (UpdateScheme("s", 99), "99 biases learn, the network has"),
        (UpdateScheme("s", 1, {"nowhere": 1.0}), "no layer 'nowhere'"),
        (UpdateScheme("s", 1, {"head": 0.5}), "layer 'head' .* cannot learn a fraction"),
    ],
)
def test_a_scheme_the_network_cannot_follow_is_refused(scheme: UpdateScheme, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        training_graph(residual_network(0), scheme)


# ---- scheduling -------------------------------------------------------------------------------------
def test_updates_follow_their_gradients() -> None:
    """Once an update may run, at most one more gradient is computed before it does (one that frees more bytes)."""
    graph = training_graph(residual_network(0), preset("full"))
    needs = dependencies(graph)
    position = {op: i for i, op in enumerate(graph.ops)}
    for op in graph:
        assert all(position[n] < position[op] for n in needs[op])
        if op.phase == "update":
            first_allowed = 1 + max(position[n] for n in needs[op])
            between = graph.ops[first_allowed : position[op]]
            assert sum(other.phase == "backward" for other in between) <= 1, op.name


def test_scheduling_lowers_the_peak_of_full_training() -> None:
    """Against the order of a conventional framework, all gradients first, whether fused or not."""
    peaks = {}
    graph = residual_network(0, size=24)
    for name, transform in passes(preset("full"), UpdateRule()):
        graph = transform(graph)
        if name in ("prune", "fuse", "schedule"):
            peaks[name] = max(live_bytes(graph))
    assert peaks["schedule"] < min(peaks["fuse"], peaks["prune"])


# ---- planning ---------------------------------------------------------------------------------------
buffers = st.lists(
    st.tuples(st.integers(1, 64), st.integers(-1, 12), st.integers(0, 6)).map(lambda t: (4 * t[0], t[1], t[1] + t[2])),
    min_size=1,
    max_size=24,
)


@settings(deadline=None)
@given(buffers)
def test_greedy_placement_is_disjoint_wherever_lifetimes_meet(specs: list[tuple[int, int, int]]) -> None:
    made = [Buffer(f"b{i}", *spec) for i, spec in enumerate(specs)]
    offsets = greedy_by_size(made)
    for i, a in enumerate(made):
        for b in made[:i]:
            together = set(range(a.first, a.last + 1)) & set(range(b.first, b.last + 1))
            shared = set(range(offsets[a.name], offsets[a.name] + a.size)) & set(
                range(offsets[b.name], offsets[b.name] + b.size)
            )
            assert not (together and shared)


@pytest.mark.parametrize("scheme", ["full", "bias", "last", "last-4"])
def test_plan_reaches_at_least_the_lower_bound_and_counts_live_bytes(scheme: str) -> None:
    graph = training_graph(residual_network(2, size=20), preset(scheme))
    plan = make_plan(graph)
    assert plan.arena_bytes >= plan.lower_bound
    for i, op in enumerate(graph.ops):
        touched = {id(b): b.size for b in buffers_of(graph) if b.first <= i <= b.last}
        assert plan.live[i] == sum(touched.values()), op.name


def test_checker_refuses_a_plan_that_overlaps() -> None:
    graph = training_graph(residual_network(2), preset("bias"))
    plan = make_plan(graph)
    refused = 0
    movable = [b for b in plan.buffers if b.last > b.first and b.tensors]
    for b in movable:
        neighbour = next(o for o in plan.buffers if o is not b and o.overlaps(b))
        kept = plan.offsets[b.name]
        plan.offsets[b.name] = plan.offsets[neighbour.name]
        with pytest.raises(GraphError, match="memory plan"):
            check_plan(graph, plan)
        plan.offsets[b.name] = kept
        refused += 1
    assert refused > 10
    check_plan(graph, plan)


def test_in_place_ops_share_bytes_only_with_an_input_that_dies() -> None:
    graph = training_graph(residual_network(2), preset("last"))
    plan = make_plan(graph)
    depthwise = next(op for op in graph if op.kind == "depthwise_conv2d")
    assert plan.offset(depthwise.inputs["x"]) == plan.offset(depthwise.outputs["y"])
    expand = next(op for op in graph if op.name == "b0.expand")
    skip = expand.inputs["x"]  # read again by the residual add
    for op in graph.ops[graph.ops.index(expand) : graph.ops.index(graph.readers(skip)[-1])]:
        for t in op.outputs.values():
            start, end = plan.offset(skip), plan.offset(skip) + skip.nbytes
            assert plan.offset(t) >= end or plan.offset(t) + t.nbytes <= start


def test_compile_is_deterministic() -> None:
    graph = residual_network(4)
    x, y = images(graph, 3)
    one, two = (compile_program(graph, preset("full"), x, y) for _ in range(2))
    assert one.train.digest() == two.train.digest()
    assert one.train_plan.offsets == two.train_plan.offsets
    peaks = [t.peak for t in one.train.tensors.values() if t.dtype == "dfp16"]
    assert all(p is not None and np.isfinite(p) for p in peaks)
