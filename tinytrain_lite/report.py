"""Measurements -> one self-contained HTML page with pictures. Opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from tinytrain_lite import charts
from tinytrain_lite.files import write_text
from tinytrain_lite.literature import figures
from tinytrain_lite.record import Measurement, MeasurementError
from tinytrain_lite.tables import Longer


def write_report(measurements: Sequence[Measurement], path: Path, longer: Longer | None = None) -> Path:
    """Write the page, whole or not at all; returns its path.

    longer: what more training comes to, and the fp32 ceiling.
    Raises MeasurementError if there is nothing to show.
    """
    if not measurements:
        raise MeasurementError("no measurement to report; run `tinytrain run --json` first")
    first = measurements[0]
    schemes = [m.scheme for m in measurements]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tinytrain_lite"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.j2").render(
        title=f"{first.model}: {', '.join(schemes)}",
        style=Markup(charts.STYLE),
        first=first,
        measurements=measurements,
        longer=longer,
        accuracy=Markup(charts.accuracy_curves(measurements)),
        loss=Markup(charts.loss_curves(measurements)),
        sram=Markup(charts.sram_bars(measurements)),
        series=list(zip(schemes, charts.SERIES, strict=False)),
        sram_colours=list(charts.SRAM_COLOURS.items()),
        arena_colours=list(charts.ARENA_COLOURS.items()),
        phase_colours=list(charts.PHASE_COLOURS.items()),
        kinds=charts.sram_kinds,
        details=[(m, _pictures(m)) for m in measurements],
    )
    write_text(path, text)
    return path


def _pictures(m: Measurement) -> dict[str, object]:
    return {
        "arena": Markup(charts.arena_map(m)),
        "layers": Markup(charts.layer_bars(m)),
        "figures": figures(m.model),
    }
