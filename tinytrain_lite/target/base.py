"""What every target can do, whatever runs the model: this computer, an emulator or a board.

    with UnicornTarget(elf) as target:
        target.set_learning_rate(0.01)
        result = target.train(image, label)      # one step: result.loss, result.predicted, result.cycles
        accuracy = target.evaluate(images, labels)

Images are int8 arrays (height, width, channels) as ``hello()`` reports them. All targets give the same bytes;
only ``cycles`` differs (0 on the host, retired instructions in Unicorn, core cycles on a board).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tinytrain_lite.errors import TinyTrainError

Image = NDArray[np.int8]
Labels = Sequence[int] | NDArray[np.integer]
Progress = Callable[[int], None]  # called with the number of images done since the last call


class TargetError(TinyTrainError):
    """The target cannot do what was asked, or has stopped answering."""


class ModelInfo(NamedTuple):
    """Answer to HELLO. Memory in bytes; 0 where the host has no such number."""

    name: str
    board: str
    digest: int  # CRC-32 of the compiled graph
    height: int
    width: int
    channels: int
    classes: int
    arena_bytes: int
    data_bytes: int
    bss_bytes: int
    stack_bytes: int  # reserved
    clock_hz: int
    params: int  # trained parameter arrays

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class Inference(NamedTuple):
    predicted: int
    logits: NDArray[np.float32]  # (classes,)
    cycles: int


class TrainResult(NamedTuple):
    """One training step; loss and prediction are of before the update."""

    loss: float
    predicted: int
    cycles: int


class TrainLog(NamedTuple):
    """Many training steps, in order; each array has one entry a step."""

    loss: NDArray[np.float32]
    predicted: NDArray[np.uint16]
    cycles: NDArray[np.uint32]


class Stats(NamedTuple):
    steps: int  # training steps since reset
    evaluated: int  # images evaluated since reset, and how many of them were right
    correct: int
    train_cycles: int  # of the newest step
    infer_cycles: int
    stack_used: int  # deepest stack since boot, in bytes
    loss: float  # of the newest step
    learning_rate: float


class Target(ABC):
    """A place where one compiled model lives and learns. Use as a context manager, or call ``close()``."""

    @abstractmethod
    def hello(self) -> ModelInfo:
        """Facts about the model and the board."""

    @abstractmethod
    def infer(self, image: Image) -> Inference: ...

    @abstractmethod
    def train(self, image: Image, label: int) -> TrainResult:
        """One step at batch size 1: forward, loss, backward, update."""

    @abstractmethod
    def predict(self, image: Image, label: int) -> int:
        """Predicted class of one image, counted in ``stats()`` as right or wrong."""

    @abstractmethod
    def set_learning_rate(self, rate: float) -> None: ...

    @abstractmethod
    def stats(self) -> Stats: ...

    @abstractmethod
    def read_params(self) -> dict[str, NDArray[np.uint8]]:
        """Every trained parameter array by name, as its raw bytes in memory (little endian)."""

    @abstractmethod
    def write_params(self, params: Mapping[str, NDArray[np.uint8]]) -> None:
        """The reverse of ``read_params``, for some or all arrays; nothing else changes. Raises TargetError, before
        anything is written, for a name or a size that the model does not have."""

    @abstractmethod
    def save(self) -> int:
        """Keep parameters and training state in flash; returns the number of the copy, 1 for the first. A power cut
        meanwhile leaves the copy before. Raises TargetError if a slot is too small or flash fails."""

    @abstractmethod
    def load(self) -> int:
        """Back to the newest good copy, exactly: training goes on as if there had been no break. Returns its number.
        Raises TargetError if there is none."""

    @abstractmethod
    def reset(self) -> None:
        """Parameters and step count as first flashed; evaluation counts to 0. The learning rate stays."""

    @abstractmethod
    def close(self) -> None: ...

    def evaluate(self, images: Image, labels: Labels, progress: Progress | None = None) -> float:
        """Accuracy in 0..1 on int8 images (N, height, width, channels)."""
        self._check_batch(images, labels)
        correct = 0
        for image, label in zip(images, labels, strict=True):
            correct += self.predict(image, int(label)) == int(label)
            if progress:
                progress(1)
        return correct / len(labels)

    def train_many(self, images: Image, labels: Labels, progress: Progress | None = None) -> TrainLog:
        """One training step an image, in the order given."""
        self._check_batch(images, labels)
        results = []
        for image, label in zip(images, labels, strict=True):
            results.append(self.train(image, int(label)))
            if progress:
                progress(1)
        loss, predicted, cycles = zip(*results, strict=True)
        return TrainLog(np.array(loss, np.float32), np.array(predicted, np.uint16), np.array(cycles, np.uint32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_batch(self, images: Image, labels: Labels) -> None:
        if len(images) != len(labels) or len(images) == 0:
            raise TargetError(f"need as many images as labels, and at least one: got {len(images)} and {len(labels)}")


def check_image(image: Image, info: ModelInfo) -> Image:
    """The image, contiguous. Raises TargetError if dtype or shape are not the model's."""
    array = np.ascontiguousarray(image)
    if array.dtype != np.int8 or array.shape != info.image_shape:
        raise TargetError(
            f"{info.name} takes an int8 image of shape {info.image_shape}, got {array.dtype} {array.shape}; "
            "quantize the image with the model's quantize_image"
        )
    return array


def check_label(label: int, info: ModelInfo) -> int:
    if not 0 <= label < info.classes:
        raise TargetError(f"label {label} is not a class of {info.name}: they are 0..{info.classes - 1}")
    return int(label)


def check_params(
    params: Mapping[str, NDArray[np.uint8]], known: Mapping[str, NDArray[np.uint8]]
) -> Iterator[tuple[int, bytes]]:
    """(index, bytes) of each array to write; ``known`` is what ``read_params`` gives. Raises TargetError first."""
    names = list(known)
    for name, content in params.items():
        if name not in known:
            raise TargetError(f"the model has no trained parameter '{name}'; it has {', '.join(names)}")
        if content.nbytes != known[name].nbytes:
            raise TargetError(f"'{name}' has {known[name].nbytes} bytes, got {content.nbytes}: is it another model's?")
    return ((names.index(name), content.tobytes()) for name, content in params.items())
