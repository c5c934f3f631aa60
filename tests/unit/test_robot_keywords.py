"""The keyword library by itself: amounts, documentation, the data for hand-written models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robot", reason="Robot Framework is not installed: pip install robotframework")

from robot.libdocpkg import LibraryDocumentation

from tinytrain_lite.robot.amounts import amount
from tinytrain_lite.robot.models import hand_written, patterns
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.toolchain import build_host_library

ZOO = Path(__file__).parents[1] / "robot" / "zoo" / "model.c"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("70%", 0.7), ("0.7", 0.7), ("128KB", 131072), ("128 kb", 131072), ("1MB", 1048576), ("1.5M", 1500000),
        ("20K", 20000), ("42_000", 42000), ("51,868", 51868), (42, 42), ("100B", 100),
    ],
)  # fmt: skip
def test_amounts(text: object, value: float) -> None:
    assert amount(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "many", "12GB", "1.2.3", "-5", "%", "1e3", "1%K"])
def test_not_an_amount(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount; write for example 70%, 128KB"):
        amount(text)


def test_libdoc_renders_every_keyword(tmp_path: Path) -> None:
    library = LibraryDocumentation("tinytrain_lite.robot.TinyTrain")
    documented = {keyword.name: keyword.doc for keyword in library.keywords}
    assert all(documented.values())
    assert {
        "Flash Firmware", "Train On Device", "Accuracy Should Be At Least", "SRAM High Water Mark Should Be Below",
        "Cycles Per Step Should Be Below", "Instructions Per Step Should Be Below", "No Fault Should Have Occurred",
    } <= set(documented)  # fmt: skip
    library.save(tmp_path / "keywords.html", "HTML")
    assert "SRAM High Water Mark Should Be Below" in (tmp_path / "keywords.html").read_text("utf-8")


def test_patterns_can_be_told_apart_and_repeat(tmp_path: Path) -> None:
    for name, text in hand_written(ZOO, "").items():
        (tmp_path / name).write_text(text)
    info = HostTarget(build_host_library(tmp_path)).hello()
    data, again = patterns(info), patterns(info)
    assert data.train.tobytes() == again.train.tobytes() and data.train.dtype == np.int8
    assert data.train.shape[1:] == data.test.shape[1:] == info.image_shape
    centres = np.stack([data.train[data.train_labels == c].mean(axis=0) for c in range(info.classes)])
    distances = ((data.test[:, None].astype(float) - centres[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == data.test_labels).all(), "the nearest mean classifies all of them"
