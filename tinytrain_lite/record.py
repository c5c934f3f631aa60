"""What is known of one training run, and its JSON: written by `measure`, read by the tables and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.files import write_text

FORMAT = 2  # of the JSON record


class MeasurementError(TinyTrainError):
    """The device did not compute what this computer computed, or a record cannot be read."""


@dataclass(frozen=True)
class OpRow:
    """One op of the training step. `cycles` is an estimate; 0 where there is no device."""

    index: int
    layer: str
    kind: str
    phase: str
    macs: int
    instructions: int = 0
    cycles: int = 0


@dataclass(frozen=True)
class Placement:
    """A buffer of the arena: bytes `offset`..`offset + size`, alive from op `first` to op `last` (-1: before any)."""

    name: str
    kind: str  # input, activation, mask, gradient, scratch
    offset: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Sram:
    """Bytes of SRAM by kind."""

    parameters: int  # what learns: weights, biases and the fractions of an LSB they remember
    state: int  # outputs, gradient exponents, learning rate, step counter
    arena: int
    runtime: int | None = None  # the firmware's own variables; None where there is no device
    stack: int | None = None  # high-water mark

    @property
    def total(self) -> int:
        return self.parameters + self.state + self.arena + (self.runtime or 0) + (self.stack or 0)


@dataclass(frozen=True)
class Measurement:
    """Everything known of one training run."""

    model: str
    scheme: str
    target: str
    board: str
    compiler: str
    rounding: str
    qas: bool
    learning_rate: float
    seed: int
    data: str
    classes: int
    train_images: int
    test_images: int
    steps: int
    status: str  # ok, diverged or dead: see train/verdict.py
    accuracy_before: float
    accuracy_after: float
    losses: list[float]
    curve: list[tuple[int, float]]  # (steps, accuracy on CURVE_IMAGES validation images)
    agreement: str  # what was compared between device and this computer
    predicted: Sram
    sram: Sram
    sram_limit: int
    arena_written: int | None  # bytes of the arena the device really wrote, by painting
    lower_bound: int  # most bytes of the arena alive at once: no plan is smaller
    flash: int | None
    flash_limit: int
    clock_hz: int
    train_instructions: int | None  # retired by one training step, exact
    infer_instructions: int | None
    train_cycles: int | None  # estimates
    infer_cycles: int | None
    ops: list[OpRow] = field(default_factory=list)
    arena: list[Placement] = field(default_factory=list)
    live: list[int] = field(default_factory=list)  # bytes of the arena alive during each op
    ir: str = ""
    board_cycles: int | None = None  # of one training step, counted by the DWT of a real board

    @property
    def train_ms(self) -> float | None:
        """Estimated milliseconds of one training step at the chip's clock."""
        return None if self.train_cycles is None else 1e3 * self.train_cycles / self.clock_hz

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.ops)


def save(measurements: Sequence[Measurement], path: Path) -> None:
    """Write records as JSON, whole or not at all."""
    record = {"format": FORMAT, "measurements": [asdict(m) for m in measurements]}
    write_text(path, json.dumps(record, indent=1) + "\n")


def load(path: Path) -> list[Measurement]:
    """Read records back. Raises MeasurementError if the file is missing or is not such a record."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise MeasurementError(f"{path}: format {content['format']}, this version reads {FORMAT}; measure again")
        return [_measurement(fields) for fields in content["measurements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MeasurementError(f"{path} is not a record of `tinytrain run --json`: {error}") from None


def _measurement(fields: dict[str, Any]) -> Measurement:
    nested = {
        "predicted": Sram(**fields["predicted"]),
        "sram": Sram(**fields["sram"]),
        "ops": [OpRow(**row) for row in fields["ops"]],
        "arena": [Placement(**row) for row in fields["arena"]],
        "curve": [(step, accuracy) for step, accuracy in fields["curve"]],
    }
    return Measurement(**{**fields, **nested})
