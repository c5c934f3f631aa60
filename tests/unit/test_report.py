"""The report: one page that needs nothing else, whose pictures are to scale."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tinytrain_lite import charts
from tinytrain_lite.record import Measurement, MeasurementError, OpRow, Placement, Sram
from tinytrain_lite.report import write_report
from tinytrain_lite.tables import Longer

SVG = "{http://www.w3.org/2000/svg}"


def measurement(**changes: object) -> Measurement:
    """Three ops, two buffers, made up by hand."""
    fields: dict[str, object] = dict(
        model="mcunet-5fps", scheme="tiny & <small>", target="unicorn", board="nucleo-f746zg", compiler="zig cc 0",
        rounding="fraction8", qas=True, learning_rate=0.1, seed=0, data="digits", classes=10, train_images=5,
        test_images=10, steps=4, status="ok", accuracy_before=0.1, accuracy_after=0.75, losses=[2.0, 1.0, 3.0, 2.0],
        curve=[(0, 0.1), (4, 0.5)], agreement="both agree", predicted=Sram(400, 100, 1000),
        sram=Sram(400, 100, 1000, 60, 40), sram_limit=327_680, arena_written=1000, lower_bound=900, flash=5000,
        flash_limit=1 << 20, clock_hz=216_000_000, train_instructions=600, infer_instructions=100,
        train_cycles=540, infer_cycles=90, live=[900, 700, 300], ir="graph g < h",
        ops=[OpRow(0, "stem", "conv2d", "forward", 50, 100, 90),
             OpRow(1, "stem", "conv2d_grad_weight", "backward", 60, 300, 270),
             OpRow(2, "head", "grad_bias", "update", 0, 200, 180)],
        arena=[Placement("a", "activation", 0, 600, 0, 1), Placement("g", "gradient", 600, 400, 1, 2)],
    )  # fmt: skip
    return Measurement(**{**fields, **changes})  # type: ignore[arg-type]


class _Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong order; notes everything that would be fetched."""

    VOID = ("meta", "br", "rect", "line", "polyline", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {k}" for k, _ in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained(tmp_path: Path) -> None:
    longer = Longer("9 epochs", [0.8, 0.85], 0.9)
    page = write_report([measurement(), measurement(scheme="other")], tmp_path / "out" / "r.html", longer)
    text = page.read_text("utf-8")
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.fetched == []
    assert "url(" not in text and "@import" not in text
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "tiny &amp; &lt;small&gt;" in text and "<small>" not in text and "graph g &lt; h" in text
    assert all(f"{n}.0 %" in text for n in (75, 80, 85, 90))
    assert "546" in text  # the paper's milliseconds for this model


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="tinytrain run --json"):
        write_report([], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def _cells(svg: str) -> list[dict[str, float | str]]:
    root = ElementTree.fromstring(svg)
    cells = [e for e in root.iter(f"{SVG}rect") if e.get("class") == "cell"]
    return [
        {"title": e.findtext(f"{SVG}title") or "", "fill": e.get("fill") or ""}
        | {k: float(e.get(k) or 0) for k in ("x", "y", "width", "height")}
        for e in cells
    ]


def test_arena_map_is_to_scale() -> None:
    a, g = _cells(charts.arena_map(measurement()))
    assert "a\n" in str(a["title"]) and "600 bytes at 0" in str(a["title"])
    assert a["height"] / g["height"] == pytest.approx(600 / 400, rel=1e-3)  # type: ignore[operator]
    assert a["width"] == pytest.approx(g["width"])  # two ops each
    assert a["y"] == pytest.approx(g["y"] + g["height"], abs=0.02)  # type: ignore[operator]  # neighbours touch
    assert g["x"] - a["x"] == pytest.approx(a["width"] / 2, abs=0.02)  # type: ignore[operator]  # one op later
    assert (a["fill"], g["fill"]) == (charts.ARENA_COLOURS["activation"], charts.ARENA_COLOURS["gradient"])


def test_sram_bar_adds_up() -> None:
    cells = _cells(charts.sram_bars([measurement(sram=Sram(40_000, 10_000, 100_000, 6_000, 4_000))]))
    widths = [float(cell["width"]) for cell in cells]
    assert [w / widths[2] for w in widths] == pytest.approx([0.4, 0.1, 1.0, 0.06, 0.04], abs=1e-3)
    assert [cell["fill"] for cell in cells] == list(charts.SRAM_COLOURS.values())


def test_layer_bars_stack_by_phase() -> None:
    stem_forward, stem_backward, head_update = _cells(charts.layer_bars(measurement()))
    assert stem_backward["height"] / stem_forward["height"] == pytest.approx(3, rel=1e-3)  # type: ignore[operator]
    assert head_update["height"] / stem_forward["height"] == pytest.approx(2, rel=1e-3)  # type: ignore[operator]
    assert "60 MACs" in str(stem_backward["title"])
    without_device = _cells(charts.layer_bars(measurement(train_cycles=None)))
    assert len(without_device) == 2  # the update has no multiply-accumulates


@pytest.mark.parametrize(
    ("largest", "expected"),
    [(0, [0]), (10, [0, 2, 4, 6, 8, 10]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (2400, [0, 500, 1000, 1500, 2000])],
)
def test_ticks(largest: float, expected: list[float]) -> None:
    assert charts.ticks(largest) == pytest.approx(expected)


def test_moving_mean() -> None:
    assert charts._moving_mean([2.0, 4.0, 6.0, 9.0], 2) == [2.0, 3.0, 5.0, 7.5]
