"""The demo: a network that knows clothes (Fashion-MNIST) learns handwritten digits on the emulated board.

    tinytrain demo                               # or `make demo`: the table and the report
    tinytrain demo --epochs 12                   # all twelve epochs on the emulated board: ten minutes
    python -m tinytrain_lite.demo                # the search behind RATES, on validation images

Fifty images of each digit, sent one by one over the board's USART, each learnt from once; 3,000 other images say
how well it went. The same C, built for this computer and equal to the board byte for byte, then runs twelve
epochs in seconds, beside fp32 fine-tuning of everything in PyTorch for as many. Two processes share the work.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tinytrain_lite import measure, tables
from tinytrain_lite.compiler import Program
from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.record import Measurement, save
from tinytrain_lite.report import write_report
from tinytrain_lite.train.datasets import Split
from tinytrain_lite.workload import DEMO, Workload, prepare

SCHEMES = ("sparse", "bias", "last")  # longest first
EPOCHS = 1  # on the emulated board: what it does in a minute
LONG_EPOCHS = 12  # on this computer
PER_CLASS, HELD_OUT = 50, 3000
RATE_GRID = (0.05, 0.1, 0.2, 0.4)
RATES = {"last": 0.4, "bias": 0.2, "sparse": 0.1}  # chosen on validation images, see `choose_rates`
CEILING = "fp32 in PyTorch, all layers"


def run_demo(console: Console, output: Path, epochs: int = EPOCHS) -> list[Measurement]:
    """Measure the schemes, print the table, write `record.json` and `report.html` into `output`."""
    with console.status("reading the images, compiling the schemes"):
        work = _workload()
        programs = {scheme: work.compile(scheme) for scheme in SCHEMES}
    steps = epochs * len(work.data.train)
    with tempfile.TemporaryDirectory() as folder, _bars(console) as bars:
        counter = np.memmap(Path(folder) / "steps", np.int64, "w+", shape=len(SCHEMES))
        jobs = [
            joblib.delayed(_adapt)(programs[scheme], work.data, RATES[scheme], steps, counter.filename, i)
            for i, scheme in enumerate(SCHEMES)
        ]
        jobs.insert(1, joblib.delayed(_ceiling)(work.data))
        tasks = [bars.add_task(f"{scheme} on the emulated board", total=steps) for scheme in SCHEMES]
        waiting = bars.add_task(CEILING, total=None)

        def show() -> None:
            for task, done in zip(tasks, counter, strict=True):
                bars.update(task, completed=int(done))

        with _Watch(show):
            first, ceiling, *rest = joblib.Parallel(n_jobs=2, max_nbytes=None)(jobs)
        bars.update(waiting, total=1, completed=1)
    results = sorted([first, *rest], key=lambda result: result[0].sram.total)
    measurements = [m for m, _ in results]
    longer = tables.Longer(f"{LONG_EPOCHS} epochs", [accuracy for _, accuracy in results], ceiling)
    console.print(tables.schemes_table(measurements, longer))
    console.print(measurements[0].agreement, style="dim")
    save(measurements, output / "record.json")
    console.print(f"report: {write_report(measurements, output / 'report.html', longer)}")
    return measurements


def _workload() -> Workload:
    from tinytrain_lite.train import datasets

    return prepare(DEMO, datasets.load("mnist"), per_class=PER_CLASS, held_out=HELD_OUT)


def _adapt(
    program: Program, data: Split, rate: float, steps: int, counter: str, index: int
) -> tuple[Measurement, float]:
    """One scheme, in a process of its own: the run on the board, and the accuracy after LONG_EPOCHS on this computer.

    The number of steps done on the board goes to `counter[index]`.
    """
    counts = np.memmap(counter, np.int64, "r+")

    def progress(done: int, total: int) -> None:
        counts[index] = done

    board = measure.measure(program, data, rate=rate, steps=steps, progress=progress)
    return board, measure.host_accuracy(program, data, rate=rate, steps=LONG_EPOCHS * len(data.train))


def _ceiling(data: Split) -> float:
    """Accuracy of fp32 full fine-tuning on the held-out images, LONG_EPOCHS long."""
    import torch

    from tinytrain_lite.train.finetune import finetune
    from tinytrain_lite.train.models import load_pretrained
    from tinytrain_lite.train.pretrain import accuracy

    torch.set_num_threads(1)
    return accuracy(finetune(load_pretrained(), data.train, "full", epochs=LONG_EPOCHS), data.test)


class _Watch:
    """Calls a function ten times a second while other processes work."""

    def __init__(self, look: Callable[[], object]):
        self._look, self._done = look, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(0.1):
            self._look()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def choose_rates(console: Console) -> None:
    """Print the accuracy of every rate of the grid on the validation images, short and long, host target."""
    work = _workload()
    data = Split(work.data.train, work.data.validation, work.data.validation)
    for scheme in SCHEMES:
        program = work.compile(scheme)
        for rate in RATE_GRID:
            for steps in (EPOCHS * len(data.train), LONG_EPOCHS * len(data.train)):
                accuracy = measure.host_accuracy(program, data, rate=rate, steps=steps)
                console.print(f"{scheme:8} rate {rate:<6g} {steps:>6,} steps {accuracy:.1%}")


if __name__ == "__main__":
    try:
        choose_rates(Console())
    except TinyTrainError as error:
        raise SystemExit(f"error: {error}") from None
