"""The demo network: a MobileNetV2-style classifier small enough to train on a microcontroller.

Inverted residual blocks with linear bottlenecks: Sandler et al. 2018, arXiv 1801.04381, section 3.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tinytrain_lite.errors import TinyTrainError

__all__ = ["BLOCKS", "IMAGE_SIZE", "InvertedResidual", "MobileNet", "load_pretrained", "reset_head"]

IMAGE_SIZE = 32
CHECKPOINT = "fashion_mbv2.npz"

# (expansion, output channels, stride, kernel size), one row a block
BLOCKS = (
    (1, 8, 1, 3),  # 16x16
    (4, 12, 2, 3),  # 8x8
    (6, 12, 1, 3),
    (6, 24, 2, 3),  # 4x4
    (6, 24, 1, 5),
    (6, 24, 1, 3),
    (6, 40, 2, 3),  # 2x2
    (4, 64, 1, 3),
)
STEM_CHANNELS = 8


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (depthwise), project (1x1); add the input where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.has_expand = expansion != 1
        self.has_residual = stride == 1 and inputs == outputs
        if self.has_expand:
            self.expand = nn.Conv2d(inputs, hidden, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(
            hidden, hidden, kernel, stride=stride, padding=kernel // 2, groups=hidden, bias=False
        )
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) -> (N, outputs, H/stride, W/stride), float32."""
        y = x
        if self.has_expand:
            y = F.relu6(self.expand_norm(self.expand(y)))
        y = F.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.has_residual else y


class MobileNet(nn.Module):
    """56,474 parameters (with batch norm folded, 10 classes) and 0.86 M multiply-accumulates an image."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(STEM_CHANNELS)
        blocks, width = [], STEM_CHANNELS
        for expansion, outputs, stride, kernel in BLOCKS:
            blocks.append(InvertedResidual(width, outputs, expansion, stride, kernel))
            width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, C, 32, 32) float32, pixel / 255 -> logits (N, num_classes) float32."""
        x = F.relu6(self.stem_norm(self.stem(x)))
        x = self.blocks(x)
        x = x.mean((2, 3))
        return self.head(x)


def load_pretrained() -> MobileNet:
    """The demo network as pretrained on Fashion-MNIST (10 classes), in eval mode.

    The checkpoint ships with the package; ``python -m tinytrain_lite.train.pretrain`` regenerates it.
    Raises TinyTrainError if the package was installed without it.
    """
    path = resources.files("tinytrain_lite") / "data" / CHECKPOINT
    if not path.is_file():
        raise TinyTrainError(f"{path} is missing; regenerate it with `python -m tinytrain_lite.train.pretrain`")
    model = MobileNet()
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        state = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
    # the counter of batches is the only state pretraining does not need to hand over
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise TinyTrainError(f"{path} does not fit MobileNet: {', '.join(wrong)}; regenerate it")
    return model.eval()


def reset_head(model: MobileNet, num_classes: int) -> MobileNet:
    """Replace the classifier by an untrained one (zeros) for ``num_classes`` new classes; in place."""
    head = nn.Linear(model.head.in_features, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model.head = head
    return model
