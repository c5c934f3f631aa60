"""Measurements as tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from tinytrain_lite.literature import PAPER, figures
from tinytrain_lite.record import Measurement, OpRow, Sram
from tinytrain_lite.train.verdict import EXPLANATIONS

PHASES = ("forward", "backward", "update")


@dataclass(frozen=True)
class Longer:
    """What more training than was run on the board comes to: a further column of the result."""

    name: str
    accuracies: list[float]  # one a measurement, by the host build of the same C
    ceiling: float  # of fp32 full fine-tuning in PyTorch, as long


def percent(share: float) -> str:
    return f"{share:.1%}"


def count(number: int | None) -> str:
    """1234567 -> 1,234,567; a dash where nothing was measured."""
    return "-" if number is None else f"{number:,}"


def millions(number: int | None) -> str:
    return "-" if number is None else f"{number / 1e6:.2f} M"


def by_layer(ops: Sequence[OpRow]) -> list[tuple[str, dict[str, tuple[int, int, int]]]]:
    """Per layer, in forward order: phase -> (MACs, instructions, estimated cycles)."""
    layers: dict[str, dict[str, tuple[int, int, int]]] = {}
    for row in ops:
        phases = layers.setdefault(row.layer, dict.fromkeys(PHASES, (0, 0, 0)))
        macs, instructions, cycles = phases[row.phase]
        phases[row.phase] = (macs + row.macs, instructions + row.instructions, cycles + row.cycles)
    return list(layers.items())


def schemes_table(measurements: Sequence[Measurement], longer: Longer) -> Table:
    """One row a scheme, and the fp32 ceiling."""
    first = measurements[0]
    clock = f"{first.clock_hz / 1e6:.0f} MHz"
    table = Table(
        title=f"{first.model} learns {first.data} on {first.board} ({first.target}): {first.steps:,} images, singly",
        caption=f"before, after: accuracy on {first.test_images:,} held-out images; {longer.name}: by the same C on "
        f"this computer, fp32: in PyTorch; SRAM high-water in bytes; instructions a training step, exact, by "
        f"{first.compiler}; cycles and milliseconds at {clock}: estimates",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("scheme", style="bold", no_wrap=True)
    for head in ("before", "after", longer.name, "SRAM", "instr.", "cycles", "ms"):
        table.add_column(head, justify="right", no_wrap=True)
    for m, accuracy in zip(measurements, longer.accuracies, strict=True):
        ms = "-" if m.train_ms is None else f"{m.train_ms:.1f}"
        table.add_row(
            m.scheme, percent(m.accuracy_before), after(m), percent(accuracy), count(m.sram.total),
            millions(m.train_instructions), millions(m.train_cycles), ms,
        )  # fmt: skip
    table.add_section()
    table.add_row("fp32, all", "", "", percent(longer.ceiling), *[""] * 4)
    return table


def after(m: Measurement) -> str:
    """Accuracy after training; that of a run which came to nothing is labelled."""
    return percent(m.accuracy_after) + (f" ({m.status})" if m.status in EXPLANATIONS else "")


def run_table(m: Measurement) -> Table:
    """Everything of one run, a line each."""
    table = Table(title=f"{m.model}, scheme {m.scheme}, {m.target} ({m.board})", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("accuracy before", f"{percent(m.accuracy_before)} of {m.test_images:,} held-out images")
    table.add_row("accuracy after", f"{percent(m.accuracy_after)} after {m.steps:,} steps at rate {m.learning_rate:g}")
    if m.status in EXPLANATIONS:
        table.add_row("[red]training[/]", f"[red]{EXPLANATIONS[m.status]}[/]")
    table.add_row("loss, first and last step", f"{m.losses[0]:.4f}  {m.losses[-1]:.4f}" if m.losses else "-")
    table.add_section()
    for name, got, planned in _sram_lines(m.sram, m.predicted):
        table.add_row(name, f"{count(got)} B" + ("" if planned is None else f"  (planned {planned:,})"))
    table.add_row("SRAM high-water", f"{m.sram.total:,} of {m.sram_limit:,} B ({percent(m.sram.total / m.sram_limit)})")
    table.add_row("arena, least possible", f"{m.lower_bound:,} B alive at once")
    table.add_row("flash", f"{count(m.flash)} of {m.flash_limit:,} B")
    table.add_section()
    table.add_row("instructions, training step", count(m.train_instructions))
    table.add_row("instructions, inference", count(m.infer_instructions))
    if m.train_cycles is not None and m.infer_cycles is not None:
        clock = f"{m.clock_hz / 1e6:.0f} MHz"
        table.add_row("cycles, training step (estimate)", f"{m.train_cycles:,}, {m.train_ms:.1f} ms at {clock}")
        if m.board_cycles is not None:
            table.add_row(
                "cycles, training step (DWT)", f"{m.board_cycles:,}, {1e3 * m.board_cycles / m.clock_hz:.1f} ms"
            )
        table.add_row("cycles, inference (estimate)", f"{m.infer_cycles:,}, {1e3 * m.infer_cycles / m.clock_hz:.1f} ms")
    table.add_row("multiply-accumulates, step", count(m.macs))
    table.add_row("compiler", m.compiler)
    table.add_row("update", f"{m.rounding}, QAS {'on' if m.qas else 'off'}, seed {m.seed}")
    return table


def _sram_lines(got: Sram, planned: Sram) -> list[tuple[str, int | None, int | None]]:
    return [
        ("trained parameters", got.parameters, planned.parameters),
        ("exponents, outputs", got.state, planned.state),
        ("arena", got.arena, planned.arena),
        ("firmware variables", got.runtime, None),
        ("stack, deepest", got.stack, None),
    ]


def layer_table(m: Measurement) -> Table:
    """Instructions by layer and phase."""
    table = Table(title="instructions by layer" if m.train_instructions else "multiply-accumulates by layer")
    table.add_column("layer", style="bold")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    table.add_column("cycles (est.)", justify="right")
    column = 1 if m.train_instructions else 0
    for layer, phases in by_layer(m.ops):
        cells = [phases[phase][column] for phase in PHASES]
        table.add_row(layer, *(f"{n:,}" if n else "" for n in cells), count(sum(p[2] for p in phases.values()) or None))
    return table


def comparison_table(m: Measurement) -> Table | None:
    """The published figures for this model beside ours; None if there are none."""
    known = figures(m.model)
    if not known:
        return None
    table = Table(
        title=f"{m.model}, one training step beside published figures",
        caption=f"bytes; paper: {PAPER}",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("source", style="bold", no_wrap=True)
    for head in ("SRAM", "instructions", "ms", "flash"):
        table.add_column(head, justify="right", no_wrap=True)
    for f in known:
        ms = "-" if f.milliseconds is None else f"{f.milliseconds:,.0f}"
        table.add_row(f.source, count(f.sram_bytes), millions(f.instructions), ms, count(f.flash_bytes))
    ms = "-" if m.train_ms is None else f"{m.train_ms:,.0f} (est.)"
    table.add_row(
        f"here, {m.scheme}", count(m.sram.total), millions(m.train_instructions), ms, count(m.flash), style="bold"
    )
    return table
