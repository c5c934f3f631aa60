"""`tinytrain doctor`: it finds what is there and says how to get what is not."""

from __future__ import annotations

import importlib.metadata
import io
from pathlib import Path

import pytest
from rich.console import Console

from tinytrain_lite import doctor


def test_finds_what_is_installed() -> None:
    rows = {row.name: row for row in doctor.checks()}
    assert rows["numpy"].found == importlib.metadata.version("numpy")
    assert rows["Python"].found and rows["firmware sources"].found
    assert doctor.healthy(list(rows.values()))


def test_a_missing_requirement_is_unhealthy_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "unicorn" else real(name))
    rows = doctor.checks()
    (missing,) = [row for row in rows if row.required and row.found is None]
    assert missing.name == "unicorn" and "pip install unicorn" in missing.remedy
    assert not doctor.healthy(rows)


def test_a_missing_option_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    rows = doctor.checks()
    assert [row.found for row in rows if row.name == "renode"] == [None]
    assert doctor.healthy(rows)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    rows = {row.name: row for row in doctor.checks()}
    assert rows["build cache"].found is None and "TINYTRAIN_CACHE" in rows["build cache"].remedy


def test_the_table_shows_extras_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are markup to rich: `tinytrain-lite[torch]` must come out whole."""
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(doctor.doctor_table(doctor.checks()))
    assert "pip install 'tinytrain-lite[torch]'" in console.export_text()
