"""The QAS table: fp32 SGD, int8 SGD, int8 LARS, int8 Adam and int8 SGD+QAS on MCUNet-5FPS, last two blocks and head.

    python tests/bench/qas_table.py [--jobs 2]        about 60 CPU minutes; resumes where it broke off

Every row gets its own learning rate from one grid, 10^-4 ... 10^4 in half decades, chosen on 500 validation
images with seed 0: whole decades first with a quarter of the epochs, then the half decades around the best in full.
Rows marked "float head" train the int8 network under a float head, as the paper's published code does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from experiment import (
    DATASETS,
    FIGURES,
    Row,
    Runs,
    Task,
    best_rate,
    cell,
    final,
    options,
    print_table,
    write_markdown,
)
from rich.progress import Progress

from tinytrain_lite.plots import new_figure, write_figure
from tinytrain_lite.train.trainer import Recipe

MODEL, SCHEME = "mcunet-5fps", "last-7"  # blocks 12 and 13, three layers each, and the head
DECADES = [10.0**k for k in range(-4, 5)]
AROUND = [10.0**k for k in (-1, -0.5, 0, 0.5, 1)]


@dataclass(frozen=True)
class Method:
    """A row of the table; the paper's accuracy in percent: mean of its eight data sets, and CIFAR-10."""

    name: str
    recipe: Recipe
    paper_mean: float | None = None
    paper_cifar10: float | None = None


def methods(epochs: int) -> list[Method]:
    """Momentum 0.9 and a tenth of the steps as warm-up are the paper's published settings for this comparison."""
    sgd = Recipe("int8", "sgd", epochs=epochs, batch=16, momentum=0.9, warmup=0.1)
    lars, adam = replace(sgd, optimizer="lars"), replace(sgd, optimizer="adam", momentum=0.0)
    return [
        Method("fp32 SGD", replace(sgd, mode="fp32"), 73.3, 86.0),
        Method("int8 SGD", sgd, 64.9, 75.4),
        Method("int8 LARS", lars, 39.8, 64.8),
        Method("int8 Adam", adam, 71.8, 84.5),
        Method("int8 SGD+QAS", replace(sgd, optimizer="sgd+qas"), 73.5, 86.9),
        Method("int8 SGD, float head", replace(sgd, head_scaled=True)),
        Method("int8 Adam, float head", replace(adam, head_scaled=True)),
    ]


def search(runs: Runs, method: Method, task: Task, progress: Progress) -> float:
    """The learning rate for a method on a data set."""
    short = replace(method.recipe, epochs=max(1, method.recipe.epochs // 4))
    coarse = best_rate(runs.get([(task, SCHEME, replace(short, learning_rate=r)) for r in DECADES], progress))
    grid = [float(f"{coarse * step:.3g}") for step in AROUND]
    return best_rate(runs.get([(task, SCHEME, replace(method.recipe, learning_rate=r)) for r in grid], progress))


def plot(results: dict[str, dict[str, list[Row]]]) -> None:
    """Bars of the mean with the spread of the seeds, written as an SVG."""
    figure = new_figure(8, 3.6)
    axes = figure.subplots()
    width = 0.8 / len(results)
    for i, (name, by_set) in enumerate(results.items()):
        values = [[100 * final(row, "test") for row in by_set[d] if row["status"] == "ok"] or [0.0] for d in DATASETS]
        axes.bar(
            np.arange(len(DATASETS)) + i * width, [np.mean(v) for v in values], width, label=name,
            yerr=[np.std(v, ddof=1) if len(v) > 1 else 0 for v in values],
        )  # fmt: skip
    axes.set_xticks(np.arange(len(DATASETS)) + 0.4 - width / 2, DATASETS)
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7, ncol=2, loc="lower right")
    write_figure(figure, FIGURES / "qas_table.svg")


def main() -> None:
    arguments = options(__doc__.splitlines()[0], epochs=10, per_class=100)
    runs = Runs(arguments.results / "qas_table.jsonl", arguments.jobs)
    every = methods(arguments.epochs)
    results: dict[str, dict[str, list[Row]]] = {method.name: {} for method in every}
    rates: dict[str, list[str]] = {method.name: [] for method in every}
    with Progress() as progress:
        for dataset in DATASETS:
            tasks = [Task(MODEL, dataset, seed, arguments.per_class) for seed in range(arguments.seeds)]
            for method in every:
                rate = search(runs, method, tasks[0], progress)
                chosen = [(t, SCHEME, replace(method.recipe, learning_rate=rate, seed=t.seed)) for t in tasks]
                results[method.name][dataset] = rows = runs.get(chosen, progress)
                rates[method.name].append(f"{rate:g}")
                progress.console.print(f"{dataset:16} {method.name:22} rate {rate:<8g} {cell(rows)}")
    header = ["method", *DATASETS, "mean", "paper, mean of 8", "paper, CIFAR-10", "learning rates"]
    table = [header]
    for method in every:
        by_set = results[method.name]
        sound = [final(row, "test") for rows in by_set.values() for row in rows]
        mean = f"{100 * np.mean(sound):.1f}" if min(sound) >= 0 else "-"
        paper = [f"{p:.1f}" if p is not None else "" for p in (method.paper_mean, method.paper_cifar10)]
        table.append([method.name, *map(cell, by_set.values()), mean, *paper, ", ".join(rates[method.name])])
    print_table(f"{MODEL}, {SCHEME}: test accuracy in %, {arguments.seeds} seeds", table)
    write_markdown(arguments.results / "qas_table.md", table)
    plot(results)


if __name__ == "__main__":
    main()
