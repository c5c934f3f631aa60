"""Options that several commands share, and the console they print on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tinytrain_lite.train import datasets

console = Console()

Model = Annotated[
    str, typer.Argument(help="demo, a checkpoint of the paper (*.pkl), or file.py:function (an nn.Module)")
]
Scheme = Annotated[
    str,
    typer.Option(
        help="what learns: last, bias, full, last-K, a scheme of the model (sparse, 49kb, ...), or a YAML file"
    ),
]
Data = Annotated[str, typer.Option(help=f"data set to learn: {', '.join(datasets.names())}")]
DataPath = Annotated[
    Path | None, typer.Option(help="file or folder of the data set, where it is not in its usual place")
]
PerClass = Annotated[int, typer.Option(min=1, help="images of each class to learn from")]
Size = Annotated[int | None, typer.Option(min=1, help="height and width of the images that your nn.Module takes")]
Rounding = Annotated[str, typer.Option(help="how an update is rounded: fraction8, stochastic, nearest, truncate")]
Qas = Annotated[bool, typer.Option(help="quantization-aware scaling of the gradients")]
Seed = Annotated[int, typer.Option(help="of the split and of the order of the images")]


def step_progress() -> Progress:
    """A bar that counts training steps."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
