"""Tables and pictures of contribution analysis and of scheme search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from tinytrain_lite.plots import new_figure, write_figure
from tinytrain_lite.sparse.analysis import RATIOS, Analysis

if TYPE_CHECKING:
    from tinytrain_lite.sparse.search import Result

# Okabe and Ito's colours, light to dark for a growing share of a weight.
RATIO_COLOURS = dict(zip(RATIOS, ("#F0E442", "#56B4E9", "#0072B2", "#000000"), strict=True))
METHOD_COLOURS = {"random": "#999999", "evolutionary": "#E69F00", "exact": "#0072B2"}


def points(gain: float | None) -> str:
    """A gain in percentage points; a dash where nothing (sound) was measured."""
    return "-" if gain is None else f"{100 * gain:+.1f}"


def error_title(analysis: Analysis) -> str:
    """What `Analysis.standard_error` is the error of."""
    if len(analysis.draws) > 1:
        return f"Standard error of a gain over {len(analysis.draws)} draws"
    return f"Standard error of an accuracy on {analysis.images:,} images"


def analysis_table(analysis: Analysis) -> Table:
    """One row for each layer measured, last first: gain of the biases from it on, and of each share of its weight."""
    head = analysis.head_accuracy()
    known = "-" if head is None else f"{head:.1%}"
    table = Table(
        title=f"{analysis.model}, {analysis.data}: percentage points that learning adds",
        caption=f"biases: from this layer to the last, against the head alone (accuracy {known}); x share of "
        f"the weight: against the same biases alone. {error_title(analysis)}: "
        f"{100 * analysis.standard_error:.1f} points",
    )
    table.add_column("layer", style="bold", no_wrap=True)
    for title in ("biases", *(f"x {ratio:g}" for ratio in RATIOS)):
        table.add_column(title, justify="right")
    for i, layer in reversed(list(enumerate(analysis.layers))):
        gains = [analysis.bias_gain(len(analysis.layers) - i), *(analysis.weight_gain(layer, r) for r in RATIOS)]
        if any(gain is not None for gain in gains):
            table.add_row(layer, *map(points, gains))
    return table


def draw_analysis(analysis: Analysis, path: Path) -> None:
    """The paper's figure 5 (a) and (b): gain of the last k biases, and gain of each weight by share."""
    figure = new_figure(10, 7)
    upper, lower = figure.subplots(2, 1)
    counts = range(1, len(analysis.layers) + 1)
    gains = [(k, 100 * gain) for k in counts if (gain := analysis.bias_gain(k)) is not None]
    upper.plot(*zip(*gains, strict=True), color="#0072B2", marker=".")
    upper.set(xlabel="last k biases learn", ylabel="gain over head alone\n(percentage points)")
    numbers = range(len(analysis.layers))
    for j, ratio in enumerate(RATIOS):
        bars = [(i + (j - 1.5) / 5, analysis.weight_gain(analysis.layers[i], ratio)) for i in numbers]
        known = [(x, 100 * gain) for x, gain in bars if gain is not None]
        if known:
            lower.bar(
                *zip(*known, strict=True), width=0.2, color=RATIO_COLOURS[ratio], label=f"{ratio:g} of the channels"
            )
    lower.set(xlabel="layer", ylabel="gain of the weight over biases alone\n(percentage points)")
    measured = [
        i for i in numbers if any(analysis.weight_gain(analysis.layers[i], ratio) is not None for ratio in RATIOS)
    ]
    lower.set_xticks(measured, [analysis.layers[i] for i in measured], rotation=90, fontsize=7)
    lower.axhspan(-100 * analysis.standard_error, 100 * analysis.standard_error, color="#DDDDDD", zorder=0,
                  label=error_title(analysis).lower())  # fmt: skip
    lower.legend(fontsize=7)
    write_figure(figure, path)


def search_table(results: Sequence[Result], budget: int) -> Table:
    """One row a search: what it found, what that costs, and how far it may be from the optimum."""
    table = Table(title=f"schemes within {budget:,} bytes of SRAM")
    for head in ("method", "score", "at most", "gap", "SRAM", "biases", "priced", "seconds"):
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for r in results:
        proved = (points(r.bound), points(r.bound - r.score)) if r.bound is not None else ("-", "-")
        table.add_row(r.method, points(r.score), *proved, f"{r.bytes:,}", str(r.candidate.biases),
                      f"{r.evaluations:,}", f"{r.seconds:.1f}")  # fmt: skip
    return table


def draw_search(runs: dict[str, Sequence[Result]], path: Path) -> None:
    """Best score by number of schemes priced; one line a run, and the proven bound."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for method, results in runs.items():
        for n, r in enumerate(results):
            evaluations, scores = zip(*r.curve, strict=True)
            axes.step(evaluations, [100 * s for s in scores], where="post", color=METHOD_COLOURS[method], alpha=0.7,
                      label=f"{method} ({len(results)} seed{'s'[: len(results) > 1]})" if n == 0 else None)  # fmt: skip
            if r.bound is not None:
                axes.axhline(
                    100 * r.bound, color=METHOD_COLOURS[method], linestyle=":", label="no scheme can be better"
                )
    axes.set(xlabel="schemes priced by the memory planner", ylabel="sum of gains (percentage points)", xscale="log")
    axes.legend(fontsize=8)
    write_figure(figure, path)
