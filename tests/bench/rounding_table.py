"""What the integer choices cost: dfp16 against float gradients, five update memories, and two published defects.

    python tests/bench/rounding_table.py [--jobs 2]        about 40 CPU minutes; resumes where it broke off

The demo network, pretrained on Fashion-MNIST, learns MNIST digits under its `sparse` scheme: SGD+QAS, one image a
step, each row at its own learning rate, chosen on 500 validation images with seed 0. "device" is the compiled step
on the host target; the other rows are the simulation with float32 gradients.
"""

from __future__ import annotations

from dataclasses import replace

from experiment import Row, Runs, Task, best_rate, cell, options, print_table, write_markdown
from rich.progress import Progress

from tinytrain_lite.train.int8 import Defects
from tinytrain_lite.train.trainer import Recipe

RATES = (0.0125, 0.025, 0.05, 0.1)
MEMORIES = {
    "fp32": "fp32 copy of every weight",
    "fraction8": "int8 + 8 fractional bits",
    "stochastic": "int8, stochastic rounding",
    "nearest": "int8, to nearest",
    "truncate": "int8, towards zero (published code)",
}


def rows(epochs: int) -> list[tuple[str, str, Recipe]]:
    """(gradients, update memory or defect, recipe)."""
    float32 = Recipe("int8", "sgd+qas", epochs=epochs, batch=1)
    table = [("float32", text, replace(float32, memory=memory)) for memory, text in MEMORIES.items()]
    table += [
        ("dfp16 (device)", text, replace(float32, mode="device", memory=memory))
        for memory, text in MEMORIES.items()
        if memory != "fp32"
    ]
    kept = replace(float32, memory="fraction8")
    for name, defects in (
        ("skip gradient dropped", Defects(drop_skip=True)),
        ("zero point ignored", Defects(ignore_zero_point=True)),
        ("both defects", Defects(True, True)),
    ):
        table.append(("float32", f"int8 + 8 fractional bits, {name}", replace(kept, defects=defects)))
    return table


def main() -> None:
    arguments = options(__doc__.splitlines()[0], epochs=5, per_class=50)
    runs = Runs(arguments.results / "rounding_table.jsonl", arguments.jobs)
    tasks = [Task("demo", "mnist", seed, arguments.per_class) for seed in range(arguments.seeds)]
    table = [["gradients", "update memory", "test accuracy, %", "learning rate"]]
    with Progress() as progress:
        for gradients, text, recipe in rows(arguments.epochs):
            tried = [(tasks[0], "sparse", replace(recipe, learning_rate=rate)) for rate in RATES]
            rate = best_rate(runs.get(tried, progress))
            chosen = [(t, "sparse", replace(recipe, learning_rate=rate, seed=t.seed)) for t in tasks]
            results: list[Row] = runs.get(chosen, progress)
            table.append([gradients, text, cell(results), f"{rate:g}"])
    print_table(f"demo, MNIST, sparse scheme, {arguments.seeds} seeds", table)
    write_markdown(arguments.results / "rounding_table.md", table)


if __name__ == "__main__":
    main()
