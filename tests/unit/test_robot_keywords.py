"""The keyword library by itself: amounts, documentation, the data for hand-written models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robot", reason="Robot Framework is not installed: pip install robotframework")

from robot.libdocpkg import LibraryDocumentation
from toy import toy_dir

from tinytrain_lite.board import load_board
from tinytrain_lite.robot.amounts import amount
from tinytrain_lite.robot.faults import explain
from tinytrain_lite.robot.models import hand_written, patterns
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library

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


@pytest.mark.parametrize(
    ("pc", "cfsr", "address", "expected"),
    [
        (0, 0x92, 0x1FFFFFFC, "stack overflow (4096 bytes are reserved): "),  # DACCVIOL and MSTKERR, as in Renode
        ("tt_main", 0x82, 0x1FFF8000, "stack overflow (4096 bytes are reserved): "),
        ("tt_main", 0x82, 0x1FFF7FFC, "access to protected memory 0x1fff7ffc in tt_main: "),
        ("tt_main", 0x82, 0x00000004, "write to read-only memory 0x00000004 in tt_main: "),
        ("tt_main", 0x8200, 0x60000000, "access to an unmapped address 0x60000000 in tt_main: "),
        ("tt_main", 0x400, 0x60000000, "write to an unmapped address, shortly before, in tt_main: "),
        ("tt_main", 0x10000, 0, "undefined instruction in tt_main: "),
        (0x60000000, 0x1, 0, "execution of memory that holds no code in 0x60000000: "),
    ],
)
def test_a_fault_line_is_explained(tmp_path: Path, pc: str | int, cfsr: int, address: int, expected: str) -> None:
    """The bits of PM0253, "Configurable fault status register"."""
    firmware, board = Firmware(build_firmware(toy_dir(tmp_path))), load_board()
    place = next((f.address for f in firmware.functions if f.name == pc), pc)
    mmfar, bfar = (0, address) if cfsr & 0xFF00 else (address, 0)
    line = f"HARDFAULT pc={place:#010x} lr=0x00000000 cfsr={cfsr:#010x} mmfar={mmfar:#010x} bfar={bfar:#010x}"
    assert explain(line, firmware, board) == expected + line
    for other in ("write to read-only memory 0x00000004 in f (pc=0x08000000)", "HARDFAULT pc=0x0804"):
        assert explain(other, firmware, board) == other


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
