"""Did a training run come to anything? None may diverge or die in silence."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

__all__ = ["EXPLANATIONS", "verdict"]

EXPLANATIONS = {
    "diverged": "diverged: the loss is no longer a number; lower the learning rate",
    "dead": "dead: every held-out image is given the same class; lower the learning rate, or train longer",
}


def verdict(losses: Iterable[float], predictions: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """`diverged` if a loss is not finite; `dead` if every image of every part is given the same class; else `ok`.

    predictions: (predicted classes, labels) of each part that was evaluated, (N,) each; a part whose labels are all
    the same says nothing.
    """
    if not all(map(math.isfinite, losses)):
        return "diverged"
    constant = [len(np.unique(predicted)) == 1 < len(np.unique(labels)) for predicted, labels in predictions]
    return "dead" if constant and all(constant) else "ok"
