"""The host library: batches equal single calls, and two targets do not share a state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy import images, toy_dir

from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.host import CHUNK, HostTarget
from tinytrain_lite.toolchain import build_host_library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host_library(toy_dir(tmp_path_factory.mktemp("toy")))


def train_in_numpy(pictures: np.ndarray, labels: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The toy's training loop in float64: weights (3, 16) and bias (3,) after one step an image."""
    weights, bias = np.zeros((3, 16)), np.zeros(3)
    for picture, label in zip(pictures.reshape(-1, 16).astype(float), labels, strict=True):
        gradient = weights @ picture + bias - np.eye(3)[label]
        weights -= rate * np.outer(gradient, picture) / 2**14
        bias -= rate * gradient
    return weights, bias


def test_training_against_numpy(library: Path) -> None:
    pictures, labels = images(40)
    with HostTarget(library) as target:
        target.set_learning_rate(0.25)
        target.train_many(pictures, labels)
        params = target.read_params()
    weights, bias = train_in_numpy(pictures, labels, 0.25)
    np.testing.assert_allclose(params["weights"].view("<f4").reshape(3, 16), weights, atol=1e-5)
    np.testing.assert_allclose(params["bias"].view("<f4"), bias, atol=1e-4)


def test_a_batch_equals_single_calls(library: Path) -> None:
    pictures, labels = images(CHUNK + 3)
    done: list[int] = []
    with HostTarget(library) as batch, HostTarget(library) as single:
        log = batch.train_many(pictures, labels, done.append)
        results = [single.train(picture, label) for picture, label in zip(pictures, labels, strict=True)]
        assert log.loss.tolist() == [result.loss for result in results]
        assert log.predicted.tolist() == [result.predicted for result in results]
        assert batch.read_params()["weights"].tobytes() == single.read_params()["weights"].tobytes()
        predicted = [single.predict(picture, label) for picture, label in zip(pictures, labels, strict=True)]
        accuracy = batch.evaluate(pictures, labels, done.append)
        assert accuracy == np.mean(np.array(predicted) == labels)
        assert batch.stats() == single.stats()
        np.testing.assert_array_equal(batch.logits(pictures).argmax(1), predicted)
    assert done == [CHUNK, 3, CHUNK, 3]


def test_two_targets_do_not_share_a_state(library: Path) -> None:
    pictures, labels = images(5)
    with HostTarget(library) as one, HostTarget(library) as other:
        one.train_many(pictures, labels)
        assert (one.stats().steps, other.stats().steps) == (5, 0)
        assert not other.read_params()["weights"].any()
        one.reset()
        assert not one.read_params()["weights"].any()


@pytest.mark.parametrize("rate", [-1.0, float("nan"), float("inf"), 1e39])
def test_bad_learning_rate(library: Path, rate: float) -> None:
    with HostTarget(library) as target, pytest.raises(TargetError, match="finite and not negative"):
        target.set_learning_rate(rate)


def test_bad_images_and_labels(library: Path) -> None:
    pictures, labels = images(2)
    with HostTarget(library) as target:
        with pytest.raises(TargetError, match="got int8"):
            target.evaluate(pictures[:, :3], labels)
        with pytest.raises(TargetError, match="label 7"):
            target.train_many(pictures, [0, 7])
        with pytest.raises(TargetError, match="as many images as labels"):
            target.train_many(pictures, labels[:1])
        assert target.stats().steps == 0
