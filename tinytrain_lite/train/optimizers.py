"""Optimizers for `Network`: sgd, sgd+qas, adam, lars; where the result is kept; the learning-rate schedule.

    delta = learning_rate * direction(gradient)        the optimizer
    value = keep(value - delta)                        the update memory

In an int8 network values and gradients are in units of an LSB. There the gradient of a weight is s_w times the
real one while the weight is 1/s_w times the real one, so one learning rate cannot suit both a layer and its
neighbour. QAS (paper section 3.1, eq. 7) divides the gradient by s_w^2 (bias: s_w^2 s_x^2) and the ratio is right
again; the factor is that of the compiled step, `UpdateRule.coefficient`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from tinytrain_lite.errors import UnsupportedError
from tinytrain_lite.ops.numerics import FRACTION_BITS, UPDATE_ROUNDINGS
from tinytrain_lite.train.int8 import Network, Trained

__all__ = ["MEMORIES", "OPTIMIZERS", "Optimizer", "cosine"]

OPTIMIZERS = ("sgd", "sgd+qas", "adam", "lars")
MEMORIES = ("fp32", *UPDATE_ROUNDINGS)

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba 2015, arXiv 1412.6980, algorithm 1
ADAM_EPSILON = 1e-8
LARS_TRUST = 0.001  # You et al. 2017, arXiv 1708.03888, section 5 (eta)


class Optimizer:
    """One step at a time over all that a network trains.

    memory: `fp32` keeps the float value (a full-precision copy beside the int8 weight); the others keep what
        `numerics.apply_update` keeps on the device: `fraction8` 1/256 of an LSB, the rest whole LSBs.
    head_scaled: the head learns as if in float whatever the optimizer, its gradient multiplied by 1/s^2. That is
        how the paper's published code trains its int8 baselines: with a float head.
    """

    def __init__(
        self, network: Network, name: str, momentum: float = 0.0, memory: str = "fp32", head_scaled: bool = False,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """Raises UnsupportedError for an unknown optimizer or memory, or momentum for adam (which has its own)."""
        if name not in OPTIMIZERS:
            raise UnsupportedError(f"optimizer '{name}' is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if memory not in MEMORIES:
            raise UnsupportedError(f"update memory '{memory}' is unknown; choose one of {', '.join(MEMORIES)}")
        if not 0 <= momentum < 1 or (momentum and name == "adam"):
            raise UnsupportedError(f"momentum {momentum} with {name}: it must be in [0, 1), and 0 for adam")
        self.name, self.momentum, self.memory = name, momentum, memory
        self.steps = 0
        self.noise = torch.Generator().manual_seed(seed)
        head = {t.name for t in network.graph.ops[-1].inputs.values()}
        self.slots = [
            _Slot(t, qas=name == "sgd+qas" or (head_scaled and t.name in head)) for t in network.trained
        ]  # fmt: skip

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update every parameter from its `.grad`, and clear it."""
        self.steps += 1
        for slot in self.slots:
            grad = slot.gradient()
            if self.name == "adam":
                delta = learning_rate * self._adam(slot, grad)
            elif self.name == "lars":
                norm, size = grad.norm(), slot.trained.value.norm()
                trust = LARS_TRUST * float(size / norm) if norm > 0 and size > 0 else 1.0
                delta = self._accelerate(slot, learning_rate * trust * grad)
            else:
                delta = learning_rate * self._accelerate(slot, grad)
            self._keep(slot.trained, delta)
            slot.trained.value.grad = None

    def _accelerate(self, slot: _Slot, grad: torch.Tensor) -> torch.Tensor:
        if self.momentum == 0:
            return grad
        slot.first.mul_(self.momentum).add_(grad)
        return slot.first

    def _adam(self, slot: _Slot, grad: torch.Tensor) -> torch.Tensor:
        one, two = ADAM_BETAS
        slot.first.lerp_(grad, 1 - one)
        slot.second.lerp_(grad * grad, 1 - two)
        mean, square = slot.first / (1 - one**self.steps), slot.second / (1 - two**self.steps)
        return mean / (square.sqrt() + ADAM_EPSILON)

    def _keep(self, trained: Trained, delta: torch.Tensor) -> None:
        value = trained.value
        if self.memory == "fraction8":
            lsb = 2.0**FRACTION_BITS
            value.sub_((delta * lsb).round() / lsb)
        elif self.memory == "stochastic":
            value.sub_((delta + torch.rand(delta.shape, generator=self.noise)).floor())
        elif self.memory == "nearest":
            value.sub_(delta.round())
        elif self.memory == "truncate":
            value.copy_((value.float() - delta.float()).trunc())  # in float32, as on the device
        else:
            value.sub_(delta)
        if math.isfinite(trained.bound):  # saturate what the forward pass sees; a fraction within it stays
            whole = (value + 0.5).floor()
            value.copy_(torch.where(whole.abs() > trained.bound, whole.clamp(-trained.bound, trained.bound), value))


class _Slot:
    """What an optimizer keeps beside one parameter."""

    def __init__(self, trained: Trained, qas: bool) -> None:
        self.trained = trained
        self.coefficient = trained.per_row(1 / trained.scale**2) if qas else None
        self.first = torch.zeros_like(trained.value)
        self.second = torch.zeros_like(trained.value)

    def gradient(self) -> torch.Tensor:
        grad = self.trained.value.grad
        assert grad is not None
        return grad if self.coefficient is None else grad * self.coefficient


def cosine(peak: float, step: int, steps: int, warmup: int = 0) -> float:
    """Learning rate of step 0..steps-1: linear up to `peak` over `warmup` steps, then half a cosine down to 0.

    Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5, without restarts.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))
