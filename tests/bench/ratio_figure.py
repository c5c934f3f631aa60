"""The W/G figure: log10(||W||/||G||) of every tensor of MCUNet-5FPS in fp32, int8, and int8 with QAS.

python tests/bench/ratio_figure.py        a minute; writes course/figures/wg_ratio.svg
"""

from __future__ import annotations

import numpy as np
import torch
from experiment import FIGURES, Task
from rich.console import Console
from rich.table import Table

from tinytrain_lite.train.diagnostics import plot_ratios, weight_gradient_ratios

MODEL, DATASET, IMAGES = "mcunet-5fps", "cifar10-subset", 64


def main() -> None:
    torch.set_num_threads(1)
    task = Task(MODEL, DATASET, seed=0)
    ratios = weight_gradient_ratios(task.graph(), task.data().train.take(np.arange(IMAGES)))
    table = Table(title=f"{MODEL}, {IMAGES} images of {DATASET}: log10(|W|/|G|), median [smallest, largest]")
    for column in ("", "weights", "biases", "farthest from fp32"):
        table.add_column(column)
    for name, values in ratios.items():
        row = []
        for kind in (".b", ".w"):
            chosen = np.array([v for tensor, v in values.items() if tensor.endswith(kind)])
            row.insert(0, f"{np.nanmedian(chosen):.1f} [{np.nanmin(chosen):.1f}, {np.nanmax(chosen):.1f}]")
        off = np.nanmax(np.abs(np.array(list(values.values())) - np.array(list(ratios["fp32"].values()))))
        table.add_row(name, *row, f"{off:.2f}")
    Console().print(table)
    plot_ratios(ratios, FIGURES / "wg_ratio.svg", f"{MODEL}, {IMAGES} images of {DATASET}")


if __name__ == "__main__":
    main()
