"""Putting firmware on a real board, with whichever of the usual tools is installed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tinytrain_lite.board import Board
from tinytrain_lite.errors import TinyTrainError
from tinytrain_lite.files import write_text
from tinytrain_lite.target.elf import Firmware

TOOLS = ("openocd", "pyocd", "st-flash")
PACKAGES = "apt-get install openocd, pip install pyocd, or apt-get install stlink-tools"
PYOCD_TARGETS = {"nucleo-f746zg": "stm32f746zgtx", "stm32f746g-disco": "stm32f746nghx"}
RECORD = 16  # data bytes of a line of Intel HEX


class FlashError(TinyTrainError):
    """The board could not be flashed; the message holds the tool's words."""


@dataclass(frozen=True)
class FlashCommand:
    """What to run. None of the tools touches sectors that the image does not use, so saved training stays."""

    tool: str
    arguments: list[str]

    def __str__(self) -> str:
        return " ".join(f'"{word}"' if " " in word else word for word in [self.tool, *self.arguments])


def choose_tool() -> str:
    """The first of TOOLS on PATH. Raises FlashError, naming packages, if there is none."""
    found = next((tool for tool in TOOLS if shutil.which(tool)), None)
    if found is None:
        raise FlashError(f"no tool that writes to a board is installed; {PACKAGES}")
    return found


def flash_command(elf: Path, board: Board, tool: str) -> FlashCommand:
    """The command that writes ``elf`` and starts it. For st-flash, ``elf`` gets a neighbour in Intel HEX."""
    if tool == "openocd":
        # Not board/*.cfg: their names differ between releases; both boards carry an ST-LINK/V2-1.
        script = f"program {{{elf}}} verify reset exit"
        return FlashCommand(tool, ["-f", "interface/stlink.cfg", "-f", "target/stm32f7x.cfg", "-c", script])
    if tool == "pyocd":
        return FlashCommand(tool, ["flash", "--target", PYOCD_TARGETS[board.name], str(elf)])
    if tool == "st-flash":
        image = elf.with_suffix(".hex")
        write_text(image, intel_hex(Firmware(elf).segments))
        return FlashCommand(tool, ["--reset", "--format", "ihex", "write", str(image)])
    raise FlashError(f"unknown tool '{tool}'; choose one of {', '.join(TOOLS)}")


def run_flash(command: FlashCommand) -> None:
    """Raises FlashError with what the tool said."""
    try:
        done = subprocess.run([command.tool, *command.arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise FlashError(f"{command.tool} is not installed; {PACKAGES}") from None
    if done.returncode:
        raise FlashError(
            f"`{command}` failed:\n{(done.stderr or done.stdout).strip()}\n"
            "Is the board connected to its ST-LINK socket, and may you use USB devices (udev rules)?"
        )


def intel_hex(segments: list[tuple[int, bytes]]) -> str:
    """Segments (address, bytes) as Intel HEX (Intel, "Hexadecimal Object File Format Specification", 1988)."""
    lines = []

    def record(address: int, kind: int, data: bytes) -> None:
        body = bytes([len(data)]) + (address & 0xFFFF).to_bytes(2, "big") + bytes([kind]) + data
        lines.append(":" + (body + bytes([-sum(body) & 0xFF])).hex().upper())

    upper = None
    for base, content in segments:
        start = 0
        while start < len(content):
            address = base + start
            if address >> 16 != upper:
                upper = address >> 16
                record(0, 4, upper.to_bytes(2, "big"))  # extended linear address
            count = min(RECORD, len(content) - start, 0x10000 - (address & 0xFFFF))
            record(address, 0, content[start : start + count])
            start += count
    record(0, 1, b"")
    return "\n".join(lines) + "\n"
