"""Pretrain the demo network on Fashion-MNIST and write the checkpoint that ships with the package.

    python -m tinytrain_lite.train.pretrain

Needs the 70,000 Fashion-MNIST images (Debian: ``apt-get install dataset-fashion-mnist``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch.nn import functional as F

from tinytrain_lite.train import datasets
from tinytrain_lite.train.models import CHECKPOINT, IMAGE_SIZE, MobileNet

__all__ = ["accuracy", "pretrain", "save_checkpoint", "to_batch"]

DEFAULT_OUTPUT = Path(__file__).resolve().parents[1] / "data" / CHECKPOINT


def to_batch(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in 0..1, channels last in memory (fast on a CPU)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div_(255)


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: datasets.Dataset, batch: int = 256) -> float:
    """Share of images whose largest logit is their label, 0..1; the model is left in eval mode."""
    model.eval()
    right = 0
    for start in range(0, len(data), batch):
        logits = model(to_batch(data.images[start : start + batch]))
        right += int((logits.argmax(1).numpy() == data.labels[start : start + batch]).sum())
    return right / len(data)


def pretrain(data: datasets.Dataset, epochs: int, seed: int = 0, batch: int = 128, peak_rate: float = 0.2) -> MobileNet:
    """Train the demo network from scratch in fp32: SGD with momentum 0.9, weight decay 1e-4, one-cycle rate.

    data: 32x32 images, 10 classes. Images are shifted by up to two pixels, so that features do not depend on
    where in the frame a thing lies. Returns the model in eval mode.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = MobileNet(len(data.classes), data.images.shape[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=peak_rate, momentum=0.9, weight_decay=1e-4, nesterov=True)
    steps = len(data) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        model.train()
        order = rng.permutation(len(data))
        for step in track(range(steps), description=f"pretraining, epoch {epoch + 1} of {epochs}"):
            chosen = order[step * batch : (step + 1) * batch]
            images = np.roll(data.images[chosen], tuple(rng.integers(-2, 3, size=2)), axis=(1, 2))
            loss = F.cross_entropy(model(to_batch(images)), torch.from_numpy(data.labels[chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def save_checkpoint(model: MobileNet, path: Path) -> None:
    """Write every parameter and batch-norm statistic as a float16 array of one .npz file (no pickle)."""
    arrays = {
        name: value.numpy().astype(np.float16)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def main() -> None:
    """Command line: pretrain, write the checkpoint, print its accuracy on the 10,000 test images."""
    parser = argparse.ArgumentParser(description="Pretrain the demo network on Fashion-MNIST.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four Fashion-MNIST .gz files")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="checkpoint to write (.npz)")
    arguments = parser.parse_args()
    train = datasets.pad(datasets.load("fashion-mnist", "train", arguments.data), IMAGE_SIZE)
    test = datasets.pad(datasets.load("fashion-mnist", "test", arguments.data), IMAGE_SIZE)
    torch.set_num_threads(1)  # the network is too small for a second thread to pay
    model = pretrain(train, arguments.epochs, arguments.seed)
    save_checkpoint(model, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    print(f"Fashion-MNIST test accuracy {accuracy(model, test):.2%}")


if __name__ == "__main__":
    main()
