"""Device mode: the compiled training step itself, sample by sample, on the host target.

The generated C runs in this process and gives the bytes that the board gives, so what is measured here is what the
board does: dfp16 gradients, batch 1, an update as soon as its gradient exists.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import compile_program
from tinytrain_lite.graph import Graph
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.sparse.scheme import UpdateScheme
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.toolchain import build_host_library
from tinytrain_lite.train.datasets import Split

__all__ = ["DeviceLearner"]

CALIBRATION_IMAGES = 8


class DeviceLearner:
    """A compiled program on a `HostTarget`, behind the interface that the trainer drives."""

    def __init__(self, graph: Graph, scheme: UpdateScheme, data: Split, rule: UpdateRule) -> None:
        """Compiles and builds (cached). The first training images calibrate the gradients' exponents."""
        self.images = {part: quantize_image(getattr(data, part).images) for part in ("train", "validation", "test")}
        self.labels = {part: getattr(data, part).labels for part in self.images}
        known = slice(0, CALIBRATION_IMAGES)
        program = compile_program(graph, scheme, self.images["train"][known], self.labels["train"][known], rule)
        self._params = {t.name: t for t in program.train.parameters}
        with tempfile.TemporaryDirectory() as directory:
            generate(program, Path(directory))
            self.target = HostTarget(build_host_library(Path(directory)))

    def step(self, chosen: np.ndarray, learning_rate: float) -> float:
        """One training step for each image in `chosen`; returns the mean loss."""
        self.target.set_learning_rate(learning_rate)
        return float(self.target.train_many(self.images["train"][chosen], self.labels["train"][chosen]).loss.mean())

    def predict(self, part: str) -> np.ndarray:
        """Predicted class of every image of "train", "validation" or "test"."""
        return self.target.logits(self.images[part]).argmax(1)

    def integers(self) -> dict[str, np.ndarray]:
        """Trained parameters by tensor name: int8 weights, int32 biases, int8 fractions."""
        raw = self.target.read_params()
        return {name: raw[name].view(t.dtype).reshape(t.shape) for name, t in self._params.items()}
