"""Initial exponents of the gradients: train a copy on a few labelled images and note the peaks.

Delayed scaling (ops/numerics.py) takes the exponent of a step from earlier steps; this supplies the first. The copy
really learns from image to image, because a fresh classifier head of zeros sends no gradient into the network before
its first update.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.graph import Graph, Tensor
from tinytrain_lite.ops.numerics import F32, PEAK_FLOOR, Dfp, DfpState
from tinytrain_lite.reference import Machine


class _Calibrator(Machine):
    """Chooses each exponent from the very tensor it stores, and remembers the peaks."""

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.peaks: dict[str, np.float32] = {}

    def store_gradient(self, tensor: Tensor, value: np.ndarray) -> Dfp:
        peak = F32(np.abs(value).max(initial=F32(0)))
        self.peaks[tensor.name] = max(peak, self.peaks.get(tensor.name, PEAK_FLOOR))
        return DfpState(max(peak, PEAK_FLOOR), tensor.limit).store(value)


def calibrate_gradients(graph: Graph, images: np.ndarray, labels: np.ndarray) -> Graph:
    """Set `peak` of every gradient tensor. images int8 (N, H, W, C), labels int (N,); a handful is enough.

    The graph's own parameters stay as they are.
    """
    graph = graph.copy()
    calibrator = _Calibrator(graph)
    for image, label in zip(images, labels, strict=True):
        calibrator.train(image, int(label))
    for name, peak in calibrator.peaks.items():
        graph.tensors[name].peak = float(peak)
    return graph
