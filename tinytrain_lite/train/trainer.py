"""One call for every way to train: `train(graph, scheme, data, recipe)` -> `Record`.

mode `fp32` is the float twin, `int8` the mini-batch simulation with float gradients, `device` the compiled step.
A run that blew up or learned nothing says so in its record's `status` (verdict.py); `mean_accuracy` counts only
runs that are sound and `best` never chooses another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
import torch
from torch.nn import functional as F

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.errors import TinyTrainError, UnsupportedError
from tinytrain_lite.graph import Graph
from tinytrain_lite.ops.numerics import UPDATE_ROUNDINGS
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.train.datasets import Split
from tinytrain_lite.train.features import Features, frontier_features
from tinytrain_lite.train.int8 import Defects, FloatNetwork, Int8Network, Network
from tinytrain_lite.train.optimizers import Optimizer, cosine
from tinytrain_lite.train.verdict import verdict

__all__ = ["MODES", "Recipe", "Record", "best", "mean_accuracy", "train", "train_rates"]

MODES = ("fp32", "int8", "device")
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Recipe:
    """How to train; everything a run depends on beside graph, scheme and data.

    warmup: share of the steps in which the rate rises; it then falls to 0 as a cosine.
    memory, head_scaled: see `Optimizer`.  curve: evaluate after every epoch instead of after the last only.
    """

    mode: str = "int8"
    optimizer: str = "sgd+qas"
    learning_rate: float = 0.05
    epochs: int = 10
    batch: int = 8
    momentum: float = 0.0
    warmup: float = 0.0
    memory: str = "fp32"
    head_scaled: bool = False
    defects: Defects = field(default_factory=Defects)
    seed: int = 0
    curve: bool = False

    def __post_init__(self) -> None:
        """Raises UnsupportedError for a combination that means nothing."""

        def refuse(unless: bool, message: str) -> None:
            if not unless:
                raise UnsupportedError(f"mode '{self.mode}': {message}")

        refuse(self.mode in MODES, f"unknown; choose one of {', '.join(MODES)}")
        refuse(self.epochs >= 1 and self.batch >= 1, "needs at least one epoch and one image a batch")
        refuse(0 < self.learning_rate < math.inf, f"learning rate {self.learning_rate} is not positive and finite")
        if self.mode == "fp32":
            refuse(self.optimizer != "sgd+qas", "has no quantization scales; use optimizer 'sgd'")
            refuse(self.memory == "fp32" and self.defects == Defects(), "has neither update memory nor defects")
        if self.mode == "device":
            refuse(self.optimizer in ("sgd", "sgd+qas") and self.momentum == 0, "does plain sgd or sgd+qas")
            refuse(self.batch == 1, "takes one image at a time; set batch=1")
            refuse(self.memory in UPDATE_ROUNDINGS, f"memory must be one of {', '.join(UPDATE_ROUNDINGS)}")
            refuse(not self.head_scaled and self.defects == Defects(), "has neither a float head nor defects")


@dataclass
class Record:
    """What a run gave. Accuracies 0..1 by part ("validation", "test"), one entry an evaluation; losses per epoch.

    status: see `verdict`. A run stops where it diverges.
    """

    recipe: Recipe
    scheme: str
    status: str = "ok"
    losses: list[float] = field(default_factory=list)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def final(self, part: str) -> float:
        """Accuracy at the end; NaN for a run that is not ok, so that no sum can hide it."""
        return self.accuracy[part][-1] if self.status == "ok" else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries; a loss that is no number becomes None."""
        plain = asdict(self)
        plain["losses"] = [loss if math.isfinite(loss) else None for loss in self.losses]
        return plain


class Learner(Protocol):
    """What the training loop drives: a torch network, or a compiled program."""

    def step(self, chosen: np.ndarray, learning_rate: float) -> float:
        """Learn from the training images with these indices; returns their mean loss before the update."""

    def predict(self, part: str) -> np.ndarray:
        """Predicted class of each image of a part."""


class TorchLearner:
    """The suffix of a network on cached features of its frozen prefix."""

    def __init__(self, network: Network, data: Split, recipe: Recipe, cache: Path | None) -> None:
        self.network = network
        self.parts = ("train", "validation", "test")
        self.features = {part: frontier_features(network, getattr(data, part), cache) for part in self.parts}
        self.labels = torch.from_numpy(data.train.labels)
        self.optimizer = Optimizer(
            network, recipe.optimizer, recipe.momentum, recipe.memory, recipe.head_scaled, recipe.seed
        )

    def step(self, chosen: np.ndarray, learning_rate: float) -> float:
        loss = F.cross_entropy(self.network(_rows(self.features["train"], chosen)), self.labels[chosen])
        loss.backward()
        self.optimizer.step(learning_rate)
        return float(loss.detach())

    @torch.no_grad()
    def predict(self, part: str) -> np.ndarray:
        features = self.features[part]
        count = len(next(iter(features.values())))
        batches = (slice(start, start + EVALUATION_BATCH) for start in range(0, count, EVALUATION_BATCH))
        return np.concatenate([self.network(_rows(features, rows)).argmax(1).numpy() for rows in batches])


def _rows(features: Features, chosen: np.ndarray | slice) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array[chosen])) for name, array in features.items()}


def make_learner(graph: Graph, scheme: UpdateScheme, data: Split, recipe: Recipe, cache: Path | None = None) -> Learner:
    if recipe.mode == "device":
        from tinytrain_lite.train.device import DeviceLearner  # needs the C compiler; the other modes do not

        return DeviceLearner(graph, scheme, data, UpdateRule(recipe.memory, recipe.optimizer == "sgd+qas"))
    kind = FloatNetwork if recipe.mode == "fp32" else Int8Network
    return TorchLearner(kind(graph, scheme, recipe.defects), data, recipe, cache)


def train(
    graph: Graph, scheme: UpdateScheme, data: Split, recipe: Recipe, cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Record:  # fmt: skip
    """Train a forward graph under a scheme, and evaluate on the parts of `data` that hold images.

    cache: directory for features of frozen layers (see features.py).  progress: called with images done.
    """
    start = time.perf_counter()
    learner = make_learner(graph, scheme, data, recipe, cache)
    record = Record(recipe, scheme.name)
    rng = np.random.default_rng(recipe.seed)
    count = len(data.train)
    per_epoch = math.ceil(count / recipe.batch)
    steps = recipe.epochs * per_epoch
    step = 0
    for epoch in range(recipe.epochs):
        total = 0.0
        order = rng.permutation(count)
        for chosen in np.array_split(order, range(recipe.batch, count, recipe.batch)):
            rate = cosine(recipe.learning_rate, step, steps, round(recipe.warmup * steps))
            total += learner.step(chosen, rate) * len(chosen)
            step += 1
            if progress:
                progress(len(chosen))
            if not math.isfinite(total):
                break
        record.losses.append(total / count)
        if not math.isfinite(total):
            record.status = verdict(record.losses, ())
            break
        if recipe.curve or epoch == recipe.epochs - 1:
            _evaluate(learner, data, record)
    record.seconds = time.perf_counter() - start
    return record


def _evaluate(learner: Learner, data: Split, record: Record) -> None:
    predictions = []
    for part in ("validation", "test"):
        labels = getattr(data, part).labels
        if len(labels):
            predicted = learner.predict(part)
            record.accuracy.setdefault(part, []).append(float((predicted == labels).mean()))
            predictions.append((predicted, labels))
    record.status = verdict(record.losses, predictions)


def train_rates(
    graph: Graph, scheme: UpdateScheme, data: Split, recipe: Recipe, rates: Sequence[float],
    cache: Path | None = None, jobs: int = 1,
) -> list[Record]:  # fmt: skip
    """The same run at every learning rate; through joblib, so that a parallel backend takes it."""
    work = joblib.delayed(train)
    return joblib.Parallel(n_jobs=jobs)(
        work(graph, scheme, data, replace(recipe, learning_rate=rate), cache) for rate in rates
    )


def best(records: Iterable[Record], part: str = "validation") -> Record:
    """The sound run with the highest accuracy; of equals the lowest learning rate.

    Raises TinyTrainError, listing what became of each, if none is sound.
    """
    records = list(records)
    sound = [r for r in records if r.status == "ok"]
    if not sound:
        fates = ", ".join(f"{r.recipe.learning_rate:g} {r.status}" for r in records)
        raise TinyTrainError(f"no learning rate works ({fates}); try a range further down")
    return max(sound, key=lambda r: (r.final(part), -r.recipe.learning_rate))


def mean_accuracy(records: Iterable[Record], part: str = "test") -> tuple[float, float, int]:
    """Mean and standard deviation (n - 1) over the sound runs, and how many were not sound."""
    records = list(records)
    values = [r.final(part) for r in records if r.status == "ok"]
    mean = float(np.mean(values)) if values else math.nan
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return mean, spread, len(records) - len(values)
