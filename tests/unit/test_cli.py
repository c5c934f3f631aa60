"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tinytrain_lite import cli, doctor
from tinytrain_lite.record import load

NETWORK = """
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=4, padding=1), nn.ReLU6(), nn.Conv2d(6, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )

def broken():
    raise RuntimeError("no weights today")

def strange():
    return 7
"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(NETWORK)
    return path


def tinytrain(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["tinytrain", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_run_counts_and_records(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, page = tmp_path / "out" / "r.json", tmp_path / "out" / "r.html"
    code = tinytrain(
        monkeypatch, "run", f"{network}:network", "--scheme", "last", "--steps", 3, "--per-class", 2,
        "--held-out", 10, "--json", record, "--report", page, "--layers",
    )  # fmt: skip
    assert code == 0
    shown = capsys.readouterr().out
    (m,) = load(record)
    assert (m.model, m.scheme, m.target) == ("network", "last", "unicorn")
    assert (m.steps, len(m.losses), m.train_images, m.test_images) == (3, 3, 20, 10)
    assert m.train_instructions and f"{m.train_instructions:,}" in shown and f"{m.sram.total:,}" in shown
    assert "estimate" in shown and page.is_file()
    again = tmp_path / "again.html"
    assert tinytrain(monkeypatch, "report", record, "-o", again) == 0
    assert again.read_text() == page.read_text()


def test_compile_writes_c_and_prints_a_pass(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "c"
    code = tinytrain(
        monkeypatch, "compile", f"{network}:network", "--scheme", "last", "-o", output, "--print-after", "autodiff"
    )
    assert code == 0
    assert sorted(p.name for p in output.iterdir()) == ["model.c", "model_data.c", "model_data.h"]
    assert "= sgd_update(" in capsys.readouterr().out  # gone after the fuse pass


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "no/such.pkl"], ["no/such.pkl"]),
        (["run", "demo", "--data", "cats"], ["cats", "mnist"]),
        (["run", "demo", "--scheme", "most"], ["most", "sparse", "last-K"]),
        (["run", "demo", "--scheme", "none.yaml"], ["none.yaml"]),
        (["run", "demo", "--rounding", "up"], ["up", "fraction8"]),
        (["run", "nothing"], ["nothing", "file.py:function"]),
        (["run", "{network}:absent"], ["absent"]),
        (["run", "{network}:broken"], ["no weights today"]),
        (["run", "{network}:strange"], ["int", "nn.Module"]),
        (["compile", "demo", "--scheme", "last", "-o", "{folder}/c", "--print-after", "magic"], ["magic", "prune"]),
        (["report", "{network}", "-o", "{folder}/r.html"], ["mine.py"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], words: list[str], network: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = sorted(tmp_path.iterdir())
    filled = [a.format(network=network, folder=tmp_path) for a in arguments]
    assert tinytrain(monkeypatch, *filled) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    assert all(word in message for word in words), message
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"] == before


def test_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"format": 1, "measurements": []}))
    assert tinytrain(monkeypatch, "report", record, "-o", tmp_path / "r.html") == 2  # nothing in it
    (tmp_path / "file").touch()
    from tinytrain_lite.files import OutputError, write_text

    with pytest.raises(OutputError, match="r.html"):
        write_text(tmp_path / "file" / "r.html", "x")


def test_doctor_says_by_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tinytrain(monkeypatch, "doctor") == 0
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert tinytrain(monkeypatch, "doctor") == 1


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "compile"):
        assert tinytrain(monkeypatch, command, "--help") == 0
        assert "Examples" in capsys.readouterr().out
    assert tinytrain(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("tinytrain ")
