"""Reading the paper's checkpoints: nothing in the file may run, and damage is named."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.checkpoint import MAX_BYTES, CheckpointError, read_checkpoint
from tinytrain_lite.frontend.mcunet import import_checkpoint


def write(path: Path, content: object, protocol: int = 2) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


def convolution(rng, inputs, outputs, kernel, stride, x, y, groups=1):
    """A layer as the checkpoints spell it; x and y are (scale, zero)."""
    return {
        "in_channel": inputs, "in_shape": 8, "out_channel": outputs, "kernel_size": [kernel, kernel],
        "stride": stride, "groups": groups, "depthwise": groups > 1,
        "params": {
            "weight": rng.integers(-127, 128, (outputs, inputs // groups, kernel, kernel)).astype(np.int8),
            "bias": rng.integers(-999, 999, outputs).astype(np.int32),
            "x_scale": x[0], "x_zero": x[1], "y_scale": y[0], "y_zero": y[1],
            "w_scales": rng.uniform(0.001, 0.01, outputs).astype(np.float32),
        },
    }  # fmt: skip


@pytest.fixture
def content():
    rng = np.random.default_rng(0)
    image, a, b, c, d = (1 / 127.5, 0), (0.02, -128), (0.05, 3), (0.03, -128), (0.07, -6)
    classifier = convolution(rng, 4, 7, 1, 1, d, (0.2, 0))
    classifier["out_channel"] = 7
    return {
        "first_conv": convolution(rng, 3, 4, 3, 2, image, a),
        "blocks": [
            {
                "pointwise1": convolution(rng, 4, 8, 1, 1, a, b),
                "depthwise": convolution(rng, 8, 8, 5, 1, b, c, groups=8),
                "pointwise2": convolution(rng, 8, 4, 1, 1, c, (0.04, 9)),
                "residual": {
                    "in_channel": 4,
                    "params": {"x_scale": a[0], "x_zero": a[1], "y_scale": d[0], "y_zero": d[1]},
                },
                "se": None,
            }
        ],
        "feature_mix": None,
        "classifier": classifier,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_numbers_and_containers_are_read(tmp_path, protocol):
    wanted = {
        "int8": np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "nested": [{"x": 1, "y": 0.5}, None, True, "text"],
    }
    if protocol == 5:  # writes arrays by way of a NumPy function that is not admitted
        with pytest.raises(CheckpointError, match=r"it asks for numpy\._core\.numeric\._frombuffer"):
            read_checkpoint(write(tmp_path / "c.pkl", wanted, protocol))
        return
    got = read_checkpoint(write(tmp_path / "c.pkl", wanted, protocol))
    assert got["nested"] == wanted["nested"]
    for name in ("int8", "columns"):
        assert got[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(got[name], wanted[name])


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (exec, "exec"),
        (eval, "eval"),
        (getattr, "getattr"),
        (np.load, "load"),
        (Path, "Path"),
        (bytearray, "bytearray"),
    ],
)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, function, name):
    witness = tmp_path / "witness"
    attack = Runs(function, f"open({str(witness)!r}, 'w')")
    with pytest.raises(CheckpointError, match=rf"c\.pkl.*it asks for .*{name}.*only plain dicts"):
        read_checkpoint(write(tmp_path / "c.pkl", {"first_conv": attack}))
    assert not witness.exists()


def pickled_array(dtype: str, shape: tuple[int, ...], raw: bytes) -> bytes:
    """A pickle of one array with a state of our making."""

    class Forged:
        def __reduce__(self):
            array = np.zeros(0, np.int8)
            function, arguments, _ = array.__reduce__()
            return function, arguments, (1, shape, np.dtype(dtype), False, raw)

    return pickle.dumps({"x": Forged()}, 2)


@pytest.mark.parametrize(
    ("dtype", "shape", "raw"),
    [
        ("O", (1,), b"12345678"),
        ("i1", (10**12,), b"few"),
        ("i1", (-1,), b"few"),
        ("i1", (3, 3), b"few"),
        ("V3", (1,), b"few"),
    ],
)
def test_forged_arrays_are_refused(tmp_path, dtype, shape, raw):
    with pytest.raises(CheckpointError, match=r"c\.pkl: not a checkpoint that can be read safely"):
        read_checkpoint(write(tmp_path / "c.pkl", pickled_array(dtype, shape, raw)))


def test_sharing_cannot_blow_up_and_cycles_are_refused(tmp_path):
    bomb: list = []
    for _ in range(200):  # 2^200 leaves, if each were visited
        bomb = [bomb, bomb]
    assert "bomb" in read_checkpoint(write(tmp_path / "c.pkl", {"bomb": bomb}))
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(CheckpointError, match="holds itself"):
        read_checkpoint(write(tmp_path / "d.pkl", {"cycle": cycle}))


def test_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.pkl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(MAX_BYTES + 1))
    assert (tmp_path / "c.pkl").stat().st_size < MAX_BYTES / 100
    with pytest.raises(CheckpointError, match=r"unpacks to 67,108,865 bytes"):
        read_checkpoint(tmp_path / "c.pkl")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pkl: no such file.*tiny-training"):
        read_checkpoint(tmp_path / "none.pkl")
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pkl: not a complete zip archive"):
        read_checkpoint(tmp_path / "text.pkl")
    with zipfile.ZipFile(tmp_path / "other.pkl", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"other\.pkl: the zip archive holds 0 files data\.pkl"):
        read_checkpoint(tmp_path / "other.pkl")
    with pytest.raises(CheckpointError, match="holds a list; expected a dict"):
        read_checkpoint(write(tmp_path / "list.pkl", [1]))
    with pytest.raises(CheckpointError, match="not laid out as a checkpoint.*first_conv"):
        import_checkpoint(write(tmp_path / "empty.pkl", {}))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_raises_nothing_but_checkpoint_errors(tmp_path_factory, data):
    """Cut the file, or flip bytes of the pickle: it is read or refused, and nothing else happens."""
    folder = tmp_path_factory.mktemp("damage")
    raw = bytearray(pickle.dumps({"a": np.arange(9, dtype=np.int32), "b": [1, 2.5, {"c": "d"}]}, 2))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(folder / "c.pkl", bytes(raw))
    if data.draw(st.booleans()):
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        assert isinstance(read_checkpoint(path), dict)
    except CheckpointError as error:
        assert "c.pkl" in str(error)


def test_layers_become_ops(tmp_path, content):
    graph = import_checkpoint(write(tmp_path / "tiny.pkl", content))
    assert [(op.kind, op.name) for op in graph] == [
        ("conv2d", "stem"), ("conv2d", "blocks.0.expand"), ("depthwise_conv2d", "blocks.0.depthwise"),
        ("conv2d", "blocks.0.project"), ("add", "blocks.0.add"), ("avg_pool", "avg_pool"), ("linear", "head"),
    ]  # fmt: skip
    assert graph.name == "tiny" and graph.image.shape == (8, 8, 3)
    stem, depthwise, add = graph.ops[0], graph.ops[2], graph.ops[4]
    assert stem.attrs["pad"] == (1, 1, 1, 1) and stem.attrs["stride"] == 2
    assert stem.inputs["w"].data[3, 1, 2, 0] == content["first_conv"]["params"]["weight"][3, 0, 1, 2]
    assert depthwise.attrs["pad"] == (2, 2, 2, 2)
    assert [add.inputs[role].name for role in "ab"] == ["stem.y", "blocks.0.project.y"]
    assert (add.outputs["y"].scale, add.outputs["y"].zero_point) == (0.07, -6)
    pool = graph.ops[5].outputs["y"]
    assert (pool.scale, pool.zero_point) == (0.07, -6)


def test_head_is_replaced(tmp_path, content):
    path = write(tmp_path / "tiny.pkl", content)
    head = import_checkpoint(path, num_classes=3).ops[-1]
    assert head.inputs["w"].shape == (3, 4) and not head.inputs["w"].data.any()
    assert not head.inputs["b"].data.any() and head.outputs["y"].shape == (3,)
    with pytest.raises(UnsupportedError, match="1 classes"):
        import_checkpoint(path, num_classes=1)


@pytest.mark.parametrize(
    ("where", "value", "error", "message"),
    [
        (
            "blocks.0.depthwise.params.x_zero",
            4,
            CheckpointError,
            "blocks.0.depthwise: reads its input with.*zero 4",
        ),
        ("blocks.0.residual.params.x_scale", 0.5, CheckpointError, "blocks.0.add: reads its input"),
        ("first_conv.params.y_scale", -1.0, CheckpointError, "stem: y_scale -1.0"),
        ("first_conv.params.y_scale", float("nan"), CheckpointError, "stem: y_scale nan"),
        ("first_conv.params.y_zero", 300, CheckpointError, "stem.*y_zero 300"),
        ("first_conv.params.bias", np.zeros(3, np.int32), CheckpointError, "stem: 4 filters, 3 biases"),
        (
            "first_conv.params.weight",
            np.zeros((4, 3, 3, 3), np.float32),
            CheckpointError,
            "stem.weight: expected a int8",
        ),
        ("first_conv.params.w_scales", np.zeros(4, np.float32), CheckpointError, "stem.w_scales"),
        ("first_conv.stride", "2", CheckpointError, "stem.stride: '2'"),
        ("blocks.0.se", {}, UnsupportedError, "blocks.0: squeeze-and-excitation"),
        ("blocks.0.depthwise.groups", 2, UnsupportedError, "blocks.0.depthwise: 2 groups"),
        ("blocks", None, CheckpointError, "not laid out"),
    ],
)
def test_inconsistent_layers_are_named(tmp_path, content, where, value, error, message):
    content = copy.deepcopy(content)
    *parents, last = where.split(".")
    node = content
    for key in parents:
        node = node[int(key)] if key.isdigit() else node[key]
    node[last] = value
    with pytest.raises(error, match=message):
        import_checkpoint(write(tmp_path / "tiny.pkl", content))


def test_bare_pickle_is_refused(tmp_path):
    buffer = io.BytesIO()
    pickle.dump({"a": 1}, buffer)
    (tmp_path / "c.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="not a complete zip archive"):
        read_checkpoint(tmp_path / "c.pkl")
