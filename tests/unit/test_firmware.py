"""The board description and the link: placement, and what does not fit."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from toy import toy_dir

from tinytrain_lite import toolchain
from tinytrain_lite.board import BoardError, load_board
from tinytrain_lite.errors import DoesNotFitError
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.unicorn import UnicornTarget
from tinytrain_lite.toolchain import ToolchainError, build_firmware

RAM, RAM_END = 0x20000000, 0x20050000


def test_the_map_of_the_chip() -> None:
    board = load_board()
    assert (board.ram.base, board.ram.end, board.ram.bytes) == (RAM, RAM_END, 320 * 1024)
    flash, alias = board.memories["flash"], board.memories["flash_itcm"]
    assert (flash.base, flash.bytes, alias.base, alias.bytes) == (0x08000000, 2**20, 0x00200000, 2**20)
    windows = [*board.memories.values(), *board.peripherals.values()]
    for one, other in itertools.combinations(windows, 2):
        assert one.end <= other.base or other.end <= one.base, (one, other)
    assert (board.region_of(0x2000FFFF), board.region_of(0x20010000)) == ("dtcm", "sram1")
    assert board.region_of(RAM_END) == "unmapped"


def test_unknown_board() -> None:
    with pytest.raises(BoardError, match="choose one of nucleo-f746zg, stm32f746g-disco"):
        load_board("nucleo-f767zi")


def test_placement(tmp_path: Path) -> None:
    path = build_firmware(toy_dir(tmp_path))
    firmware = Firmware(path)
    assert firmware.stack == (RAM, RAM + 4096)
    starts = [firmware.stack[1], *firmware.span("data"), *firmware.span("bss"), *firmware.span("arena")]
    assert starts == sorted(starts) and starts[-1] <= RAM_END
    assert firmware.span("arena")[0] % 32 == 0
    (kernel,) = (function for function in firmware.functions if function.name == "tt_kernel_dot")
    assert firmware.span("itcm")[0] <= kernel.address < firmware.span("itcm")[1] <= 0x4000
    with path.open("rb") as file:
        elf = ELFFile(file)
        (reset,) = (function for function in firmware.functions if function.name == "tt_reset")
        assert elf["e_entry"] == reset.address | 1
        vectors = elf.get_section_by_name(".vectors")
        words = [int.from_bytes(vectors.data()[i : i + 4], "little") for i in range(0, 64, 4)]
    (fault,) = (function for function in firmware.functions if function.name == "tt_fault")
    assert vectors["sh_addr"] == 0x08000000
    assert words[:7] == [RAM + 4096, reset.address | 1, *[fault.address | 1] * 5]
    assert all(0x08000000 <= address < 0x08100000 for address, _ in firmware.segments)


def test_ram_full_to_the_last_byte_and_one_byte_more(tmp_path: Path) -> None:
    arena_start, _ = Firmware(build_firmware(toy_dir(tmp_path))).span("arena")
    room = RAM_END - arena_start
    with UnicornTarget(build_firmware(toy_dir(tmp_path, ARENA_BYTES=room))) as target:
        assert target.firmware.span("arena") == (arena_start, RAM_END)
        assert target.hello().arena_bytes == room
    with pytest.raises(DoesNotFitError, match=r"\.arena.*RAM.*overflowed by 1 bytes"):
        build_firmware(toy_dir(tmp_path, ARENA_BYTES=room + 1))


def test_a_compile_error_shows_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "model.c").write_text("int broken(void) { return nonsense; }\n")
    with pytest.raises(ToolchainError, match="nonsense"):
        build_firmware(tmp_path)
    (tmp_path / "model.c").write_text("int unused(int argument) { return 0; }\n")
    with pytest.raises(ToolchainError, match="Wunused-parameter"):
        build_firmware(tmp_path)


def test_an_empty_model_directory(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="holds no generated C"):
        build_firmware(tmp_path)


def test_a_warm_build_runs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_dir(tmp_path)
    first = build_firmware(model)
    content = first.read_bytes()

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the compiler was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert build_firmware(model) == first
    (model / "model.h").write_text("/* anything new among the inputs is another build */\n")
    with pytest.raises(AssertionError, match="was started"):
        build_firmware(model)
    assert first.read_bytes() == content


def test_the_same_source_gives_the_same_bytes_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = build_firmware(toy_dir(tmp_path)).read_bytes()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    key = toolchain._digest
    monkeypatch.setattr(toolchain, "_digest", lambda words, files: "again" + key(words, files))
    assert build_firmware(toy_dir(elsewhere)).read_bytes() == here
