"""The serial port and flashing: no board here, so a pseudo-terminal, a socket and the tools' command lines."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from networks import images as network_images
from networks import residual_network
from toy import images, toy_dir
from typer.testing import CliRunner

from tinytrain_lite import flashing
from tinytrain_lite.board import load_board
from tinytrain_lite.cli import app
from tinytrain_lite.codegen import generate
from tinytrain_lite.compiler import compile_program
from tinytrain_lite.flashing import FlashError, flash_command, intel_hex, run_flash
from tinytrain_lite.measure import measure
from tinytrain_lite.record import MeasurementError
from tinytrain_lite.sparse.scheme import preset
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.choose import TargetUnavailable, open_target
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.host import HostTarget
from tinytrain_lite.toolchain import build_firmware, build_host_library
from tinytrain_lite.train.datasets import Dataset, Split

serial = pytest.importorskip("serial", reason="pyserial is not installed: pip install pyserial")

from tinytrain_lite.target.serial import SerialPort, SerialTarget  # noqa: E402


@pytest.fixture
def board(tmp_path: Path) -> Iterator[str]:
    with served(toy_dir(tmp_path)) as url:
        yield url


@contextlib.contextmanager
def served(model: Path) -> Iterator[str]:
    """The firmware's protocol, compiled for this computer, behind a TCP port; gives the URL."""
    host = HostTarget(build_host_library(model))
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"left over from before\0")
            while data := connection.recv(4096):
                connection.sendall(host.link(data))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"socket://127.0.0.1:{server.getsockname()[1]}"
    thread.join(5)
    server.close()


def test_a_board_trains_like_the_host(board: str, tmp_path: Path) -> None:
    pictures, labels = images(20)
    with SerialTarget(board) as target, HostTarget(build_host_library(toy_dir(tmp_path))) as host:
        assert target.hello().name == "toy"
        assert target.train_many(pictures, labels).loss.tobytes() == host.train_many(pictures, labels).loss.tobytes()
        np.testing.assert_array_equal(target.read_params()["weights"], host.read_params()["weights"])
        assert target.save() == 1


def test_a_real_terminal_device() -> None:
    """A pseudo-terminal is what a virtual COM port looks like to the operating system."""
    master, slave = os.openpty()
    port = SerialPort(serial.Serial(os.ttyname(slave)))
    port.write(bytes(range(256)))
    received = b""
    while len(received) < 256:
        received += os.read(master, 256)
    assert received == bytes(range(256))
    os.write(master, b"\x00\xff")
    answer = port.read()
    while len(answer) < 2:
        answer += port.read()
    assert answer == b"\x00\xff"
    port.close()
    os.close(master)
    os.close(slave)


def test_a_silent_board_is_an_error_that_helps() -> None:
    master, slave = os.openpty()
    port = SerialPort(serial.Serial(os.ttyname(slave)), patience=0.0)
    with pytest.raises(TargetError, match=r"not answered.*tinytrain flash.*right port"):
        port.read()
    port.close()
    os.close(master)
    os.close(slave)


def test_no_port_and_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match="no serial port was named"):
        open_target("serial", tmp_path / "any.elf")
    with pytest.raises(TargetUnavailable, match=f"cannot open {tmp_path}/ttyNONE"):
        open_target("serial", tmp_path / "any.elf", port=f"{tmp_path}/ttyNONE")
    with pytest.raises(TargetError, match="choose one of unicorn, renode, serial"):
        open_target("simulator", tmp_path / "any.elf")


def test_a_measurement_on_a_board(tmp_path: Path) -> None:
    """The network is on the "board" (its C behind a TCP port) and counted in Unicorn."""
    graph = residual_network(5)
    program = compile_program(graph, preset("bias"), *network_images(graph, 4, 5))
    generate(program, tmp_path)
    random = np.random.default_rng(0)
    height, width, channels = program.infer.image.shape
    pictures = random.integers(0, 256, (12, height, width, channels), np.uint8)
    classes = tuple("abcdefghij"[: int(HostTarget(build_host_library(tmp_path)).hello().classes)])
    data = Dataset("noise", pictures, random.integers(0, len(classes), 12), classes)
    parts = Split(data.take(np.arange(4)), data.take(np.arange(4, 8)), data.take(np.arange(8, 12)))
    with served(tmp_path) as url:
        on_board = measure(program, parts, rate=0.01, steps=4, target="serial", port=url)
    in_unicorn = measure(program, parts, rate=0.01, steps=4)
    assert on_board.losses == in_unicorn.losses and on_board.accuracy_after == in_unicorn.accuracy_after
    assert on_board.train_instructions == in_unicorn.train_instructions
    assert (on_board.board_cycles, in_unicorn.board_cycles) == (0, None)  # the computer has no DWT
    with served(toy_dir(tmp_path)) as url, pytest.raises(MeasurementError, match="another model, toy: flash it"):
        measure(program, parts, rate=0.01, steps=4, target="serial", port=url)


# ---- flashing ----


def test_commands(tmp_path: Path) -> None:
    board = load_board()
    assert str(flash_command(Path("f.elf"), board, "openocd")) == (
        'openocd -f interface/stlink.cfg -f target/stm32f7x.cfg -c "program {f.elf} verify reset exit"'
    )
    assert str(flash_command(Path("f.elf"), board, "pyocd")) == "pyocd flash --target stm32f746zgtx f.elf"
    disco = load_board("stm32f746g-disco")
    assert "stm32f746nghx" in str(flash_command(Path("f.elf"), disco, "pyocd"))
    with pytest.raises(FlashError, match="choose one of openocd, pyocd, st-flash"):
        flash_command(Path("f.elf"), board, "dfu-util")


def test_intel_hex_by_hand() -> None:
    """Lines worked out with pencil and paper; the first data record crosses a 64 KB boundary."""
    assert intel_hex([(0x0800FFFE, b"\x01\x02\x03"), (0x08040000, b"\xff")]).splitlines() == [
        ":020000040800F2",
        ":02FFFE000102FE",
        ":020000040801F1",
        ":0100000003FC",
        ":020000040804EE",
        ":01000000FF00",
        ":00000001FF",
    ]


def test_st_flash_gets_the_whole_image_and_nothing_between(tmp_path: Path) -> None:
    elf = tmp_path / "firmware.elf"
    elf.write_bytes(build_firmware(toy_dir(tmp_path)).read_bytes())
    command = flash_command(elf, load_board(), "st-flash")
    assert command.arguments[-1] == str(tmp_path / "firmware.hex")
    image, upper = {}, 0
    for line in (tmp_path / "firmware.hex").read_text().splitlines():
        record = bytes.fromhex(line[1:])
        assert sum(record) & 0xFF == 0
        count, address, kind, data = record[0], int.from_bytes(record[1:3], "big"), record[3], record[4:-1]
        assert count == len(data)
        if kind == 4:
            upper = int.from_bytes(data, "big") << 16
        image.update({upper + address + i: byte for i, byte in enumerate(data) if kind == 0})
    expected = {base + i: byte for base, content in Firmware(elf).segments for i, byte in enumerate(content)}
    assert image == expected


def test_a_missing_tool_and_a_failing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlashError, match="apt-get install openocd"):
        flashing.choose_tool()
    command = flash_command(Path("f.elf"), load_board(), "openocd")
    with pytest.raises(FlashError, match="openocd is not installed"):
        run_flash(command)
    (tmp_path / "openocd").write_text("#!/bin/sh\necho 'Error: open failed' >&2\nexit 1\n")
    (tmp_path / "openocd").chmod(0o755)
    assert flashing.choose_tool() == "openocd"
    with pytest.raises(FlashError, match="open failed\n.*udev"):
        run_flash(command)


def test_flash_dry_run(tmp_path: Path) -> None:
    elf = tmp_path / "out" / "firmware.elf"
    done = CliRunner().invoke(app, ["flash", "demo", "--dry-run", "--elf", str(elf), "--per-class", "2"])
    assert done.exit_code == 0, done.output
    assert f'openocd -f interface/stlink.cfg -f target/stm32f7x.cfg -c "program {{{elf}}} verify' in done.output
    assert Firmware(elf).function_name(Firmware(elf).functions[0].address)
