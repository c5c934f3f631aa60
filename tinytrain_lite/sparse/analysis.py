"""Contribution analysis: what each bias and each slice of a weight adds to the accuracy after training.

Paper section 3.2 and figure 5. Every entry is one training run: same start, same images, same order:

    bias   k      the last k biases learn (and the head)
    weight i, r   fraction r of the input channels of weight i learns, and every bias from layer i on (and the head)

    gain of bias k       = accuracy(bias k) - accuracy(bias 1)        bias 1 is the head alone
    gain of weight i, r  = accuracy(weight i, r) - accuracy(the same biases without the weight)

The search assumes, as the paper does, that gains add up. Accuracies are counted on validation images, never on test
images. Layers in front of the first one that learns are computed once and kept (train/features.py).

A few hundred training images leave a gain uncertain by a point. So everything can be measured on several draws of the
images: a gain is then the mean of the differences within each draw, and their spread says how far to trust it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from tinytrain_lite.errors import TinyTrainError, UnsupportedError
from tinytrain_lite.files import write_text
from tinytrain_lite.graph import Graph
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.train.datasets import Split
from tinytrain_lite.train.trainer import Recipe, train

__all__ = ["RATIOS", "Analysis", "AnalysisError", "Entry", "analyze", "entries_of"]

FORMAT = 2  # of the JSON file
RATIOS = (0.125, 0.25, 0.5, 1.0)
HEAD: dict[str | int, float] = {-1: 1.0}  # the head always learns whole


class AnalysisError(TinyTrainError):
    """An analysis file that cannot be read, or that answers another question."""


@dataclass(frozen=True)
class Entry:
    """One thing to measure: the last `biases` biases, and perhaps a fraction `ratio` of the weight of `layer`."""

    biases: int
    layer: str | None = None
    ratio: float = 0.0

    @property
    def key(self) -> str:
        return f"bias {self.biases}" if self.layer is None else f"weight {self.layer} {self.ratio:g}"

    def scheme(self) -> UpdateScheme:
        chosen: dict[str | int, float] = {} if self.layer is None else {self.layer: self.ratio}
        return UpdateScheme(self.key, self.biases, chosen | HEAD)


@dataclass
class Analysis:
    """What was measured, and where.

    classes, shape: of the data set and of the images (H, W, C) as the model takes them.
    layers: every layer with a weight, in forward order, the head last.  images: validation images of a draw.
    draws: for each draw of the images, entry key -> accuracy 0..1, or None for a run that diverged or died.
    """

    model: str
    data: str
    classes: int
    shape: tuple[int, int, int]
    layers: list[str]
    images: int
    recipe: dict[str, Any]
    draws: list[dict[str, float | None]] = field(default_factory=list)

    # ---- gains ------------------------------------------------------------------------------
    def bias_gain(self, biases: int) -> float | None:
        """Accuracy that the last `biases` biases add to the head alone; None if a draw does not tell."""
        return _mean(self._differences(Entry(biases), Entry(1)))

    def weight_gain(self, layer: str, ratio: float) -> float | None:
        """Accuracy that a slice of a weight adds to the biases from its layer on; None if a draw does not tell."""
        return _mean(self._weight_differences(layer, ratio))

    def head_accuracy(self) -> float | None:
        """Of the head alone, over the draws."""
        return _mean([draw.get(Entry(1).key) for draw in self.draws])

    def _differences(self, entry: Entry, baseline: Entry) -> list[float | None]:
        pairs = [(draw.get(entry.key), draw.get(baseline.key)) for draw in self.draws]
        return [None if a is None or b is None else a - b for a, b in pairs]

    @property
    def standard_error(self) -> float:
        """A gain below it means little. With several draws: of a weight's gain, pooled over all of them. With one: of
        an accuracy, from the number of images alone."""
        if len(self.draws) > 1:
            gains = [self._weight_differences(layer, ratio) for layer in self.layers for ratio in RATIOS]
            if known := [gain for gain in gains if None not in gain]:
                return math.sqrt(float(np.mean(np.var(np.array(known, float), axis=1, ddof=1))) / len(self.draws))
        accuracies = [a for draw in self.draws for a in draw.values() if a is not None]
        mean = sum(accuracies) / len(accuracies) if accuracies else 0.5
        return math.sqrt(mean * (1 - mean) / self.images)

    def _weight_differences(self, layer: str, ratio: float) -> list[float | None]:
        biases = len(self.layers) - self.layers.index(layer)
        return self._differences(Entry(biases, layer, ratio), Entry(biases))

    # ---- file -------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Analysis:
        """Raises AnalysisError if the file is missing or is not an analysis."""
        try:
            content = json.loads(path.read_text("utf-8"))
            if content.pop("format") != FORMAT:
                raise AnalysisError(f"{path}: this version reads format {FORMAT}; run `tinytrain analyze` again")
            return cls(**content | {"shape": tuple(content["shape"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnalysisError(f"{path} is not a file of `tinytrain analyze`: {error}") from None


def _mean(values: Sequence[float | None]) -> float | None:
    """None if there is nothing, or if one is missing: a mean over fewer draws cannot be compared with the others."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _image_shape(graph: Graph) -> tuple[int, int, int]:
    height, width, channels = graph.image.shape
    return height, width, channels


def entries_of(graph: Graph, depth: int | None = None) -> list[Entry]:
    """Everything to measure on the last `depth` layers (all by default), deepest first.

    In that order the features of one entry are computed from those of an earlier one. The head learns in every
    entry, so it has none of its own. Of ratios that select equally many channels only the smallest is kept.
    Raises UnsupportedError if the network has fewer layers than `depth`.
    """
    ops = [op for op in graph if "w" in op.inputs]
    depth = len(ops) if depth is None else depth
    if not 1 <= depth <= len(ops):
        raise UnsupportedError(f"{graph.name} has {len(ops)} layers; the last {depth} cannot be analysed")
    entries = []
    for biases in range(depth, 0, -1):
        op = ops[-biases]
        entries.append(Entry(biases))
        if biases > 1:
            channels = op.inputs["w"].shape[-1 if op.kind == "conv2d" else 0]  # depthwise: one filter a channel
            smallest = {max(1, round(channels * ratio)): ratio for ratio in reversed(RATIOS)}
            entries += [Entry(biases, op.name, ratio) for ratio in sorted(smallest.values())]
    return entries


def analyze(
    graph: Graph, draws: Sequence[Split], recipe: Recipe, path: Path, depth: int | None = None, jobs: int = 1,
    cache: Path | None = None, progress: Callable[[int, int], None] | None = None,
) -> Analysis:  # fmt: skip
    """Measure every entry on every draw that `path` does not hold yet, and write the file after each.

    draws: of one data set; train is learned from, validation counted on, test not looked at. Draw i trains with seed
    recipe.seed + i.  depth: see `entries_of`.
    jobs: joblib's n_jobs; `with dask_cluster(address)` around the call (cluster.py) moves the work to a cluster.
    progress: called with (runs done, runs in all).
    Raises AnalysisError if `path` holds an analysis made with other settings.
    """
    result = Analysis(
        model=graph.name,
        data=draws[0].train.name,
        classes=len(draws[0].train.classes),
        shape=_image_shape(graph),
        layers=[op.name for op in graph if "w" in op.inputs],
        images=len(draws[0].validation),
        recipe=asdict(recipe),
    )
    if path.exists():
        known = Analysis.load(path)
        if replace(known, draws=[]) != result:
            raise AnalysisError(f"{path} was measured with another model, data set or recipe; choose another file")
        result = known
    result.draws += [{} for _ in range(len(draws) - len(result.draws))]
    entries = entries_of(graph, depth)
    missing = [(i, entry) for i in range(len(draws)) for entry in entries if entry.key not in result.draws[i]]
    total = len(draws) * len(entries)
    done = total - len(missing)
    for i, key, accuracy in _measure_all(graph, draws, recipe, missing, jobs, cache):
        result.draws[i][key] = accuracy
        result.save(path)
        done += 1
        if progress:
            progress(done, total)
    return result


def _measure_all(
    graph: Graph,
    draws: Sequence[Split],
    recipe: Recipe,
    missing: Sequence[tuple[int, Entry]],
    jobs: int,
    cache: Path | None,
) -> Iterator[tuple[int, str, float | None]]:
    work = joblib.delayed(_measure)
    calls = (work(graph, draws[i], recipe, i, entry, cache) for i, entry in missing)
    yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(calls)


def _measure(
    graph: Graph, data: Split, recipe: Recipe, draw: int, entry: Entry, cache: Path | None
) -> tuple[int, str, float | None]:
    unseen = replace(data, test=data.test.take(np.arange(0)))
    record = train(graph, entry.scheme(), unseen, replace(recipe, seed=recipe.seed + draw), cache)
    return draw, entry.key, record.final("validation") if record.status == "ok" else None
