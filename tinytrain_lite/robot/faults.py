"""A fault as the firmware reports it (firmware/board/fault.c), in the words that Unicorn has for the same defect."""

from __future__ import annotations

import re

from tinytrain_lite.board import Board
from tinytrain_lite.target.elf import Firmware

STACKING = 0x1010  # MSTKERR, STKERR: not even the exception frame found room
MMFAR_VALID, BFAR_VALID = 1 << 7, 1 << 15
GUARD = 0x8000  # bytes below the stack that the MPU forbids (firmware/board/memory.c)
KINDS = {  # bit of cfsr (PM0253, "Configurable fault status register"), the most telling first
    1: "access to protected memory",
    0: "execution of memory that holds no code",
    8: "execution at an unmapped address",
    9: "access to an unmapped address",
    10: "write to an unmapped address, shortly before,",
    16: "undefined instruction",
    17: "jump to an address without the Thumb bit",
    24: "unaligned access",
}


def explain(words: str, firmware: Firmware, board: Board) -> str:
    """``words`` with what the registers in it mean put in front, if they are a HARDFAULT line; else unchanged."""
    registers = {name: int(value, 16) for name, value in re.findall(r"(\w+)=(0x[0-9a-f]{8})", words)}
    if not words.startswith("HARDFAULT") or not {"pc", "cfsr", "mmfar", "bfar"} <= set(registers):
        return words
    status = registers["cfsr"]
    address = registers["mmfar"] if status & MMFAR_VALID else registers["bfar"] if status & BFAR_VALID else None
    bottom, top = firmware.stack
    if status & STACKING or (address is not None and bottom - GUARD <= address < bottom):
        return f"stack overflow ({top - bottom} bytes are reserved): {words}"
    what = next((text for bit, text in KINDS.items() if status >> bit & 1), "fault")
    if status & 2 and address is not None and address in board.memories["itcm"]:
        what = "write to read-only memory"
    if address is not None:
        what += f" {address:#010x}"
    return f"{what} in {firmware.function_name(registers['pc'])}: {words}"
