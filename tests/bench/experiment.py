"""What the training experiments share: tasks on real data, and a file of runs that a broken-off experiment resumes.

Run from the repository's root. The paper's checkpoints and the CIFAR-10 subset are looked for in ../shared; where
they lie elsewhere, TINYTRAIN_SHARED says so.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.frontend.torch_export import import_module
from tinytrain_lite.graph import Graph
from tinytrain_lite.quantize import calibrate, quantize
from tinytrain_lite.sparse.presets import find_scheme
from tinytrain_lite.toolchain import cache_dir
from tinytrain_lite.train import datasets
from tinytrain_lite.train.models import IMAGE_SIZE, load_pretrained, reset_head
from tinytrain_lite.train.trainer import Recipe, train

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TINYTRAIN_SHARED", ROOT.parent / "shared"))
RESULTS = ROOT / "course" / "results"
FIGURES = ROOT / "course" / "figures"
DATASETS = ("cifar10-subset", "mnist", "fashion-mnist")
VALIDATION, TEST = 500, 2000
CALIBRATION_IMAGES = 100
SIZE = 128  # height and width of the paper's models' input

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A model ("demo" or one of the paper's), a data set fitted to it, and a seed for training images and head."""

    model: str
    dataset: str
    seed: int
    per_class: int = 100

    def graph(self) -> Graph:
        """The int8 graph with a small random head, as torch.nn.Linear would draw it: LARS cannot leave zero."""
        data = self.data()
        classes = len(data.train.classes)
        if self.model == "demo":
            layers = import_module(reset_head(load_pretrained(), classes), (IMAGE_SIZE, IMAGE_SIZE, 1), "demo")
            graph: Graph = quantize(layers, calibrate(layers, data.train.images[:CALIBRATION_IMAGES]))
        else:
            graph = import_checkpoint(SHARED / "models" / f"{self.model}.pkl", classes)
        head = graph.ops[-1].inputs["w"]
        assert head.data is not None and isinstance(head.scale, np.ndarray)
        bound = 1 / np.sqrt(head.shape[1])
        real = np.random.default_rng(1000 + self.seed).uniform(-bound, bound, head.shape)
        head.data = np.rint(real / head.scale[:, None]).astype(np.int8)
        return graph

    def data(self) -> datasets.Split:
        return _split(self.dataset, self.seed, self.per_class, self.model == "demo")


@functools.cache
def _split(name: str, seed: int, per_class: int, small: bool) -> datasets.Split:
    """Test and validation images are the same for every seed; the training images are not."""
    path = SHARED / "data" / "cifar10-subset.npz" if name == "cifar10-subset" else None
    pool = datasets.load(name, "train", path)
    order = np.random.default_rng(0).permutation(len(pool))
    if name == "mnist":  # has no test part of its own
        test, order = pool.take(order[:TEST]), order[TEST:]
    else:
        test = datasets.load(name, "test", path)
        test = test.take(np.random.default_rng(0).permutation(len(test))[:TEST])
    rest = pool.take(np.random.default_rng(seed).permutation(order[VALIDATION:]))
    chosen = np.concatenate([np.flatnonzero(rest.labels == c)[:per_class] for c in range(len(pool.classes))])
    parts = (rest.take(chosen), pool.take(order[:VALIDATION]), test)
    return datasets.Split(*((datasets.pad(part, IMAGE_SIZE) if small else _fit(part)) for part in parts))


def _fit(data: datasets.Dataset) -> datasets.Dataset:
    data = datasets.resize(data, SIZE)
    colour = np.repeat(data.images, 3, axis=3) if data.images.shape[3] == 1 else data.images
    return datasets.Dataset(data.name, colour, data.labels, data.classes)


def run(task: Task, scheme: str, recipe: Recipe) -> Row:
    """One run, as a row of the results file."""
    torch.set_num_threads(1)
    graph = task.graph()
    record = train(graph, find_scheme(task.model, scheme), task.data(), recipe, cache_dir() / "features")
    return {"task": asdict(task), **record.to_json()}


class Runs:
    """A JSON-lines file, one run a line. What is in it already is not run again."""

    def __init__(self, file: Path, jobs: int) -> None:
        self.file, self.jobs = file, jobs
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self.known: dict[str, Row] = {_key(row["task"], row["scheme"], row["recipe"]): row for row in rows}

    def get(self, work: Sequence[tuple[Task, str, Recipe]], progress: Progress | None = None) -> list[Row]:
        """The row of each run, running those that are missing."""
        keys = [_key(asdict(task), scheme, asdict(recipe)) for task, scheme, recipe in work]
        missing = {key: item for key, item in zip(keys, work, strict=True) if key not in self.known}
        calls = [joblib.delayed(_keyed)(key, *item) for key, item in missing.items()]
        bar = progress.add_task(work[0][0].dataset, total=len(calls)) if progress and calls else None
        for key, row in joblib.Parallel(n_jobs=self.jobs, return_as="generator_unordered")(calls):
            self.known[key] = row
            with self.file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            if progress and bar is not None:
                progress.advance(bar)
        if progress and bar is not None:
            progress.remove_task(bar)
        return [self.known[key] for key in keys]

    def groups(
        self, work: Mapping[str, Sequence[tuple[Task, str, Recipe]]], progress: Progress
    ) -> dict[str, list[Row]]:
        """`get` for each name; what is missing anywhere goes to the processes together."""
        self.get([item for items in work.values() for item in items], progress)
        return {name: self.get(items) for name, items in work.items()}


def _keyed(key: str, task: Task, scheme: str, recipe: Recipe) -> tuple[str, Row]:
    return key, run(task, scheme, recipe)


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)


def final(row: Row, part: str) -> float:
    """Accuracy at the end of a sound run; below every accuracy otherwise."""
    return row["accuracy"][part][-1] if row["status"] == "ok" else -1.0


def rate_of(rows: Sequence[Row]) -> str:
    """The learning rate that the runs of a cell share."""
    return f"{rows[0]['recipe']['learning_rate']:g}"


def best_rate(rows: Iterable[Row]) -> float:
    """Learning rate of the best validation accuracy; of equals the lowest."""
    top = max(rows, key=lambda row: (final(row, "validation"), -row["recipe"]["learning_rate"]))
    return top["recipe"]["learning_rate"]


def cell(rows: Sequence[Row]) -> str:
    """Test accuracy in percent, mean ± sd (n - 1); runs that are not sound are counted, never averaged."""
    good = np.array([100 * final(row, "test") for row in rows if row["status"] == "ok"])
    lost = [row["status"] for row in rows if row["status"] != "ok"]
    mean = f"{good.mean():.1f}" if len(good) else "-"
    spread = f" ± {good.std(ddof=1):.1f}" if len(good) > 1 else ""
    return mean + spread + (f" ({', '.join(lost)})" if lost else "")


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """The first row is the header."""
    table = Table(*rows[0], title=title)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=160).print(table)


def write_markdown(file: Path, rows: Sequence[Sequence[str]]) -> None:
    """The same as a Markdown table, for the chapter to include."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    file.write_text("\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n")


def options(description: str, epochs: int, per_class: int) -> argparse.Namespace:
    """The command line every experiment understands."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=int, default=1, help="processes (joblib)")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, default=per_class, help="training images of each class")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the runs' .jsonl file")
    return parser.parse_args()
