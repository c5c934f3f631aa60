"""The command line: `tinytrain --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tinytrain_lite import __version__, cli_board, cli_search, measure, tables
from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.board import DEFAULT_BOARD
from tinytrain_lite.cli_options import (
    Data,
    DataPath,
    Model,
    PerClass,
    Qas,
    Rounding,
    Scheme,
    Seed,
    Size,
    console,
    step_progress,
)
from tinytrain_lite.errors import TinyTrainError, UnsupportedError
from tinytrain_lite.record import load, save

app = typer.Typer(
    name="tinytrain",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Train neural networks on an emulated microcontroller (STM32F746, 320 KB of SRAM).\n\n"
    "A PyTorch model becomes an int8 graph; an update scheme says what learns; the compiler derives the training "
    "step, plans its memory and prints it as C; the emulated board trains on real images; everything is counted.\n\n"
    "Start with `tinytrain doctor`, then `tinytrain demo`.",
)
app.command()(cli_search.analyze)
app.command()(cli_search.search)
app.command()(cli_board.flash)
app.add_typer(cli_board.setup_app, name="setup")


def main() -> None:
    """Run a command; an error that the user can mend is one message and exit code 2, without a traceback."""
    try:
        app()
    except TinyTrainError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tinytrain {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the report and the record")] = Path(
        "build/demo"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="times the board learns from each of the 500 images")] = 1,
) -> None:
    """A network that knows clothes learns handwritten digits on the emulated board.

    Three update schemes, sample by sample over the board's USART, beside fp32 fine-tuning of everything in PyTorch.
    Prints the table and writes an HTML report. Takes about a minute on two cores.
    """
    from tinytrain_lite.demo import run_demo

    run_demo(console, output, epochs)


@app.command("compile")
def compile_command(
    model: Model,
    scheme: Scheme,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for model.c and its data")],
    print_after: Annotated[
        str | None,
        typer.Option(help="print the graph after a pass: sparse, autodiff, prune, fuse, schedule, patch, limits"),
    ] = None,
    data: Data = "mnist",
    data_path: DataPath = None,
    size: Size = None,
    rounding: Rounding = "fraction8",
    qas: Qas = True,
    seed: Seed = 0,
) -> None:
    """Print a model's training step as C. The images only calibrate; nothing is trained.

    **Examples**

    `tinytrain compile demo --scheme sparse -o build/sparse`

    `tinytrain compile demo --scheme bias -o build/bias --print-after autodiff`

    `tinytrain compile mine.py:network --size 32 --scheme last-3 -o build/mine`
    """
    from tinytrain_lite.board import load_board
    from tinytrain_lite.codegen import generate
    from tinytrain_lite.compiler import passes
    from tinytrain_lite.fit import check_fits
    from tinytrain_lite.graph import Graph
    from tinytrain_lite.sparse.scheme import UpdateScheme
    from tinytrain_lite.train import datasets
    from tinytrain_lite.workload import prepare

    rule = UpdateRule(rounding, qas)
    known = [name for name, _ in passes(UpdateScheme(scheme), rule)]
    if print_after is not None and print_after not in known:
        raise UnsupportedError(f"no pass '{print_after}'; choose one of {', '.join(known)}")

    def observe(name: str, graph: Graph) -> None:
        if name == print_after:
            print(graph)

    images = datasets.load(data, path=data_path)
    with console.status("importing, quantizing, compiling"):
        work = prepare(model, images, per_class=10, held_out=0, size=size, seed=seed)
        program = work.compile(scheme, rule, observe)
        check_fits(program, load_board())
        generate(program, output)
    planned = measure.predict_sram(program)
    console.print(
        f"{output}/model.c: {len(program.train.ops)} ops a training step; arena {planned.arena:,} B (at most "
        f"{program.train_plan.lower_bound:,} alive at once), trained parameters {planned.parameters:,} B"
    )


@app.command()
def run(
    model: Model,
    scheme: Scheme = "last",
    target: Annotated[
        str,
        typer.Option(help="unicorn (the emulated board), renode, serial (a real board), host (this computer)"),
    ] = "unicorn",
    port: Annotated[str | None, typer.Option(help="serial port of the real board")] = None,
    board: Annotated[str, typer.Option(help="nucleo-f746zg or stm32f746g-disco")] = DEFAULT_BOARD,
    steps: Annotated[int, typer.Option(min=1, help="training steps, one image each")] = 100,
    rate: Annotated[float, typer.Option(min=0, help="learning rate of the first step; it falls linearly to 0")] = 0.01,
    data: Data = "mnist",
    data_path: DataPath = None,
    per_class: PerClass = 50,
    held_out: Annotated[int, typer.Option(min=1, help="held-out images that the accuracy is counted on")] = 100,
    size: Size = None,
    rounding: Rounding = "fraction8",
    qas: Qas = True,
    seed: Seed = 0,
    json: Annotated[Path | None, typer.Option(help="also write the record here (`tinytrain report` reads it)")] = None,
    report: Annotated[Path | None, typer.Option(help="also write the HTML report here")] = None,
    layers: Annotated[bool, typer.Option(help="also print instructions by layer")] = False,
) -> None:
    """Train on the emulated board, and count: accuracy, SRAM, flash, instructions, estimated cycles.

    **Examples**

    `tinytrain run demo --scheme sparse --steps 500 --report build/sparse.html`

    `tinytrain run mcunet-5fps.pkl --scheme 49kb --steps 2 --held-out 20`

    `tinytrain run mine.py:network --size 32 --scheme bias --target host --steps 2000`
    """
    from tinytrain_lite.report import write_report
    from tinytrain_lite.train import datasets
    from tinytrain_lite.workload import prepare

    rule = UpdateRule(rounding, qas)
    images = datasets.load(data, path=data_path)
    with console.status("importing, quantizing, compiling"):
        work = prepare(model, images, per_class=per_class, held_out=held_out, size=size, seed=seed)
        program = work.compile(scheme, rule)
    with step_progress() as bar:
        task = bar.add_task(f"{model}, {scheme}", total=steps)
        m = measure.measure(
            program, work.data, rate=rate, steps=steps, rule=rule, seed=seed, target=target, board=board,
            port=port, progress=lambda done, _: bar.update(task, completed=done),
        )  # fmt: skip
    console.print(tables.run_table(m))
    if layers:
        console.print(tables.layer_table(m))
    comparison = tables.comparison_table(m)
    if comparison:
        console.print(comparison)
    console.print(m.agreement, style="dim")
    if json:
        save([m], json)
        console.print(f"record: {json}")
    if report:
        console.print(f"report: {write_report([m], report)}")


@app.command()
def report(
    records: Annotated[list[Path], typer.Argument(help="records written by `tinytrain run --json` or by the demo")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the page to write")] = Path("report.html"),
) -> None:
    """One HTML page with pictures, from saved records.

    **Example:** `tinytrain report build/demo/record.json -o report.html`
    """
    from tinytrain_lite.report import write_report

    measurements = [m for path in records for m in load(path)]
    console.print(f"report: {write_report(measurements, output)}")


@app.command()
def doctor() -> None:
    """What is installed, what is missing, and how to get it. Exit code 1 if something needed is missing."""
    from tinytrain_lite.doctor import checks, doctor_table, healthy

    rows = checks()
    console.print(doctor_table(rows))
    if not healthy(rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
