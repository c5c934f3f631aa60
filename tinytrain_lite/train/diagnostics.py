"""Why int8 training needs QAS: the ratio of weight to gradient, tensor by tensor (figure 4 of the paper).

log10(||W|| / ||G||) says how far one step of a given learning rate moves a tensor. In an int8 network W is 1/s
times the real weight and G is s times the real gradient, so the ratio is off by s^-2: weights with scales near
0.01 look 10^4 times heavier than in fp32, biases, at s_w s_x, far more. QAS multiplies G by s^-2.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tinytrain_lite.graph import Graph
from tinytrain_lite.plots import new_figure, write_figure
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.sparse.scheme import UpdateScheme, preset
from tinytrain_lite.train.datasets import Dataset
from tinytrain_lite.train.int8 import FloatNetwork, Int8Network, Network

__all__ = ["ARITHMETICS", "plot_ratios", "weight_gradient_ratios"]

ARITHMETICS = ("fp32", "int8", "int8+QAS")


def weight_gradient_ratios(
    graph: Graph, data: Dataset, scheme: UpdateScheme | None = None
) -> dict[str, dict[str, float]]:
    """log10(||W||/||G||) by arithmetic, then by tensor name in the order of the layers.

    data: one batch; the gradient is that of its mean loss. NaN where a norm is 0, as in a head of zeros.
    """
    scheme = scheme or preset("full")
    results: dict[str, dict[str, float]] = {name: {} for name in ARITHMETICS}
    for kind, arithmetics in ((FloatNetwork, ["fp32"]), (Int8Network, ["int8", "int8+QAS"])):
        network = kind(graph, scheme)
        _backward(network, data)
        for trained in network.trained:
            grad = trained.value.grad
            assert grad is not None
            for name in arithmetics:
                scaled = grad * trained.per_row(trained.scale**-2) if name == "int8+QAS" else grad
                results[name][trained.name] = _log_ratio(trained.value.detach(), scaled)
    return results


def _backward(network: Network, data: Dataset) -> None:
    pixels = torch.from_numpy(np.ascontiguousarray(quantize_image(data.images).transpose(0, 3, 1, 2)))
    names = [t.name for t in network.frontier]
    features = network.evaluate({network.graph.image.name: pixels}, names)
    F.cross_entropy(network(features), torch.from_numpy(data.labels)).backward()


def _log_ratio(weight: torch.Tensor, grad: torch.Tensor) -> float:
    w, g = float(weight.double().norm()), float(grad.double().norm())
    return math.log10(w / g) if w > 0 and g > 0 else math.nan


def plot_ratios(ratios: dict[str, dict[str, float]], file: Path, title: str = "") -> None:
    """Draw the ratios over the tensors, one line an arithmetic; the suffix of `file` chooses SVG or PNG."""
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    for (name, values), style in zip(ratios.items(), ("-", "-", "--"), strict=True):
        axes.plot(list(values.values()), style, label=name, linewidth=1.2)
    axes.set_xlabel("tensor, from the first layer to the head (weight, bias, weight, ...)")
    axes.set_ylabel("log10(|W| / |G|)")
    axes.set_title(title, fontsize=10)
    axes.legend()
    write_figure(figure, file)
