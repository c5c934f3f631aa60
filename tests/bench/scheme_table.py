"""Accuracy against peak SRAM for every kind of update scheme, in mini-batches and on the device.

    python tests/bench/scheme_table.py [--seeds 1] [--jobs 2]     about 3 CPU hours a seed; resumes where it broke off

MCUNet-5FPS learns the CIFAR-10 subset: 50 images a class, 10 epochs, SGD+QAS, each row at its own learning rate from
one grid, chosen on 500 validation images with seed 0. `int8` is the simulation in batches of 8 with float gradients;
`device` the compiled step on the host target, one image at a time. SRAM is the memory planner's. `searched-X` is the
exact search's answer to the SRAM of preset X, from the gains in course/results/mcunet-analysis.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiment import FIGURES, RESULTS, ROOT, Row, Runs, Task, best_rate, cell, final, options
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.files import write_text
from tinytrain_lite.sparse.analysis import Analysis
from tinytrain_lite.sparse.presets import find_scheme
from tinytrain_lite.sparse.price import Pricer
from tinytrain_lite.sparse.search import run_search
from tinytrain_lite.sparse.space import Space
from tinytrain_lite.train.trainer import Recipe

MODEL = "mcunet-5fps"
ANALYSIS = RESULTS / "mcunet-analysis.json"
PRESETS = ("49kb", "74kb", "99kb", "124kb", "148kb")
GENERAL = ("last", "last-6", "last-12", "bias", "full")
# A batch of 8 averages eight gradients that the device applies one after the other: its grid lies lower.
RATES = {"int8": (0.005, 0.01, 0.02, 0.04), "device": (0.00125, 0.0025, 0.005, 0.01)}
EVALUATIONS = 60  # schemes that exact search may price


@dataclass
class Line:
    """A row of the table. scheme: as `find_scheme` takes it; results: mode -> (learning rate, one run a seed)."""

    scheme: str
    title: str
    sram: int
    results: dict[str, tuple[float, list[Row]]]


def searched(pricer: Pricer) -> Iterator[tuple[str, str]]:
    """(title, YAML file) of the scheme searched for the SRAM of each preset; made if it is not there."""
    if not ANALYSIS.exists():
        return
    space = Space(pricer.graph, Analysis.load(ANALYSIS))
    for preset in PRESETS:
        path = RESULTS / f"searched-{preset}.yaml"
        name = str(path.relative_to(ROOT))
        if not path.exists():
            budget = pricer.price(find_scheme(MODEL, preset))
            result = run_search("exact", space, pricer, budget, EVALUATIONS)
            write_text(path, replace(result.scheme, name=name).to_yaml())  # a run is known by its scheme's name
        yield f"searched-{preset}", name


def main() -> None:
    arguments = options(__doc__.splitlines()[0], epochs=10, per_class=50)
    runs = Runs(arguments.results / "scheme_table.jsonl", arguments.jobs)
    tasks = [Task(MODEL, "cifar10-subset", seed, arguments.per_class) for seed in range(arguments.seeds)]
    pricer = Pricer(tasks[0].graph())
    names = [*((name, name) for name in (*PRESETS, *GENERAL)), *searched(pricer)]
    lines = [Line(name, title, pricer.price(find_scheme(MODEL, name)), {}) for title, name in names]
    lines.sort(key=lambda line: line.sram)
    memory = load_board(DEFAULT_BOARD).ram.bytes
    with Progress() as progress:
        for mode, rates in RATES.items():
            plain = Recipe(mode, epochs=arguments.epochs, batch=1 if mode == "device" else 8,
                           memory="fraction8" if mode == "device" else "fp32")  # fmt: skip
            for line in lines:
                if mode == "device" and line.sram > memory:
                    continue
                tried = [(tasks[0], line.scheme, replace(plain, learning_rate=rate)) for rate in rates]
                rate = best_rate(runs.get(tried, progress))
                chosen = [(task, line.scheme, replace(plain, learning_rate=rate)) for task in tasks]
                line.results[mode] = rate, runs.get(chosen, progress)
    Console().print(table(lines, arguments.seeds))
    draw(lines, memory)


def table(lines: list[Line], seeds: int) -> Table:
    result = Table(title=f"{MODEL}, CIFAR-10 subset: test accuracy in %, {seeds} seed{'s'[: seeds > 1]}")
    for head in ("scheme", "peak SRAM", "int8, batch 8", "rate", "device, batch 1", "rate"):
        result.add_column(head, justify="left" if head == "scheme" else "right")
    for line in lines:
        cells = [(cell(rows), f"{rate:g}") for rate, rows in line.results.values()]
        cells += [("does not fit", "-")] * (len(RATES) - len(cells))
        result.add_row(line.title, f"{line.sram:,}", *(text for pair in cells for text in pair))
    return result


def draw(lines: list[Line], memory: int) -> None:
    """Accuracy against SRAM; published schemes and searched ones are joined by lines."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for mode, style in (("int8", "-"), ("device", ":")):
        for family, colour in (("searched", "#0072B2"), ("published", "#E69F00"), ("general", "#999999")):
            chosen = [line for line in lines if mode in line.results and family == family_of(line.title)]
            points = [(line.sram / 1024, 100 * final(line.results[mode][1][0], "test")) for line in chosen]
            if points:
                axes.plot(*zip(*points, strict=True), style if family != "general" else "", color=colour,
                          marker="o" if mode == "int8" else "x", label=f"{family}, {mode}")  # fmt: skip
            for line, point in zip(chosen, points, strict=True):
                if mode == "int8":
                    axes.annotate(line.title, point, xytext=(3, 4), textcoords="offset points", fontsize=6)
    axes.axvline(memory / 1024, color="#D55E00", linewidth=0.8, label="SRAM of the board")
    axes.set(xlabel="peak SRAM (KB)", ylabel="test accuracy (%)", xscale="log")
    axes.legend(fontsize=7)
    figure.savefig(FIGURES / "scheme_table.svg", metadata={"Date": None})


def family_of(title: str) -> str:
    return "searched" if title.startswith("searched") else "published" if title in PRESETS else "general"


if __name__ == "__main__":
    main()
