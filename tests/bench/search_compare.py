"""Three ways to search an update scheme: best score by number of schemes priced, and the time of each.

    python tests/bench/search_compare.py [--preset 99kb] [--seeds 3] [--evaluations 1000]

MCUNet-5FPS, gains from course/results/mcunet-analysis.json, budget: the SRAM that a published scheme takes. Random and
evolutionary search run once a seed, exact search once. About 45 s for each 1,000 evaluations; needs `ortools`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from experiment import FIGURES, RESULTS, SHARED
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tinytrain_lite.files import write_text
from tinytrain_lite.sparse.analysis import Analysis
from tinytrain_lite.sparse.figures import draw_search, points, search_table
from tinytrain_lite.sparse.presets import published
from tinytrain_lite.sparse.price import Pricer
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.sparse.search import METHODS, Result, run_search
from tinytrain_lite.sparse.space import Space
from tinytrain_lite.workload import outline

MODEL = "mcunet-5fps"
COUNTS = (10, 30, 100, 300, 1000)


def at(result: Result, evaluations: int) -> float | None:
    """Best score after so many evaluations; None before the first scheme that fits."""
    return max((score for count, score in result.curve if count <= evaluations), default=None)


def score(analysis: Analysis, scheme: UpdateScheme) -> float | None:
    """Of a published scheme, by gains that may be negative; None where one of them was not measured."""
    biases, weights = scheme.resolve_biases(analysis.layers), scheme.resolve_weights(analysis.layers)
    gains = [analysis.weight_gain(layer, ratio) for layer, ratio in weights.items() if layer != analysis.layers[-1]]
    gains.append(analysis.bias_gain(len(biases)))
    return None if None in gains else sum(gains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="99kb", help="the published scheme whose SRAM is the budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=1000)
    arguments = parser.parse_args()
    analysis = Analysis.load(RESULTS / "mcunet-analysis.json")
    graph = outline(str(SHARED / "models" / f"{MODEL}.pkl"), analysis.classes, analysis.shape)
    space = Space(graph, analysis)
    scheme = published(MODEL, arguments.preset)
    budget = Pricer(graph).price(scheme)
    runs: dict[str, list[Result]] = {}
    with Progress() as progress:
        for method in METHODS:
            seeds = range(1 if method == "exact" else arguments.seeds)
            bar = progress.add_task(method, total=len(seeds) * arguments.evaluations)
            runs[method] = []
            for seed in seeds:  # a pricer of its own: nobody profits from what another has priced
                done = seed * arguments.evaluations
                runs[method].append(
                    run_search(method, space, Pricer(graph), budget, arguments.evaluations, seed,
                               progress=lambda n, bar=bar, done=done: progress.update(bar, completed=done + n))  # type: ignore[misc]
                )  # fmt: skip
    table = Table(title=f"{MODEL} within {budget:,} bytes ({arguments.preset}): best score (points) by evaluations")
    for head in ("method", "seed", *map(str, COUNTS), "seconds"):
        table.add_column(head, justify="left" if head == "method" else "right")
    for method, results in runs.items():
        for seed, r in enumerate(results):
            table.add_row(method, str(seed), *(points(at(r, n)) for n in COUNTS), f"{r.seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(f"{arguments.preset} itself scores {points(score(analysis, scheme))}")
    console.print(search_table([max(results, key=lambda r: r.score) for results in runs.values()], budget))
    record = {"budget": budget, "runs": {method: [asdict(r) for r in results] for method, results in runs.items()}}
    write_text(RESULTS / f"search-{arguments.preset}.json", json.dumps(record, indent=1) + "\n")
    draw_search(runs, FIGURES / f"search-{arguments.preset}.svg")


if __name__ == "__main__":
    main()
