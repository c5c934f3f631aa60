"""The report's pictures, as SVG text: no library, no network, readable without JavaScript.

Colours are Okabe and Ito's eight, told apart by colour-blind readers too (jfly.uni-koeln.de/color).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from tinytrain_lite.record import Measurement
from tinytrain_lite.tables import PHASES, by_layer

BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
GREY = "#999999"
PHASE_COLOURS = {"forward": BLUE, "backward": ORANGE, "update": GREEN}
ARENA_COLOURS = {"input": GREY, "activation": BLUE, "mask": PURPLE, "gradient": ORANGE, "scratch": YELLOW}
SRAM_COLOURS = {
    "trained parameters": GREEN,
    "exponents, outputs": PURPLE,
    "arena": BLUE,
    "firmware variables": GREY,
    "stack": ORANGE,
}
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
WIDTH = 1000
STYLE = """
.cell { stroke: #ffffff; stroke-width: 0.6; opacity: 0.88; }
.cell:hover { opacity: 1; stroke: #000000; stroke-width: 1.2; }
.grid { stroke: #e8ebef; stroke-width: 1; }
.tick { font: 12px system-ui, sans-serif; fill: #5b6570; }
.label { font: 13px system-ui, sans-serif; fill: #1b1f24; }
.vertical { transform-box: fill-box; transform-origin: center; transform: rotate(-90deg); }
.line { fill: none; stroke-width: 2.4; }
.live { fill: none; stroke-width: 1.4; }
.limit { fill: none; stroke-width: 1.6; stroke-dasharray: 6 4; }
"""
LEFT, RIGHT, TOP, BOTTOM = 96, 20, 16, 46


def standalone(svg: str) -> str:
    """A picture of this module as a file of its own: white ground, style included."""
    head, rest = svg.split(">", 1)
    return f'{head}><style>{STYLE}</style><rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'


class _Plot:
    """An SVG with two axes; `x` and `y` turn data into pixels."""

    def __init__(
        self, height: int, x_max: float, y_max: float, left: int = LEFT, x_min: float = 0.0, bottom: int = BOTTOM
    ):
        self.height, self.left, self.bottom = height, left, bottom
        self.x_min, self.x_max, self.y_max = x_min, x_max, y_max or 1
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        return round(self.left + (WIDTH - self.left - RIGHT) * (value - self.x_min) / (self.x_max - self.x_min or 1), 2)

    def y(self, value: float) -> float:
        return round(self.height - self.bottom - (self.height - TOP - self.bottom) * value / self.y_max, 2)

    def add(self, part: str) -> None:
        self.parts.append(part)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: str, title: str, kind: str = "cell") -> None:
        """A rectangle in data coordinates that says `title` under the pointer."""
        left, top = self.x(x0), self.y(y1)
        width, height = max(self.x(x1) - left, 0.5), max(self.y(y0) - top, 0.5)
        self.add(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.2f}" height="{height:.2f}" fill="{fill}">'
            f"{_title(title)}</rect>"
        )

    def text(self, x: float, y: float, text: str, anchor: str = "middle", kind: str = "tick") -> None:
        """Text at pixel coordinates."""
        self.add(f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, points: Iterable[tuple[float, float]], colour: str, kind: str = "line", title: str = "") -> None:
        path = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        self.add(f'<polyline class="{kind}" points="{path}" stroke="{colour}">{_title(title)}</polyline>')

    def y_axis(self, label: str, show: str = "{:,.0f}") -> None:
        for tick in ticks(self.y_max):
            y = self.y(tick)
            self.add(f'<line class="grid" x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
            self.text(self.left - 8, y + 4, show.format(tick), "end")
        self.text(14, self.height / 2, label, kind="label vertical")

    def x_axis(self, label: str) -> None:
        for tick in (t for t in ticks(self.x_max) if t == int(t)):
            self.text(self.x(tick), self.height - self.bottom + 18, f"{tick:,.0f}")
        self.text((self.left + WIDTH - RIGHT) / 2, self.height - 8, label, kind="label")

    def svg(self, name: str) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(name)}">{"".join(self.parts)}</svg>'
        )


def _title(text: str) -> str:
    """What a browser shows under the pointer."""
    return f"<title>{escape(text)}</title>"


def ticks(largest: float) -> list[float]:
    """About five round numbers from 0 to `largest`."""
    if largest <= 0:
        return [0.0]
    unit = 10 ** math.floor(math.log10(largest / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if largest / (unit * k) <= 6)
    return [i * step for i in range(int(largest / step + 1e-9) + 1)]


def arena_map(m: Measurement) -> str:
    """Bytes of the arena over the schedule: one rectangle a buffer, the live bytes as a line."""
    plot = _Plot(460, len(m.live), m.sram.arena, x_min=-1)
    plot.y_axis("bytes of the arena")
    for b in m.arena:
        title = f"{b.name}\n{b.kind}, {b.size:,} bytes at {b.offset:,}\nops {b.first} to {b.last}"
        plot.rect(b.first, b.offset, b.last + 1, b.offset + b.size, ARENA_COLOURS[b.kind], title)
    steps = [(i + edge, live) for i, live in enumerate(m.live) for edge in (0, 1)]
    plot.line(steps, "#000000", "live", "bytes alive")
    plot.line([(-1, m.lower_bound), (len(m.live), m.lower_bound)], RED, "limit", f"most alive: {m.lower_bound:,}")
    for row in m.ops:
        left, right = plot.x(row.index), plot.x(row.index + 1)
        plot.add(
            f'<rect x="{left}" y="{plot.height - plot.bottom + 2}" width="{right - left:.2f}" height="4" '
            f'fill="{PHASE_COLOURS[row.phase]}">{_title(f"op {row.index} {row.layer}: {row.kind}")}</rect>'
        )
    plot.x_axis("op of the training step (strip: blue forward, orange backward, green update)")
    return plot.svg("arena map")


def sram_bars(measurements: Sequence[Measurement]) -> str:
    """SRAM high-water by kind, a bar a scheme, against the chip's limit and the paper's 256 KB."""
    row, left = 46, 120
    limit = measurements[0].sram_limit
    height = TOP + row * len(measurements) + BOTTOM
    plot = _Plot(height, limit * 1.02, len(measurements), left)
    for i, m in enumerate(measurements):
        bottom = len(measurements) - 1 - i
        start = 0
        for kind, size in sram_kinds(m):
            title = f"{m.scheme}: {kind}, {size:,} bytes"
            plot.rect(start, bottom + 0.2, start + size, bottom + 0.8, SRAM_COLOURS[kind], title)
            start += size
        plot.text(left - 8, plot.y(bottom + 0.5) + 4, m.scheme, "end", "label")
        plot.text(plot.x(start) + 6, plot.y(bottom + 0.5) + 4, f"{start:,} B", "start")
    for bytes_, name in ((limit, f"chip: {limit // 1024} KB"), (256 * 1024, "256 KB")):
        plot.line([(bytes_, 0), (bytes_, len(measurements))], RED, "limit", name)
        plot.text(plot.x(bytes_) - 4, TOP - 4, name, "end")
    plot.x_axis("bytes of SRAM")
    return plot.svg("SRAM by kind")


def sram_kinds(m: Measurement) -> list[tuple[str, int]]:
    """(kind, bytes) of what was measured."""
    s = m.sram
    values = (s.parameters, s.state, s.arena, s.runtime or 0, s.stack or 0)
    return list(zip(SRAM_COLOURS, values, strict=True))


def layer_bars(m: Measurement) -> str:
    """Cycles (MACs where there is no device) by layer, forward, backward and update stacked."""
    layers = by_layer(m.ops)
    column = 2 if m.train_cycles else 0
    unit = "estimated cycles" if m.train_cycles else "multiply-accumulates"
    totals = [sum(phases[p][column] for p in PHASES) for _, phases in layers]
    plot = _Plot(430, len(layers), max(totals, default=1) * 1.02, bottom=84)
    plot.y_axis(unit)
    for i, (layer, phases) in enumerate(layers):
        start = 0
        for phase in PHASES:
            macs, instructions, cycles = phases[phase]
            size = phases[phase][column]
            if size:
                title = f"{layer}, {phase}\n{macs:,} MACs\n{instructions:,} instructions\n{cycles:,} cycles (estimate)"
                plot.rect(i + 0.12, start, i + 0.88, start + size, PHASE_COLOURS[phase], title)
            start += size
    for i, (layer, _) in enumerate(layers):
        x, y = plot.x(i + 0.5) + 4, plot.height - plot.bottom + 12
        name = escape(layer.removeprefix("blocks."))
        plot.add(f'<text class="tick" text-anchor="end" transform="translate({x} {y}) rotate(-55)">{name}</text>')
    return plot.svg("cycles by layer")


def accuracy_curves(measurements: Sequence[Measurement]) -> str:
    """Accuracy on validation images over the training steps, a line a scheme."""
    longest = max(m.steps for m in measurements)
    plot = _Plot(340, longest, 1.0)
    plot.y_axis("accuracy", "{:.0%}")
    for colour, m in zip(SERIES, measurements, strict=False):
        plot.line(m.curve, colour, title=m.scheme)
        for step, accuracy in m.curve:
            plot.add(
                f'<circle cx="{plot.x(step)}" cy="{plot.y(accuracy)}" r="4" fill="{colour}">'
                f"{_title(f'{m.scheme}, {step:,} steps: {accuracy:.1%}')}</circle>"
            )
    plot.x_axis("training steps")
    return plot.svg("accuracy")


def loss_curves(measurements: Sequence[Measurement], window: int = 50) -> str:
    """Loss of each step, averaged over a window of steps."""
    smooth = [_moving_mean(m.losses, window) for m in measurements]
    plot = _Plot(280, max(m.steps for m in measurements), max((max(s) for s in smooth if s), default=1) * 1.05)
    plot.y_axis(f"loss, mean of {window} steps", "{:.1f}")
    for colour, m, values in zip(SERIES, measurements, smooth, strict=False):
        every = max(1, len(values) // 400)
        plot.line([(i + 1, v) for i, v in enumerate(values)][::every], colour, title=m.scheme)
    plot.x_axis("training steps")
    return plot.svg("loss")


def _moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values (fewer at the start)."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def line_chart(name: str, values: Sequence[float], x_label: str, y_label: str) -> str:
    """One line through (1, values[0]), (2, values[1]), ..."""
    plot = _Plot(280, len(values), max(values, default=1) * 1.05)
    plot.y_axis(y_label, "{:.2g}")
    plot.line([(i + 1, v) for i, v in enumerate(values)], BLUE, title=name)
    plot.x_axis(x_label)
    return plot.svg(name)


def stacked_bar(name: str, parts: Sequence[tuple[str, int]], limit: int, unit: str) -> str:
    """Parts (label, amount) side by side in one bar, each named under the pointer, against a limit."""
    plot = _Plot(TOP + 60 + BOTTOM, max(limit, sum(size for _, size in parts)) * 1.02, 1)
    start = 0
    for colour, (label, size) in zip(SERIES, parts, strict=False):
        plot.rect(start, 0.2, start + size, 0.8, colour, f"{label}: {size:,} {unit}")
        start += size
    plot.line([(limit, 0), (limit, 1)], RED, "limit", f"limit: {limit:,} {unit}")
    plot.x_axis(unit)
    return plot.svg(name)
