"""What the published schemes cost by our memory planner, model by model.

    python tests/bench/preset_sram.py        seconds

"their name" is the budget after which the authors named a scheme: what it adds to inference, by their own analysis.
"""

from __future__ import annotations

from experiment import SHARED
from rich.console import Console
from rich.table import Table

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.compiler import inference_graph, training_graph
from tinytrain_lite.frontend.mcunet import import_checkpoint
from tinytrain_lite.graph import Graph
from tinytrain_lite.memory import make_plan, static_bytes
from tinytrain_lite.sparse.presets import find_scheme, schemes_of
from tinytrain_lite.sparse.price import FIRMWARE_BYTES
from tinytrain_lite.sparse.scheme import UpdateScheme

MODELS = ("mcunet-5fps", "mbv2-w0.35", "proxyless-w0.3")


def main() -> None:
    table = Table(title=f"peak SRAM in bytes, 10 classes (stack and firmware: {FIRMWARE_BYTES:,})")
    for head in (
        "model",
        "their name",
        "inference arena",
        "training arena",
        "parameters, state",
        "in all",
        "stochastic",
    ):
        table.add_column(head, justify="left" if head in ("model", "their name") else "right")
    for model in MODELS:
        graph = import_checkpoint(SHARED / "models" / f"{model}.pkl", 10)
        for name in ("last", *schemes_of(model), "full"):
            infer, train, static = cost(graph, find_scheme(model, name), "fraction8")
            frugal = sum(cost(graph, find_scheme(model, name), "stochastic")[1:])
            total = max(infer, train) + static + FIRMWARE_BYTES
            cells = (infer, train, static, total, frugal + FIRMWARE_BYTES)
            table.add_row(model, name, *(f"{n:,}" for n in cells))
    Console().print(table)


def cost(graph: Graph, scheme: UpdateScheme, rounding: str) -> tuple[int, int, int]:
    """Bytes: arena of inference, arena of training, parameters and state."""
    train = training_graph(graph, scheme, UpdateRule(rounding))
    infer = inference_graph(train)
    return make_plan(infer).arena_bytes, make_plan(train).arena_bytes, static_bytes(train)


if __name__ == "__main__":
    main()
