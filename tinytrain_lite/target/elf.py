"""What the emulator and the reports read from an ELF: bytes to load, functions by address, sizes by symbol."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tinytrain_lite.target.base import TargetError


@dataclass(frozen=True)
class Function:
    """A function's place: ``address`` without the Thumb bit, ``size`` in bytes."""

    name: str
    address: int
    size: int


class Firmware:
    """An ELF built by ``toolchain.build_firmware``. Raises TargetError if the file is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._read(ELFFile(file))
        except (OSError, ELFError) as error:
            raise TargetError(f"{path} is not firmware: {error}") from None
        self._starts = [function.address for function in self.functions]

    def _read(self, elf: ELFFile) -> None:
        if elf["e_machine"] != "EM_ARM":
            raise TargetError(f"{self.path} is not firmware: built for {elf['e_machine']}, not for Arm")
        # Loaded where it is stored (physical address): start-up code copies from there, as after flashing a board.
        self.segments: list[tuple[int, bytes]] = [
            (segment["p_paddr"], segment.data()) for segment in elf.iter_segments("PT_LOAD") if segment["p_filesz"] > 0
        ]
        table = elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            raise TargetError(f"{self.path} has no symbols; it was stripped, rebuild it")
        functions: dict[int, Function] = {}
        self.symbols: dict[str, int] = {}
        self.variables: dict[str, int] = {}  # bytes of each array and variable, constants included
        for symbol in table.iter_symbols():
            kind, value = symbol["st_info"]["type"], symbol["st_value"]
            if kind == "STT_FUNC":
                functions[value & ~1] = Function(symbol.name, value & ~1, symbol["st_size"])
            elif kind != "STT_FILE" and symbol.name and not symbol.name.startswith("$"):
                self.symbols[symbol.name] = value
                if kind == "STT_OBJECT":
                    self.variables[symbol.name] = symbol["st_size"]
        self.functions = sorted(functions.values(), key=lambda function: function.address)

    def function_at(self, address: int) -> Function | None:
        """The function whose code holds ``address``, if any."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        function = self.functions[index]
        return function if address < function.address + max(function.size, 2) else None

    def function_name(self, address: int) -> str:
        """For messages: the function's name, or the bare address."""
        function = self.function_at(address)
        return function.name if function else f"{address:#010x}"

    def span(self, name: str) -> tuple[int, int]:
        """Addresses (start, end) of ``data``, ``bss``, ``arena`` or ``itcm``, as the linker script marks them."""
        return self.symbols[f"__{name}_start"], self.symbols[f"__{name}_end"]

    def bytes_of(self, name: str) -> int:
        start, end = self.span(name)
        return end - start

    @property
    def stack(self) -> tuple[int, int]:
        """Addresses (bottom, top) of the stack."""
        return self.symbols["__stack_bottom"], self.symbols["__stack_top"]

    @property
    def flash_bytes(self) -> int:
        """Bytes of flash the image needs: code, constants and the initial values of .data."""
        return sum(len(content) for _, content in self.segments)
