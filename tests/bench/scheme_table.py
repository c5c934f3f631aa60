"""Accuracy against peak SRAM for every kind of update scheme, in mini-batches and on the device.

    python tests/bench/scheme_table.py [--seeds 3] [--jobs 2]     about 3 CPU hours; resumes where it broke off

MCUNet-5FPS with a head of zeros learns the CIFAR-10 subset: 50 images a class, 10 epochs, SGD+QAS. `int8` is the
simulation in batches of 8 with float gradients; `device` the compiled step on the host target, one image at a time.
Learning rates are chosen row by row on 500 validation images with seed 0: for `int8` from a grid of factors of two,
which grows until its best is not at its edge; for `device` an eighth or a quarter of that, as a batch of 8 averages
eight gradients which the device applies one after the other. SRAM is the memory planner's. `searched-X` is the exact
search's answer to the SRAM of preset X, or to X KB, from the gains in course/results/mcunet-analysis.json. The last
row is the ceiling: everything learns, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from experiment import (
    FIGURES,
    RESULTS,
    ROOT,
    SHARED,
    Row,
    Runs,
    Task,
    best_rate,
    cell,
    final,
    options,
    print_table,
    rate_of,
    write_markdown,
)
from rich.progress import Progress

from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.files import write_text
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.plots import new_figure, write_figure
from tinytrain_lite.sparse.analysis import Analysis
from tinytrain_lite.sparse.presets import find_scheme
from tinytrain_lite.sparse.price import Pricer, parse_bytes
from tinytrain_lite.sparse.search import run_search
from tinytrain_lite.sparse.space import Space
from tinytrain_lite.train.trainer import Recipe

MODEL = "mcunet-5fps"
ANALYSIS = RESULTS / "mcunet-analysis.json"
PRESETS = ("49kb", "74kb", "99kb", "124kb", "148kb")
BUDGETS = ("116KB", "128KB", "136KB")  # below the cheapest preset
GENERAL = ("last", "last-6", "last-12", "bias", "full")
MODES = ("int8", "device")
RATES = (0.01, 0.02)  # where a grid begins
DEVICE_SHARES = (1 / 8, 1 / 4)
LARGEST_GRID = 10
EVALUATIONS = 500  # schemes that exact search may price


class Deployed(Task):
    """Starts from a head of zeros, as `tinytrain` does: no gradient shakes the features before the head has learned."""

    def graph(self) -> Graph:
        return import_checkpoint(SHARED / "models" / f"{self.model}.pkl", len(self.data().train.classes))


@dataclass
class Line:
    """A row of the table. scheme: as `find_scheme` takes it; results: mode -> one run a seed."""

    scheme: str
    title: str
    sram: int
    results: dict[str, list[Row]]


def searched(pricer: Pricer) -> Iterator[tuple[str, str]]:
    """(title, YAML file) of the scheme searched for each budget and for the SRAM of each preset; made if not there."""
    space = Space(pricer.graph, Analysis.load(ANALYSIS))
    budgets = {name: parse_bytes(name) for name in BUDGETS}
    budgets |= {name: pricer.price(find_scheme(MODEL, name)) for name in PRESETS}
    for title, budget in budgets.items():
        path = RESULTS / f"searched-{title}.yaml"
        name = str(path.relative_to(ROOT))
        if not path.exists():
            result = run_search("exact", space, pricer, budget, EVALUATIONS)
            write_text(path, replace(result.scheme, name=name).to_yaml())  # a run is known by its scheme's name
        yield f"searched-{title}", name


def main() -> None:
    arguments = options(__doc__.splitlines()[0], epochs=10, per_class=50)
    runs = Runs(arguments.results / "scheme_table.jsonl", arguments.jobs)
    tasks = [Deployed(MODEL, "cifar10-subset", seed, arguments.per_class) for seed in range(arguments.seeds)]
    pricer = Pricer(tasks[0].graph())
    names = [*((name, name) for name in (*PRESETS, *GENERAL)), *searched(pricer)]
    lines = [Line(name, title, pricer.price(find_scheme(MODEL, name)), {}) for title, name in names]
    lines.sort(key=lambda line: line.sram)
    memory = load_board(DEFAULT_BOARD).ram.bytes
    with Progress() as progress:
        batches = Recipe("int8", epochs=arguments.epochs, batch=8)
        device = replace(batches, mode="device", batch=1, memory="fraction8")
        float32 = replace(batches, mode="fp32", optimizer="sgd")
        best = grown(runs, tasks[0], [line.scheme for line in lines], batches, progress)
        grids = {line.scheme: [best[line.scheme] * share for share in DEVICE_SHARES]
                 for line in lines if line.sram <= memory}  # fmt: skip
        results = {
            "int8": repeated(runs, tasks, best, batches, progress),
            "device": repeated(runs, tasks, tried(runs, tasks[0], grids, device, progress), device, progress),
        }
        ceiling = repeated(runs, tasks, grown(runs, tasks[0], ["full"], float32, progress), float32, progress)["full"]
    for line in lines:
        line.results = {mode: by_scheme[line.scheme] for mode, by_scheme in results.items() if line.scheme in by_scheme}
    print_table(f"{MODEL}, CIFAR-10 subset: test accuracy in %", cells(lines, ceiling))
    write_markdown(RESULTS / "scheme_table.md", cells(lines, ceiling))
    draw(lines, memory)


def tried(
    runs: Runs, task: Task, grids: Mapping[str, Sequence[float]], plain: Recipe, progress: Progress
) -> dict[str, float]:
    """Scheme -> best learning rate of its grid."""
    work = {s: [(task, s, replace(plain, learning_rate=rate)) for rate in grid] for s, grid in grids.items()}
    return {scheme: best_rate(rows) for scheme, rows in runs.groups(work, progress).items()}


def grown(runs: Runs, task: Task, schemes: Sequence[str], plain: Recipe, progress: Progress) -> dict[str, float]:
    """Scheme -> best learning rate: its grid is extended downwards or upwards as long as the best is at that edge."""
    grids = {scheme: sorted(RATES) for scheme in schemes}
    best: dict[str, float] = {}
    while grids:
        best |= tried(runs, task, grids, plain, progress)
        for scheme, grid in list(grids.items()):
            if grid[0] < best[scheme] < grid[-1] or len(grid) == LARGEST_GRID:
                del grids[scheme]
            else:
                grids[scheme] = sorted([*grid, grid[0] / 2 if best[scheme] == grid[0] else grid[-1] * 2])
    return best


def repeated(
    runs: Runs, tasks: Sequence[Task], rates: Mapping[str, float], plain: Recipe, progress: Progress
) -> dict[str, list[Row]]:
    """Scheme -> one run a task, at the learning rate of the scheme."""
    work = {s: [(task, s, replace(plain, learning_rate=rate)) for task in tasks] for s, rate in rates.items()}
    return runs.groups(work, progress)


def cells(lines: Sequence[Line], ceiling: Sequence[Row]) -> list[list[str]]:
    """The table, header first."""
    result = [["scheme", "peak SRAM, B", "batch 8", "rate", "device, batch 1", "rate"]]
    for line in lines:
        row = [line.title, f"{line.sram:,}"]
        for mode in MODES:
            rows = line.results.get(mode)
            row += [cell(rows), rate_of(rows)] if rows else ["does not fit", "-"]
        result.append(row)
    return [*result, ["full, fp32", "-", cell(ceiling), rate_of(ceiling), "-", "-"]]


def draw(lines: list[Line], memory: int) -> None:
    """Mean accuracy against SRAM; published schemes and searched ones are joined by lines."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    for mode, style, marker in (("int8", "-", "o"), ("device", ":", "x")):
        for family, colour in (("searched", "#0072B2"), ("published", "#E69F00"), ("general", "#666666")):
            chosen = [line for line in lines if mode in line.results and family == family_of(line.title)]
            points = [(line.sram / 1024, mean(line.results[mode])) for line in chosen]
            axes.plot(*zip(*points, strict=True), linestyle=style if family != "general" else "none", color=colour,
                      marker=marker, label=f"{family}, {'batch 8' if mode == 'int8' else mode}")  # fmt: skip
            if mode == "int8" and family != "searched":
                for line, point in zip(chosen, points, strict=True):
                    axes.annotate(line.title, point, xytext=(4, -9), textcoords="offset points", fontsize=7)
    axes.axvline(memory / 1024, color="#D55E00", linewidth=0.8, label="SRAM of the board")
    axes.set(xlabel="peak SRAM (KB)", ylabel="test accuracy (%)", xscale="log")
    axes.set_xticks([100, 150, 200, 320, 500, 1000, 2000], labels=["100", "150", "200", "320", "500", "1000", "2000"])
    axes.legend(fontsize=7)
    write_figure(figure, FIGURES / "scheme_table.svg")


def mean(rows: Sequence[Row]) -> float:
    """Test accuracy in percent over the sound runs."""
    return float(np.mean([100 * final(row, "test") for row in rows if row["status"] == "ok"]))


def family_of(title: str) -> str:
    return "searched" if title.startswith("searched") else "published" if title in PRESETS else "general"


if __name__ == "__main__":
    main()
