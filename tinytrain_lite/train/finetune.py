"""Fine-tuning in fp32 PyTorch: what the emulated device is measured against.

    python -m tinytrain_lite.train.finetune                   # the table
    python -m tinytrain_lite.train.finetune --choose-rates    # the search behind RATES

Batch norm is folded, as it is on the device, and the optimizer is SGD without momentum.
"""

from __future__ import annotations

import argparse
import copy
import math
import time

import numpy as np
import torch
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.train import datasets
from tinytrain_lite.train.models import IMAGE_SIZE, MobileNet, load_pretrained, reset_head
from tinytrain_lite.train.pretrain import accuracy, to_batch

__all__ = ["RATES", "SCHEMES", "digits", "finetune", "fold_norms", "learned"]

SCHEMES = ("last", "bias", "sparse", "full")
BIAS_CONVOLUTIONS = 12  # sparse: so many last convolutions learn their bias ...
WEIGHT_BLOCKS = 4  # ... and so many last blocks learn the weights of their first pointwise convolution

# Chosen on the validation split by `python -m tinytrain_lite.train.finetune --choose-rates`.
RATES = {"last": 0.8, "bias": 0.4, "sparse": 0.2, "full": 0.1}
RATE_GRID = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
EPOCHS = 20
BATCH = 8


def digits(per_class: int = 50, held_out: int = 3000, seed: int = 0) -> datasets.Split:
    """The demo's task: MNIST digits on 32x32, ``per_class`` to learn from, ``held_out`` to report on."""
    return datasets.split(datasets.pad(datasets.load("mnist"), IMAGE_SIZE), per_class, held_out, seed)


def fold_norms(model: MobileNet) -> MobileNet:
    """A copy with every batch norm folded into the convolution before it (eval mode, frozen statistics)."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                convolution = name.removesuffix("_norm")
                setattr(parent, convolution, fuse_conv_bn_eval(getattr(parent, convolution), norm))
                setattr(parent, name, nn.Identity())
    return model


def learned(model: MobileNet, scheme: str) -> list[str]:
    """Names of the parameters of a folded ``model`` that learn under ``scheme``. The head always does."""
    if scheme not in SCHEMES:
        raise TinyTrainError(f"unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    every = [name for name, _ in model.named_parameters()]
    biases = [name for name in every if name.endswith(".bias") and not name.startswith("head.")]
    first = len(model.blocks) - WEIGHT_BLOCKS
    expands = [f"blocks.{i}.expand.weight" for i in range(first, len(model.blocks))]
    chosen = {
        "last": [],
        "bias": biases,
        "sparse": biases[-BIAS_CONVOLUTIONS:] + expands,
        "full": every,
    }[scheme]
    return [name for name in every if name in chosen or name.startswith("head.")]


def finetune(
    model: MobileNet,
    train: datasets.Dataset,
    scheme: str,
    rate: float | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
) -> MobileNet:
    """Adapt a copy of ``model`` to ``train``: batch norm folded, new head, SGD, rate falling linearly to zero.

    Raises TinyTrainError for an unknown scheme. Returns the adapted copy in eval mode.
    """
    torch.manual_seed(seed)
    model = reset_head(fold_norms(model), len(train.classes))
    names = learned(model, scheme)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in names
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=RATES[scheme] if rate is None else rate
    )
    steps = epochs * math.ceil(len(train) / batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    images, labels = to_batch(train.images), torch.from_numpy(train.labels)
    rng = np.random.default_rng(seed)
    task = progress.add_task(f"fp32, {scheme}", total=epochs) if progress else None
    for _ in range(epochs):
        for chosen in torch.from_numpy(rng.permutation(len(train))).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        if progress and task is not None:
            progress.advance(task)
    if progress and task is not None:
        progress.remove_task(task)
    return model.eval()


def choose_rate(model: MobileNet, data: datasets.Split, scheme: str, progress: Progress, **options: int) -> float:
    """The smallest rate of RATE_GRID whose validation accuracy is within a standard error of the best.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3) keeps clear of the rate at which training
    diverges.
    """
    scores = {}
    for rate in RATE_GRID:
        adapted = finetune(model, data.train, scheme, rate, progress=progress, **options)
        scores[rate] = accuracy(adapted, data.validation)
        progress.console.print(f"{scheme:8} rate {rate:<8g} validation {scores[rate]:.2%}")
    best = max(scores.values())
    error = math.sqrt(best * (1 - best) / len(data.validation))
    return min(rate for rate, score in scores.items() if score >= best - error)


def main() -> None:
    """Command line: the table of schemes, or the search for their rates."""
    parser = argparse.ArgumentParser(description="Fine-tune the demo network on digits in fp32.")
    parser.add_argument("--choose-rates", action="store_true", help="search the learning rates on validation images")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    options = {"epochs": arguments.epochs, "batch": arguments.batch, "seed": arguments.seed}
    torch.set_num_threads(1)
    model, data = load_pretrained(), digits(seed=arguments.seed)
    with Progress() as progress:
        for scheme in SCHEMES:
            start = time.perf_counter()
            if arguments.choose_rates:
                rate = choose_rate(model, data, scheme, progress, **options)
                progress.console.print(f"{scheme:8} chosen {rate:g}")
                continue
            adapted = finetune(model, data.train, scheme, progress=progress, **options)
            count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            progress.console.print(
                f"{scheme:8} {accuracy(adapted, data.test):7.2%}  {count:6,} parameters learn, "
                f"{time.perf_counter() - start:.1f} s"
            )


if __name__ == "__main__":
    main()
