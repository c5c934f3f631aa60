"""What is trained, and on what: a model and a data set by the names a user gives, made to fit each other."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.compiler import Program, compile_program
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.quantize import calibrate, quantize, quantize_image
from tinytrain_lite.sparse.presets import find_scheme
from tinytrain_lite.train import datasets

Shape = tuple[int, int, int]  # height, width, channels

DEMO = "demo"
CALIBRATION_IMAGES = 100  # ranges of activations
GRADIENT_IMAGES = 8  # first exponents of gradients


@dataclass(frozen=True)
class Workload:
    """A forward graph and images of exactly its shape; uint8, split into training, validation and test."""

    graph: Graph
    data: datasets.Split

    def compile(
        self, scheme: str, rule: UpdateRule | None = None, observe: Callable[[str, Graph], None] | None = None
    ) -> Program:
        """Compile for training under a scheme (see `find_scheme`)."""
        known = self.data.train.take(np.arange(min(GRADIENT_IMAGES, len(self.data.train))))
        chosen = find_scheme(self.graph.name, scheme)
        return compile_program(self.graph, chosen, quantize_image(known.images), known.labels, rule, observe)


def prepare(
    model: str, data: datasets.Dataset, *, per_class: int, held_out: int, size: int | None = None, seed: int = 0
) -> Workload:
    """Load a model with a fresh head for the classes of `data`, and split the images, fitted to the model.

    model: "demo", a checkpoint of the paper (*.pkl), or `file.py:function` / `module:function` that returns an
    nn.Module; `size` is the height and width of the images such a module takes (default: as they are).
    Raises TinyTrainError (of the kind that fits) if something is missing or does not fit.
    """
    parts = datasets.split(data, per_class, held_out, seed)
    classes = len(data.classes)
    if model.endswith(".pkl"):
        graph = import_checkpoint(Path(model), classes)
        return Workload(graph, _fit(parts, graph.image.shape))
    height, width, channels = data.images.shape[1:]
    shape = (height, width, channels) if size is None else (size, size, channels)
    from tinytrain_lite.frontend.torch_export import import_module

    module, name, shape = _module(model, classes, shape)
    parts = _fit(parts, shape)
    layers = import_module(module, shape, name)
    return Workload(quantize(layers, calibrate(layers, parts.train.images[:CALIBRATION_IMAGES])), parts)


def outline(model: str, classes: int, shape: Shape) -> Graph:
    """The graph of a model without data, for images of `shape` (H, W, C): enough to plan memory, not to run.

    Shapes are right; the ranges of activations are those of noise. `model` and errors as for `prepare`.
    """
    if model.endswith(".pkl"):
        return import_checkpoint(Path(model), classes)
    from tinytrain_lite.frontend.torch_export import import_module

    module, name, shape = _module(model, classes, shape)
    layers = import_module(module, shape, name)
    noise = np.random.default_rng(0).integers(0, 256, (8, *shape)).astype(np.uint8)
    return quantize(layers, calibrate(layers, noise))


def _fit(parts: datasets.Split, shape: tuple[int, ...]) -> datasets.Split:
    return datasets.Split(*(_fit_images(d, shape) for d in (parts.train, parts.validation, parts.test)))


def _fit_images(data: datasets.Dataset, shape: tuple[int, ...]) -> datasets.Dataset:
    """Images of `shape` (H, W, C): a small black border, else resampled; grey becomes RGB by repetition."""
    height, width, channels = shape
    if data.images.shape[1:3] != (height, width):
        if height != width:
            raise UnsupportedError(f"the model takes {height}x{width} images; only square ones are supported")
        small_border = 0 <= height - data.images.shape[1] <= 4 and 0 <= width - data.images.shape[2] <= 4
        data = (datasets.pad if small_border else datasets.resize)(data, height)
    if data.images.shape[3] == 1 and channels == 3:
        data = datasets.Dataset(data.name, np.repeat(data.images, 3, axis=3), data.labels, data.classes)
    if data.images.shape[3] != channels:
        raise UnsupportedError(f"the model takes {channels} channels, {data.name} has {data.images.shape[3]}")
    return data


def _module(model: str, classes: int, shape: Shape) -> tuple[Any, str, Shape]:
    """The nn.Module of a model that is no checkpoint, a name for it, and the images it takes: the demo has its own."""
    if model != DEMO:
        return *_load_module(model), shape
    from tinytrain_lite.train.models import IMAGE_SIZE, load_pretrained, reset_head

    return reset_head(load_pretrained(), classes), DEMO, (IMAGE_SIZE, IMAGE_SIZE, 1)


def _load_module(spec: str) -> tuple[Any, str]:
    """Call `function` of `file.py:function` or `module:function`; returns the nn.Module and a name for it."""
    where, _, function = spec.rpartition(":")
    if not where:
        raise UnsupportedError(
            f"model '{spec}': expected {DEMO}, a checkpoint (*.pkl), or file.py:function that returns an nn.Module"
        )
    try:
        if where.endswith(".py"):
            source = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert source is not None and source.loader is not None
            namespace = importlib.util.module_from_spec(source)
            sys.modules[source.name] = namespace
            source.loader.exec_module(namespace)
        else:
            namespace = importlib.import_module(where)
        module = getattr(namespace, function)()
    except Exception as error:  # the user's own code may raise anything
        raise UnsupportedError(f"model '{spec}': {type(error).__name__}: {error}") from error
    if not hasattr(module, "state_dict"):
        raise UnsupportedError(f"model '{spec}' returns {type(module).__name__}; expected an nn.Module")
    return module, function
