"""Commands that choose what learns: `tinytrain analyze` and `tinytrain search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tinytrain_lite.cli_options import Data, DataPath, Model, PerClass, Seed, Size, console, step_progress


def analyze(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the analysis; an unfinished one is continued")],
    data: Data = "mnist",
    data_path: DataPath = None,
    per_class: PerClass = 50,
    validation: Annotated[int, typer.Option(min=1, help="images that the accuracy is counted on")] = 1500,
    depth: Annotated[
        int | None, typer.Option(min=1, help="only so many last layers (default: all); more can be added later")
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="learning rate")] = 0.02,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the images, for each entry")] = 5,
    cache: Annotated[Path, typer.Option(help="folder for the activations of frozen layers")] = Path("build/features"),
    jobs: Annotated[int, typer.Option(help="entries measured at a time")] = 1,
    dask: Annotated[
        str | None, typer.Option(help="measure on the Dask cluster with this scheduler, e.g. tcp://10.0.0.5:8786")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw the gains here (.svg, .png)")] = None,
    size: Size = None,
    seed: Seed = 0,
    draws: Annotated[int, typer.Option(min=1, help="draws of the images to average over; more can be added later")] = 1,
) -> None:
    """Measure what each bias and each slice of a weight adds to the accuracy: the input of `tinytrain search`.

    Every entry is a training run, so this takes minutes to hours. It can be stopped and started again.

    **Example:** `tinytrain analyze mcunet-5fps.pkl --data mnist --depth 24 -o mcunet.json`
    """
    from contextlib import nullcontext

    import numpy as np
    import torch

    from tinytrain_lite.cluster import dask_cluster
    from tinytrain_lite.sparse import figures
    from tinytrain_lite.sparse.analysis import analyze as measure
    from tinytrain_lite.train import datasets
    from tinytrain_lite.train.trainer import Recipe
    from tinytrain_lite.workload import Workload, prepare

    torch.set_num_threads(1)  # entries run beside each other, not threads
    images = datasets.load(data, path=data_path)

    def draw(number: int) -> Workload:
        work = prepare(model, images, per_class=per_class, held_out=0, size=size, seed=seed + number)
        chosen = work.data.validation.take(np.arange(min(validation, len(work.data.validation))))
        return Workload(work.graph, datasets.Split(work.data.train, chosen, work.data.test))

    with console.status("importing, quantizing"):
        work = [draw(number) for number in range(draws)]
    graph, splits = work[0].graph, [w.data for w in work]
    recipe = Recipe(learning_rate=rate, epochs=epochs, seed=seed)
    with dask_cluster(dask, splits) if dask else nullcontext(), step_progress() as bar:
        task = bar.add_task(f"{graph.name}, entries", total=None)
        result = measure(
            graph, splits, recipe, output, depth, -1 if dask else jobs, cache.resolve(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )  # fmt: skip
    console.print(figures.analysis_table(result))
    console.print(f"analysis: {output}")
    if plot:
        figures.draw_analysis(result, plot)
        console.print(f"figure: {plot}")


def search(
    model: Model,
    analysis: Annotated[Path, typer.Option(help="what `tinytrain analyze` wrote for this model")],
    budget: Annotated[str, typer.Option(help="peak SRAM in all, e.g. 192KB (1 KB is 1,024 bytes)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the update scheme to write (YAML)")],
    method: Annotated[
        str, typer.Option(help="evolutionary (as in the paper), random, or exact (and how far from the optimum)")
    ] = "evolutionary",
    evaluations: Annotated[int, typer.Option(min=1, help="schemes that the memory planner may price")] = 2000,
    seed: Seed = 0,
) -> None:
    """Find the update scheme with the largest sum of gains that fits a budget of SRAM, priced by the memory planner.

    **Example:** `tinytrain search mcunet-5fps.pkl --analysis mcunet.json --budget 192KB --method exact -o mcunet.yaml`
    """
    from tinytrain_lite.files import write_text
    from tinytrain_lite.sparse import figures
    from tinytrain_lite.sparse.analysis import Analysis
    from tinytrain_lite.sparse.price import Pricer, parse_bytes
    from tinytrain_lite.sparse.search import run_search
    from tinytrain_lite.sparse.space import Space
    from tinytrain_lite.workload import outline

    limit = parse_bytes(budget)
    known = Analysis.load(analysis)
    space = Space(outline(model, known.classes, known.shape), known)
    with step_progress() as bar:
        task = bar.add_task(f"{method}, {limit:,} bytes", total=evaluations)
        result = run_search(
            method, space, Pricer(space.graph), limit, evaluations, seed,
            progress=lambda done: bar.update(task, completed=done),
        )  # fmt: skip
    write_text(output, result.scheme.to_yaml())
    console.print(figures.search_table([result], limit))
    console.print(result.scheme.to_yaml(), highlight=False)
    console.print(f"update scheme: {output}")
