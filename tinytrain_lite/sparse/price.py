"""What a scheme costs: its peak SRAM, as the compiler's own memory planner gives it."""

from __future__ import annotations

import re

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.compiler import inference_graph, training_graph
from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.graph import Graph
from tinytrain_lite.memory import make_plan, static_bytes
from tinytrain_lite.sparse.scheme import UpdateScheme

__all__ = ["FIRMWARE_BYTES", "Pricer", "parse_bytes"]

# What the firmware needs beside the model: its variables (304 bytes) and the deepest stack seen (696), rounded up.
# The planner does not know them; `tinytrain run --json` measures both ("runtime", "stack") on the emulated board.
FIRMWARE_BYTES = 1536

UNITS = {"": 1, "B": 1, "KB": 1024, "KIB": 1024, "MB": 1024**2, "MIB": 1024**2}


def parse_bytes(text: str) -> int:
    """Bytes in "96KB", "1.5 MB", "98304": KB is 1,024 bytes, as in data sheets. Raises UnsupportedError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS or float(match[1]) == 0:
        raise UnsupportedError(f"'{text}' is not an amount of memory; write it like 96KB or 98304")
    return int(float(match[1]) * UNITS[match[2].upper()])


class Pricer:
    """Prices schemes of one forward graph; each scheme is compiled and planned once.

    evaluations: how many different schemes have been planned.
    """

    def __init__(self, graph: Graph, rule: UpdateRule | None = None) -> None:
        self.graph = graph
        self.rule = rule or UpdateRule()
        self._known: dict[tuple[object, ...], int] = {}

    @property
    def evaluations(self) -> int:
        return len(self._known)

    def price(self, scheme: UpdateScheme) -> int:
        """Peak bytes of SRAM: arena, parameters and state, firmware.

        Raises UnsupportedError if the scheme does not fit the network.
        """
        layers = [op.name for op in self.graph if "w" in op.inputs]
        weights = scheme.resolve_weights(layers)
        key = (len(scheme.resolve_biases(layers)), *sorted(weights.items()))
        if key not in self._known:
            train = training_graph(self.graph, scheme, self.rule)
            arena = max(make_plan(train).arena_bytes, make_plan(inference_graph(train)).arena_bytes)
            self._known[key] = arena + static_bytes(train) + FIRMWARE_BYTES
        return self._known[key]
