"""One program, measured: trained on a device, everything counted, one record.

The emulated device is given every image over its USART and trains on it; the generated C on this computer is
given the same images in step. Losses must agree bit for bit at every step and parameters byte for byte at the
end, or `measure` raises. So the accuracy, which is counted on this computer because that is fifty times faster,
*is* the device's; a handful of held-out images are classified on both, before and after, and compared too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinytrain_lite.autodiff import UpdateRule
from tinytrain_lite.board import DEFAULT_BOARD, load_board
from tinytrain_lite.codegen import generate
from tinytrain_lite.codegen.emit import Emitter, identifier
from tinytrain_lite.compiler import Program
from tinytrain_lite.fit import check_fits
from tinytrain_lite.graph import Graph
from tinytrain_lite.memory import Buffer, Plan, align, static_bytes
from tinytrain_lite.ops.base import definition
from tinytrain_lite.quantize import quantize_image
from tinytrain_lite.record import Measurement, MeasurementError, OpRow, Placement, Sram
from tinytrain_lite.target import choose
from tinytrain_lite.target.base import Target
from tinytrain_lite.target.cycles import Estimate, estimate
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.target.unicorn import OUTSIDE, UnicornTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library, compiler_name
from tinytrain_lite.train.datasets import Dataset, Split
from tinytrain_lite.train.verdict import verdict

TARGETS = (*choose.TARGETS, "host")
SPOT_CHECKS = 8  # held-out images classified on the device too, before and after
CURVE_POINTS = 8
CURVE_IMAGES = 300  # of the validation part, for the curve only

Progress = Callable[[int, int], None]  # (steps done, steps in all)


def measure(
    program: Program,
    data: Split,
    *,
    rate: float,
    steps: int,
    rule: UpdateRule | None = None,
    seed: int = 0,
    target: str = "unicorn",
    board: str = DEFAULT_BOARD,
    port: str | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Train `program` for `steps` single images and count.

    data: uint8 images of the program's shape. Training visits data.train in a seeded order, again and again, while
    the learning rate falls from `rate` linearly towards 0: at batch size 1 the noise of the last images would
    otherwise cost several points of accuracy.
    target: one of TARGETS; "serial" is a board on `port`, flashed before. Instructions are always counted in Unicorn.
    Raises MeasurementError if device and computer differ, TargetError for a fault, ToolchainError if it does not fit.
    """
    if target not in TARGETS:
        raise MeasurementError(f"unknown target '{target}'; choose {', '.join(TARGETS)}")
    rule = rule or UpdateRule()
    if target != "host":
        check_fits(program, load_board(board))
    with tempfile.TemporaryDirectory() as folder:
        generate(program, Path(folder))
        library = build_host_library(Path(folder))
        elf = build_firmware(Path(folder), board=board) if target != "host" else None
    with ExitStack() as stack:
        host = stack.enter_context(closing(HostTarget(library)))
        device = stack.enter_context(closing(choose.open_target(target, elf, board=board, port=port))) if elf else None
        run = _Run(host, device, data, rate, progress)
        before = run.classify()
        run.train(sample_order(len(data.train), steps, seed))
        after = run.classify()
        counted = _count_on(program, target, device, elf, board, data) if device and elf else _uncounted(program)
    chip = load_board(board)
    return Measurement(
        model=program.name.partition("/")[0], scheme=program.name.partition("/")[2], target=target, board=board,
        compiler=compiler_name(), rounding=rule.rounding, qas=rule.qas, learning_rate=rate, seed=seed,
        data=data.train.name, classes=len(data.train.classes), train_images=len(data.train),
        test_images=len(data.test), steps=steps, status=verdict(run.losses, [(after, data.test.labels)]),
        accuracy_before=_share(before, data.test), accuracy_after=_share(after, data.test), losses=run.losses,
        curve=run.curve, agreement=run.agreement(), predicted=predict_sram(program), sram_limit=chip.ram.bytes,
        lower_bound=max(program.train_plan.lower_bound, program.infer_plan.lower_bound),
        flash_limit=chip.program.bytes, clock_hz=chip.clock_hz, arena=placements(program.train_plan),
        live=program.train_plan.live, ir=str(program.train), **counted,
    )  # fmt: skip


def host_accuracy(program: Program, data: Split, *, rate: float, steps: int, seed: int = 0) -> float:
    """Accuracy (0..1) on data.test after `steps` of training by the host build alone: the same bytes, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        generate(program, Path(folder))
        library = build_host_library(Path(folder))
    nothing = data.validation.take(np.arange(0))
    with closing(HostTarget(library)) as host:
        run = _Run(host, None, Split(data.train, nothing, data.test), rate, None)
        run.train(sample_order(len(data.train), steps, seed))
        return _share(run.classify(), data.test)


def _share(predicted: np.ndarray, data: Dataset) -> float:
    """Accuracy, 0..1."""
    return float((predicted == data.labels).mean())


def falling_rate(rate: float, done: int, steps: int) -> float:
    """Learning rate after `done` of `steps` steps: linearly from `rate` towards 0."""
    return rate * (1 - done / steps)


def sample_order(images: int, steps: int, seed: int) -> np.ndarray:
    """Indices of the images to train on, int64 (steps,): one seeded permutation after another."""
    rng = np.random.default_rng(seed)
    epochs = -(-steps // images)
    return np.concatenate([rng.permutation(images) for _ in range(epochs)])[:steps]


class _Run:
    """Host and device in lockstep."""

    def __init__(self, host: HostTarget, device: Target | None, data: Split, rate: float, progress: Progress | None):
        self.host, self.device, self.data, self.progress = host, device, data, progress
        self.losses: list[float] = []
        self.curve: list[tuple[int, float]] = []
        self.rate = rate
        if device and device.hello().digest != host.hello().digest:
            raise MeasurementError(f"the device runs another model, {device.hello().name}: flash it (tinytrain flash)")
        if isinstance(device, UnicornTarget):
            device.paint_arena()

    def _targets(self) -> list[Target]:
        return [self.host] + ([self.device] if self.device else [])

    def train(self, order: np.ndarray) -> None:
        images, labels = _prepared(self.data.train)
        points = set(np.linspace(0, len(order), CURVE_POINTS + 1, dtype=int).tolist())
        self._point(0)
        for done, index in enumerate(order.tolist(), start=1):
            for each in self._targets():
                each.set_learning_rate(falling_rate(self.rate, done - 1, len(order)))
            results = [each.train(images[index], int(labels[index])) for each in self._targets()]
            if any(r.loss != results[0].loss or r.predicted != results[0].predicted for r in results):
                raise MeasurementError(f"step {done}: the device's loss is {results[-1].loss}, here {results[0].loss}")
            self.losses.append(results[0].loss)
            if self.progress:
                self.progress(done, len(order))
            if done in points:
                self._point(done)
        if self.device:
            here, there = self.host.read_params(), self.device.read_params()
            wrong = [name for name in here if here[name].tobytes() != there[name].tobytes()]
            if wrong:
                raise MeasurementError(f"after {len(order)} steps the device's '{wrong[0]}' differs from the one here")

    def _point(self, step: int) -> None:
        if len(self.data.validation):
            images, labels = _prepared(self.data.validation, CURVE_IMAGES)
            self.curve.append((step, self.host.evaluate(images, labels.tolist())))

    def classify(self) -> np.ndarray:
        """Predicted class (N,) of each held-out image; a few of them are classified by the device as well."""
        images, _ = _prepared(self.data.test)
        if self.device:
            for image in images[:SPOT_CHECKS]:
                if not np.array_equal(self.device.infer(image).logits, self.host.infer(image).logits):
                    raise MeasurementError("the device's logits of a held-out image differ from this computer's")
        return self.host.classify(images)

    def agreement(self) -> str:
        if not self.device:
            return "trained and evaluated by the generated C on this computer; no device"
        spot = min(SPOT_CHECKS, len(self.data.test))
        return (
            f"device = this computer: the loss of {len(self.losses)} steps bit for bit, all parameters byte for byte, "
            f"the logits of {spot} held-out images before and after; accuracy was counted on this computer"
        )


def _prepared(data: Dataset, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(int8 images, labels) of the first `count`."""
    return quantize_image(data.images[:count]), data.labels[:count]


# ---- what a device shows -----------------------------------------------------------------------
def _count_on(program: Program, target: str, device: Target, elf: Path, board: str, data: Split) -> dict[str, Any]:
    """As `_count`; what a device other than Unicorn can tell itself, its stack and its cycles, comes from there."""
    if isinstance(device, UnicornTarget):
        return _count(program, device, data)
    with closing(UnicornTarget(elf, board=board)) as twin:
        counted = _count(program, twin, data)
    cycles = device.train(_prepared(data.train, 1)[0][0], int(data.train.labels[0])).cycles
    counted["sram"] = replace(counted["sram"], stack=device.stats().stack_used)
    return {**counted, "board_cycles": cycles if target == "serial" else None}


def _count(program: Program, device: UnicornTarget, data: Split) -> dict[str, Any]:
    """Instructions, cycles and memory, from one more inference and one more training step."""
    images, labels = _prepared(data.train, 1)
    device.paint_arena()
    device.reset_profile()
    inference = device.infer(images[0])
    infer_cost = _profile(device)
    device.reset_profile()
    step = device.train(images[0], int(labels[0]))
    train_cost = _profile(device)
    emitter = Emitter(program.train, program.train_plan, "train")
    costs = _by_region(train_cost)
    region = {name: index for index, name in enumerate(device.regions)}
    memory = device.memory_report()
    variables = {name: align(size) for name, size in device.firmware.variables.items()}
    parameters = sum(variables[identifier(t.name)] for t in program.train.parameters)
    outputs = [identifier(t.name) for t in program.train.by_role("output")]
    state = sum(variables[name] for name in ("states", "label", "tt_learning_rate", "tt_step", *outputs))
    runtime = memory.data + memory.bss - parameters - state
    return {
        "sram": Sram(parameters, state, memory.arena, runtime, memory.stack_used),
        "arena_written": memory.arena_used,
        "flash": memory.flash,
        "train_instructions": step.cycles,  # in the emulator the cycle counter counts retired instructions
        "infer_instructions": inference.cycles,
        "train_cycles": round(sum(cycles for _, cycles in costs.values())),
        "infer_cycles": round(sum(cycles for _, cycles in _by_region(infer_cost).values())),
        "ops": _rows(
            program.train, [costs.get(region.get(emitter.function_name(op), OUTSIDE), (0, 0.0)) for op in program.train]
        ),  # a row view has no function and costs nothing
    }


def _uncounted(program: Program) -> dict[str, Any]:
    """What is known without a device: the planner's word, and the work of each op."""
    unknown = ("arena_written", "flash", "train_instructions", "infer_instructions", "train_cycles", "infer_cycles")
    return {"sram": predict_sram(program), "ops": _rows(program.train), **dict.fromkeys(unknown)}


def _profile(device: UnicornTarget) -> Estimate:
    return estimate(device.profile(), device.read_memory)


def _by_region(cost: Estimate) -> dict[int, tuple[int, float]]:
    """(instructions, estimated cycles) of each op's region; what is outside every op (the protocol) is left out."""
    sums: dict[int, tuple[int, float]] = {}
    for c in cost.costs:
        region = c.region
        if isinstance(region, int) and region != OUTSIDE:
            instructions, cycles = sums.get(region, (0, 0.0))
            sums[region] = instructions + c.instructions, cycles + c.cycles
    return sums


def _rows(graph: Graph, costs: Sequence[tuple[int, float]] | None = None) -> list[OpRow]:
    """One row per op; `costs` has (instructions, cycles) in the order of the ops."""
    return [
        OpRow(i, op.name, op.kind, op.phase, definition(op.kind).macs(op), costs[i][0] if costs else 0,
              round(costs[i][1]) if costs else 0)
        for i, op in enumerate(graph)
    ]  # fmt: skip


# ---- what the planner says -----------------------------------------------------------------------
def predict_sram(program: Program) -> Sram:
    """Bytes from shapes alone. The firmware's own variables and its stack are not the planner's to know."""
    parameters = sum(align(t.nbytes) for t in program.train.parameters)
    return Sram(parameters, static_bytes(program.train) - parameters, program.arena_bytes)


def placements(plan: Plan) -> list[Placement]:
    """The arena as drawn in the report, largest buffers first."""
    rows = []
    for b in sorted(plan.buffers, key=lambda b: (-b.size, b.first, b.name)):
        name = " = ".join(t.name for t in b.tensors) or b.name
        rows.append(Placement(name, _kind(b), plan.offsets[b.name], b.size, b.first, b.last))
    return rows


def _kind(buffer: Buffer) -> str:
    dtypes = {t.dtype for t in buffer.tensors}
    if not buffer.tensors:
        return "scratch"
    if "dfp16" in dtypes:
        return "gradient"
    if "bits" in dtypes:
        return "mask"
    return "input" if any(t.role == "input" for t in buffer.tensors) else "activation"
