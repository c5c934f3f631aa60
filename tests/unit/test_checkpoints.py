"""The paper's three real checkpoints: right ImageNet classes, and every activation against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import Oracle, to_hwc

from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.reference import Machine
from tinytrain_lite.train.datasets import Dataset, resize

MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
NAMES = ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")

# photograph shipped in the scikit-image wheel -> ImageNet class
PHOTOGRAPHS = {"chelsea": 285, "coffee": 967, "camera": 872}  # Egyptian cat, espresso, tripod


@pytest.fixture(scope="module", params=NAMES)
def graph(request) -> Graph:
    path = MODELS / f"{request.param}.pkl"
    if not path.is_file():
        pytest.skip(f"the published checkpoint {path} is not on this machine")
    return import_checkpoint(path)


def photograph(name: str, size: int) -> np.ndarray:
    """The middle square of a scikit-image photograph, int8 (size, size, 3)."""
    data = pytest.importorskip("skimage.data")
    picture = getattr(data, name)()
    if picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, axis=2)
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    square = picture[None, top : top + side, left : left + side]
    return quantize_image(resize(Dataset(name, square, np.array([0]), (name,)), size).images[0])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_names_the_right_class(graph, name):
    logits = Machine(graph).infer(photograph(name, graph.image.shape[0]))
    assert int(logits.argmax()) == PHOTOGRAPHS[name]


def test_every_activation_equals_pytorch_in_whole_numbers(graph):
    image = photograph("chelsea", graph.image.shape[0])
    ours, theirs = Machine(graph).run({"image": image}), Oracle(graph, train=False).forward(image)
    for op in graph.ops[:-1]:
        name = op.outputs["y"].name
        np.testing.assert_array_equal(ours[name], to_hwc(theirs[name]), err_msg=name)
    np.testing.assert_array_equal(ours["head.logits"], theirs["head.logits"].numpy())


def test_no_accumulator_can_overflow(graph):
    """The published files hold biases of +-2^31; the extremes over all int8 inputs must fit int32."""
    for op in graph:
        if "w" not in op.inputs:
            continue
        x, bias = op.inputs["x"], op.inputs["b"].data.astype(np.int64)
        weight = op.inputs["w"].data.reshape(len(bias), -1).astype(np.int64)
        ends = [weight * (edge - x.zero_point) for edge in (-128, 127)]
        assert (bias + np.maximum(*ends).sum(1)).max() < 2**31, op.name
        assert (bias + np.minimum(*ends).sum(1)).min() >= -(2**31), op.name


@pytest.mark.parametrize(
    ("name", "convolutions", "weights", "macs"),
    # models/README.md beside the checkpoints; `weights` counts the 1,000-class head
    [
        ("mcunet-5fps", 43, 623_216, 22.6),
        ("mbv2-w0.35", 52, 350_688, 16.8),
        ("proxyless-w0.3", 61, 416_816, 18.7),
    ],
)
def test_size_is_as_published(name, convolutions, weights, macs):
    from tinytrain_lite.ops import definition

    path = MODELS / f"{name}.pkl"
    if not path.is_file():
        pytest.skip(f"the published checkpoint {path} is not on this machine")
    graph = import_checkpoint(path)
    layers = [op for op in graph if "w" in op.inputs]
    assert len(layers) == convolutions
    assert sum(op.inputs["w"].elements for op in layers) == weights
    assert round(sum(definition(op.kind).macs(op) for op in graph) / 1e6, 1) == macs
