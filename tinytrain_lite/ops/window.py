"""Sliding-window geometry that convolutions share, and im2col in NumPy.

Activations are (H, W, C). Padding is (top, left, bottom, right) and reads as the zero point.
"""

from __future__ import annotations

import numpy as np

from tinytrain_lite.graph import Op
from tinytrain_lite.ops.base import expect

Pad = tuple[int, int, int, int]


def output_size(height: int, width: int, kernel: tuple[int, ...], stride: int, pad: Pad) -> tuple[int, int]:
    top, left, bottom, right = pad
    return (
        (height + top + bottom - kernel[0]) // stride + 1,
        (width + left + right - kernel[1]) // stride + 1,
    )


def check_window(op: Op, kernel: tuple[int, ...], in_hw: tuple[int, ...], out_hw: tuple[int, ...]) -> None:
    """The output size follows from the input size; padding stays smaller than the kernel."""
    pad, stride = op.attrs["pad"], op.attrs["stride"]
    expect(stride >= 1, f"stride {stride} is not positive")
    expect(
        min(pad) >= 0 and max(pad[0], pad[2]) < kernel[0] and max(pad[1], pad[3]) < kernel[1],
        f"padding {pad} is not between 0 and the kernel size {kernel}",
    )
    want = output_size(in_hw[0], in_hw[1], kernel, stride, pad)
    expect(min(want) >= 1, f"kernel {kernel} does not fit the {in_hw[0]}x{in_hw[1]} input with padding {pad}")
    expect(tuple(out_hw) == want, f"output is {tuple(out_hw)}, stride and padding make it {want}")


def im2col(x: np.ndarray, kernel: tuple[int, ...], stride: int, pad: Pad) -> np.ndarray:
    """(H, W, C) -> (Ho, Wo, KH, KW, C); padding is 0, so pass `x - z`."""
    top, left, bottom, right = pad
    padded = np.pad(x, ((top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(0, 1))
    return np.moveaxis(windows[::stride, ::stride], 2, 4)


def col2im(cols: np.ndarray, in_hw: tuple[int, ...], stride: int, pad: Pad) -> np.ndarray:
    """Transpose of `im2col`: (Ho, Wo, KH, KW, C) -> (H, W, C), overlapping elements summed."""
    ho, wo, kh, kw, c = cols.shape
    top, left, bottom, right = pad
    padded = np.zeros((in_hw[0] + top + bottom, in_hw[1] + left + right, c), cols.dtype)
    for i in range(kh):
        for j in range(kw):
            padded[i : i + stride * ho : stride, j : j + stride * wo : stride] += cols[:, :, i, j]
    return padded[top : top + in_hw[0], left : left + in_hw[1]]
