"""The integer contract: the arithmetic every target repeats bit for bit.

Every float32 step below is one IEEE-754 operation (multiply, add, divide, round-to-nearest-even,
convert), so NumPy, host C (`-ffp-contract=off`) and the Cortex-M7's FPU agree exactly. Scaling by a power of
two is exact and may be merged with its neighbours. `firmware/include/tt_kernels.h` is the C side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

F32 = np.float32
EXPONENT_RANGE = 60  # |exponent| of a gradient tensor; keeps every scaled value a normal float32
PEAK_DECAY = F32(31 / 32)  # delayed scaling forgets an old peak with a half-life of 22 steps
PEAK_FLOOR = F32(2.0**-40)
DELTA_BOUND = F32(2.0**30)  # an update is clipped here before it becomes an int32
FRACTION_BITS = 8  # an updated weight remembers 1/256 of an LSB
UPDATE_ROUNDINGS = ("fraction8", "stochastic", "nearest", "truncate")


def power_of_two(exponent: int) -> np.float32:
    return F32(2.0**exponent)


# ---- forward ---------------------------------------------------------------------------------
def requantize(value: np.ndarray, zero_point: int, clamp: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`y = clamp(rint(value) + z)`, and the mask of elements the clamp left alone.

    Args: value float32, in units of the output scale. Returns (int8, bool) of the same shape.
    """
    q = np.rint(value).astype(np.float64) + zero_point
    lo, hi = clamp
    return np.clip(q, lo, hi).astype(np.int8), (q >= lo) & (q <= hi)


def matmul_exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer matrix product as int64. In float64 BLAS: exact, as every partial sum stays below 2^53."""
    return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)


# ---- dynamic fixed point gradients -----------------------------------------------------------
@dataclass
class Dfp:
    """Value = mantissa * 2^exponent; mantissa int16 (dfp16) or int32/int64 sums (dfp32)."""

    mantissa: np.ndarray
    exponent: int

    def to_float(self) -> np.ndarray:
        return self.mantissa.astype(np.float64) * 2.0**self.exponent


@dataclass
class DfpState:
    """What one gradient tensor remembers between steps (delayed scaling): its decayed peak magnitude."""

    peak: np.float32 = PEAK_FLOOR
    limit: int = 32767

    def exponent(self) -> int:
        """Smallest exponent for which the remembered peak fills at most half of +-limit."""
        _, k = math.frexp(float(self.peak))  # peak < 2^k
        bits = (self.limit + 1).bit_length() - 1
        return max(-EXPONENT_RANGE, min(EXPONENT_RANGE, k - bits + 1))

    def store(self, value: np.ndarray) -> Dfp:
        """Round float32 `value` to mantissas at this step's exponent, saturating, and note the peak."""
        exponent = self.exponent()
        scaled = value.astype(F32) * power_of_two(-exponent)
        mantissa = np.clip(np.rint(scaled), -self.limit, self.limit).astype(np.int16)
        seen = F32(np.max(np.abs(scaled), initial=F32(0))) * power_of_two(exponent)
        self.peak = max(seen, self.peak * PEAK_DECAY, PEAK_FLOOR)
        return Dfp(mantissa, exponent)


# ---- parameter updates -----------------------------------------------------------------------
def random_unit(index: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Counter-based uniform float32 in [0, 1), 24 bits: the same on every target, in any order.

    A 32-bit finalizer (xor-shift, multiply, twice) over element index, tensor seed and step.
    """
    mask = np.uint64(0xFFFFFFFF)
    x = (index.astype(np.uint64) + np.uint64(seed)) & mask
    x ^= np.uint64((step * 0x9E3779B1) & 0xFFFFFFFF)
    for multiplier, shift in ((0x7FEB352D, 16), (0x846CA68B, 15)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(multiplier)) & mask
    x ^= x >> np.uint64(16)
    return (x >> np.uint64(8)).astype(F32) * F32(2.0**-24)


def apply_update(
    param: np.ndarray, fraction: np.ndarray | None, delta: np.ndarray, rounding: str, bound: int, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """`param - delta`, saturated at +-bound.

    Args:
        param: int8 weights or int32 biases.  fraction: int8, 1/256 of an LSB each (`fraction8` only).
        delta: float32; in units of 1/256 LSB for `fraction8`, of one LSB otherwise.
        noise: float32 in [0, 1), used by `stochastic`.
    """
    wide = param.astype(np.int64)
    delta = np.clip(delta, -DELTA_BOUND, DELTA_BOUND)
    if rounding == "fraction8":
        assert fraction is not None
        total = fraction.astype(np.int64) - np.rint(delta).astype(np.int64)
        carry = (total + 128) >> FRACTION_BITS
        moved = wide + carry
        kept = total - (carry << FRACTION_BITS)
        out = np.clip(moved, -bound, bound)
        return out.astype(param.dtype), np.where(out == moved, kept, 0).astype(np.int8)
    if rounding == "stochastic":
        moved = wide - np.floor(delta + noise).astype(np.int64)
    elif rounding == "nearest":
        moved = wide - np.rint(delta).astype(np.int64)
    else:  # truncate: the whole sum towards zero, as the paper's published code does
        moved = np.trunc(param.astype(F32) - delta).astype(np.int64)
    return np.clip(moved, -bound, bound).astype(param.dtype), None


# ---- softmax cross-entropy -------------------------------------------------------------------
# Taylor coefficients ln(2)^k / k! of 2^f on [-1/2, 1/2], highest power first: the first one left out
# is worth 1.2e-7 at the ends, one unit in the last place.
EXP2_POLY = tuple(
    F32(c) for c in (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)
)
LOG2_E = F32(1.44269504)
LN_2 = F32(0.69314718)
EXP_FLOOR = F32(-87.0)


def exp32(x: np.ndarray) -> np.ndarray:
    """float32 `exp(x)` for x <= 0 as 2^n * poly(f), each step one IEEE operation."""
    t = np.maximum(np.asarray(x, F32), EXP_FLOOR) * LOG2_E
    n = np.rint(t)
    f = t - n
    p = np.full_like(f, EXP2_POLY[0])
    for c in EXP2_POLY[1:]:
        p = p * f
        p = p + c
    return p * np.exp2(n).astype(F32)


def log32(x: np.float32) -> np.float32:
    """float32 `ln(x)` for x >= 1 via atanh series: x = m * 2^k, ln m = 2 (s + s^3/3 + ...), s = (m-1)/(m+1)."""
    m, k = np.frexp(F32(x))
    if m < F32(0.70710678):
        m, k = F32(m * F32(2)), k - 1
    s = F32(F32(m - F32(1)) / F32(m + F32(1)))
    z = F32(s * s)
    p = F32(1 / 9)
    for c in (F32(1 / 7), F32(1 / 5), F32(1 / 3), F32(1)):
        p = F32(p * z)
        p = F32(p + c)
    p = F32(p * s)
    p = F32(p + p)
    return F32(F32(F32(k) * LN_2) + p)


def softmax_cross_entropy(logits: np.ndarray, label: int) -> tuple[np.ndarray, np.float32]:
    """Returns (probabilities float32[N], loss float32). The sum runs from class 0 upwards."""
    shifted = logits - np.max(logits)
    e = exp32(shifted)
    total = F32(0)
    for value in e:
        total = F32(total + value)
    return e / total, F32(log32(total) - shifted[label])
