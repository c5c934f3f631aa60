"""What a suite flashes: a compiled model with its images, or one C file with patterns made on the spot."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.target.base import Image, ModelInfo

PATTERNS_TRAIN, PATTERNS_TEST = 200, 100
NOISE = 24  # standard deviation, in int8 steps, around patterns that use the whole range


@dataclass(frozen=True)
class LabImages:
    """int8 images (N, height, width, channels) and labels (N,), to train on and to test with."""

    train: Image
    train_labels: np.ndarray
    test: Image
    test_labels: np.ndarray


@functools.cache
def compile_named(
    model: str, scheme: str, dataset: str, per_class: int, held_out: int
) -> tuple[dict[str, str], LabImages]:
    """The C files of a model, by name, and its images; once for all suites of a run. Raises as `prepare` does."""
    from tinytrain_lite.codegen import generate
    from tinytrain_lite.quantize import quantize_image
    from tinytrain_lite.train import datasets
    from tinytrain_lite.workload import prepare

    work = prepare(model, datasets.load(dataset), per_class=per_class, held_out=held_out)
    with tempfile.TemporaryDirectory() as folder:
        generate(work.compile(scheme), Path(folder))
        files = {path.name: path.read_text("utf-8") for path in Path(folder).iterdir()}
    train, test = work.data.train, work.data.test
    return files, LabImages(quantize_image(train.images), train.labels, quantize_image(test.images), test.labels)


def hand_written(source: Path, define: str) -> dict[str, str]:
    """A model in one C file, with a macro defined at its top. Raises UnsupportedError if it is not there."""
    try:
        text = source.read_text("utf-8")
    except OSError as error:
        raise UnsupportedError(f"model {source}: {error.strerror}") from None
    return {"model.c": (f"#define {define} 1\n" if define else "") + text}


def patterns(info: ModelInfo) -> LabImages:
    """A random image for each class of the model, and noise: a task that a linear layer learns. Seeded."""
    random = np.random.default_rng(0)
    prototypes = random.integers(-100, 101, (info.classes, *info.image_shape))

    def draw(count: int) -> tuple[Image, np.ndarray]:
        labels = random.integers(0, info.classes, count)
        noisy = prototypes[labels] + np.rint(random.normal(0, NOISE, (count, *info.image_shape)))
        return np.clip(noisy, -128, 127).astype(np.int8), labels

    return LabImages(*draw(PATTERNS_TRAIN), *draw(PATTERNS_TEST))
