"""The one description of the hardware, and everything that is made from it.

    board = load_board("nucleo-f746zg")
    board.ram                  # Region("ram", 0x20000000, 327680): DTCM + SRAM1 + SRAM2
    board.linker_script()      # text of the linker script
    board.header()             # text of tt_board.h

The facts are in ``firmware/board/stm32f746.yaml``; the linker script, the C header and the memory
map of each emulator read them from here, so a change of the map is a change of one line.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from tinytrain_lite.errors import TinyTrainError

DEFAULT_BOARD = "nucleo-f746zg"


class BoardError(TinyTrainError):
    """A board that is not described, or a description that contradicts itself."""


def firmware_dir() -> Path:
    """Directory of the C sources: ``firmware/`` of a checkout, ``tinytrain_lite/_firmware`` of a wheel."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "_firmware", package.parent / "firmware"):
        if (candidate / "include" / "tt_model.h").is_file():
            return candidate
    raise BoardError(
        f"the firmware sources are missing: neither {package / '_firmware'} nor {package.parent / 'firmware'} "
        "holds include/tt_model.h; reinstall tinytrain-lite"
    )


@dataclass(frozen=True)
class Region:
    """A range of addresses: a memory, or the register window of a peripheral. Sizes in bytes."""

    name: str
    base: int
    bytes: int
    alias_of: str | None = None  # the same memory seen at a second address

    @property
    def end(self) -> int:
        """First address after the region."""
        return self.base + self.bytes

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.end


@dataclass(frozen=True)
class Slot:
    """Sectors ``first .. first + count - 1`` of the flash: one of the two places that SAVE writes in turn."""

    first: int
    count: int
    base: int
    sector_bytes: int  # of each of them

    @property
    def region(self) -> Region:
        return Region(f"slot at sector {self.first}", self.base, self.count * self.sector_bytes)


@dataclass(frozen=True)
class Pin:
    """A pin and its alternate function number, e.g. PD8 AF7."""

    port: str
    pin: int
    alternate: int


@dataclass(frozen=True)
class Wiring:
    """What differs between boards with the same chip."""

    usart: str
    tx: Pin
    rx: Pin
    hse_mhz: int
    hse_bypass: bool


@dataclass(frozen=True)
class Board:
    """Chip and board together."""

    name: str
    chip: str
    clock_hz: int
    memories: dict[str, Region]
    peripherals: dict[str, Region]
    flash_sectors: tuple[int, ...]  # bytes of each
    slots: tuple[Slot, ...]
    stack_bytes: int
    baud: int
    wiring: Wiring

    @property
    def ram(self) -> Region:
        """DTCM, SRAM1 and SRAM2 as one region. Raises BoardError if there is a gap between them."""
        parts = [self.memories[name] for name in ("dtcm", "sram1", "sram2")]
        for low, high in zip(parts, parts[1:], strict=False):
            if low.end != high.base:
                raise BoardError(f"{self.chip}: {low.name} ends at {low.end:#x}, {high.name} begins at {high.base:#x}")
        return Region("ram", parts[0].base, parts[-1].end - parts[0].base)

    @property
    def boot(self) -> Region:
        """Flash below the slots: the vector table."""
        flash = self.memories["flash"]
        return Region("boot", flash.base, self.slots[0].base - flash.base)

    @property
    def program(self) -> Region:
        """Flash above the slots: code and constants."""
        start = self.slots[-1].region.end
        return Region("program", start, self.memories["flash"].end - start)

    def linker_script(self) -> str:
        return self._render(f"{self.chip}.ld.j2")

    def header(self) -> str:
        """Text of ``tt_board.h``."""
        return self._render("tt_board.h.j2")

    def region_of(self, address: int) -> str:
        """Name of the memory or peripheral at an address, or ``"unmapped"``."""
        regions = [*self.memories.values(), *self.peripherals.values()]
        return next((region.name for region in regions if address in region), "unmapped")

    def _render(self, template: str) -> str:
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(firmware_dir() / "board"),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template(template).render(
            board=self.name,
            chip=self.chip,
            clock_hz=self.clock_hz,
            memories=self.memories,
            peripherals=self.peripherals,
            ram=self.ram,
            boot=self.boot,
            program=self.program,
            slots=self.slots,
            stack_bytes=self.stack_bytes,
            baud=self.baud,
            wiring=self.wiring,
        )


@functools.cache
def load_board(name: str = DEFAULT_BOARD) -> Board:
    """The board called ``name``. Raises BoardError, listing the known boards, if there is none."""
    facts: dict[str, Any] = yaml.safe_load((firmware_dir() / "board" / "stm32f746.yaml").read_text("utf-8"))
    if name not in facts["boards"]:
        raise BoardError(f"unknown board {name!r}; choose one of {', '.join(facts['boards'])}")
    wiring = dict(facts["boards"][name])
    wiring.update(tx=Pin(**wiring["tx"]), rx=Pin(**wiring["rx"]))
    memories = {key: Region(key, **value) for key, value in facts["memories"].items()}
    sectors = tuple(facts["flash_sectors"])
    return Board(
        name=name,
        chip=facts["chip"],
        clock_hz=facts["clock_hz"],
        memories=memories,
        flash_sectors=sectors,
        slots=tuple(_slot(memories["flash"], sectors, **slot) for slot in facts["slots"]),
        peripherals={key: Region(key, **value) for key, value in facts["peripherals"].items()},
        stack_bytes=facts["stack_bytes"],
        baud=facts["baud"],
        wiring=Wiring(**wiring),
    )


def _slot(flash: Region, sectors: tuple[int, ...], first: int, count: int) -> Slot:
    sizes = set(sectors[first : first + count])
    if len(sizes) != 1:
        raise BoardError(f"the slot at sector {first} is made of sectors of different sizes: {sorted(sizes)}")
    return Slot(first, count, flash.base + sum(sectors[:first]), sizes.pop())
