"""The embedded default emulator: runs the very ELF that a board runs, in Unicorn, with no root and no set-up.

    elf = build_firmware(model_dir)
    with UnicornTarget(elf) as target:
        target.reset_profile()
        target.train(image, label)
        target.instructions           # retired since power-on, exact
        target.profile()              # executed basic blocks, by region; target.functions() sums them
        target.memory_report()        # .data, .bss, arena, stack: reserved and really used

What is real: the code, the memory map of the board description (an access anywhere else raises UnicornFault), the
USART protocol. What is not: time. The DWT cycle counter counts retired instructions here, so that ``cycles`` in
every reply is exact and repeatable; target/cycles.py estimates core cycles from the profile. There is no NVIC and
no MPU: the two things the firmware's MPU forbids (below the stack, writing ITCM) are unmapped and
write-protected instead, and a fault stops the emulation rather than entering the fault handler.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import unicorn
from unicorn import arm_const

from tinytrain_lite.board import DEFAULT_BOARD, Board, Region, load_board
from tinytrain_lite.target.base import TargetError
from tinytrain_lite.target.elf import Firmware
from tinytrain_lite.target.machine import STOP_INPUT, STOP_LIMIT, STOP_POWER, BlockRow, Machine
from tinytrain_lite.target.protocol import ProtocolTarget

INSTRUCTION_LIMIT = 20_000_000_000  # for one request; about two minutes
STACK_REACH = 0x10000  # an access this close below the stack, with the stack nearly full, is an overflow of it
OUTSIDE = 0  # region of all code that belongs to no op
_ACCESS = {
    unicorn.UC_MEM_READ_UNMAPPED: "read of an unmapped address",
    unicorn.UC_MEM_WRITE_UNMAPPED: "write to an unmapped address",
    unicorn.UC_MEM_FETCH_UNMAPPED: "execution at an unmapped address",
    unicorn.UC_MEM_READ_PROT: "read of protected memory",
    unicorn.UC_MEM_WRITE_PROT: "write to read-only memory",
    unicorn.UC_MEM_FETCH_PROT: "execution of memory that holds no code",
}


class UnicornFault(TargetError):
    """The firmware did what the chip would answer with a fault. ``address`` is None for a bad instruction."""

    def __init__(self, what: str, pc: int, function: str, address: int | None = None) -> None:
        super().__init__(f"{what} in {function} (pc={pc:#010x})")
        self.pc, self.function, self.address = pc, function, address


class PowerCut(TargetError):
    """Power went during a flash operation, as ``cut_power`` asked. Start a new target with ``storage``."""


class FunctionProfile(NamedTuple):
    """What one function executed since the profile was reset, in one region."""

    name: str
    region: str
    instructions: int


class MemoryReport(NamedTuple):
    """SRAM in bytes. ``*_used`` are measured high-water marks, the others are reserved by the linker."""

    data: int
    bss: int
    arena: int
    arena_used: int | None  # None until paint_arena() was called
    stack: int
    stack_used: int
    flash: int
    itcm: int

    @property
    def high_water(self) -> int:
        """.data + .bss + arena + deepest stack: the figure that budgets are set for."""
        return self.data + self.bss + self.arena + self.stack_used


class _Usart:
    """The emulated USART as a Port: reading lets the firmware run until it waits for input."""

    def __init__(self, target: UnicornTarget, machine: Machine) -> None:
        self._target, self._machine = target, machine

    def write(self, data: bytes) -> None:
        self._machine.feed(data)

    def read(self) -> bytes:
        self._target.run()
        data = self._machine.take()
        if not data:
            raise TargetError("the firmware waits for input and has not answered")
        return data

    def close(self) -> None:
        self._machine.close()


class UnicornTarget(ProtocolTarget):
    """An emulated board. ``regions`` names the functions at whose entry a profile region begins; by default every
    ``tt_op_*`` function of the generated model. Region i + 1 is ``regions[i]``; region 0 is everything else.
    ``storage`` is the ``storage`` of an earlier target: what its firmware had saved when its power went."""

    def __init__(
        self,
        elf: Path,
        *,
        board: str = DEFAULT_BOARD,
        regions: Sequence[str] | None = None,
        storage: bytes | None = None,
        instruction_limit: int = INSTRUCTION_LIMIT,
    ) -> None:
        self.firmware = Firmware(elf)
        self.board: Board = load_board(board)
        self.instruction_limit = instruction_limit
        self._engine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self._engine.ctl_set_cpu_model(arm_const.UC_CPU_ARM_CORTEX_M7)
        self._machine = Machine(self._engine)
        self._memories: dict[str, mmap.mmap] = {}
        self._map(storage)
        self._bad_access: tuple[int, int] | None = None
        self._engine.hook_add(unicorn.UC_HOOK_MEM_INVALID, self._on_bad_access)
        if regions is None:
            regions = [function.name for function in self.firmware.functions if function.name.startswith("tt_op_")]
        self.regions: tuple[str, ...] = ("", *regions)
        self._mark_regions()
        self._arena_used: int | None = None
        super().__init__(_Usart(self, self._machine))
        self._boot()

    # ---- construction ----

    def _map(self, storage: bytes | None) -> None:
        """Map the chip's memories and peripherals, and nothing else; load the flash."""
        for peripheral in self.board.peripherals.values():
            self._machine.map_peripheral(peripheral.name, peripheral.base, peripheral.bytes)
        self._map_memory(self.board.memories["itcm"], unicorn.UC_PROT_ALL)
        self._map_memory(self.board.ram, unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE)
        self._map_flash()
        flash = self.board.memories["flash"]
        content = self._memories["flash"]
        content[:] = b"\xff" * flash.bytes  # erased
        for address, segment in self.firmware.segments:
            if not any(address in part and address + len(segment) <= part.end for part in self._program_parts()):
                raise TargetError(f"{self.firmware.path} loads {len(segment)} bytes at {address:#010x}, outside flash")
            content[address - flash.base : address - flash.base + len(segment)] = segment
        if storage is not None:
            content[self._slots] = storage

    def _program_parts(self) -> tuple[Region, Region]:
        return self.board.boot, self.board.program

    def _map_flash(self) -> None:
        """Code is plain read-only memory, for speed; between its two parts lie the slots, behind the controller."""
        flash = self.board.memories["flash"]
        self._memories["flash"] = memory = mmap.mmap(-1, flash.bytes)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        views = [flash, *(view for view in self.board.memories.values() if view.alias_of == "flash")]
        for part in self._program_parts():
            offset = part.base - flash.base
            for view in views:
                access = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
                self._engine.mem_map_ptr(view.base + offset, part.bytes, access, start + offset)
        self._slots = slice(self.board.boot.end - flash.base, self.board.program.base - flash.base)
        bases = [view.base + self._slots.start for view in views]
        size = self._slots.stop - self._slots.start
        self._machine.map_flash(bases, size, memory, self._slots.start, self.board.flash_sectors)

    def _map_memory(self, region: Region, access: int) -> None:
        self._memories[region.name] = mmap.mmap(-1, region.bytes)
        # RAM wakes up holding noise (the same at every start); a variable that nobody initialised must show.
        self._memories[region.name][:] = np.random.default_rng(region.base).bytes(region.bytes)
        pointer = ctypes.addressof(ctypes.c_char.from_buffer(self._memories[region.name]))
        self._engine.mem_map_ptr(region.base, region.bytes, access, pointer)

    def _mark_regions(self) -> None:
        functions = {function.name: function.address for function in self.firmware.functions}
        unknown = [name for name in self.regions[1:] if name not in functions]
        if unknown:
            raise TargetError(f"{self.firmware.path} has no function {', '.join(unknown)} to begin a profile region at")
        entries = {functions[name]: index for index, name in enumerate(self.regions) if index}
        entries[functions["tt_port_cycles"]] = OUTSIDE  # called right after a step: the last op ends there
        self._machine.mark_regions(entries)

    def _boot(self) -> None:
        """From the vector table to the first wait for input, as after reset."""
        flash = self.board.memories["flash"]
        stack, reset = np.frombuffer(self.read_memory(flash.base, 8), "<u4")
        self._engine.reg_write(arm_const.UC_ARM_REG_SP, int(stack))
        self._engine.reg_write(arm_const.UC_ARM_REG_PC, int(reset))
        self.run()
        itcm = self.board.memories["itcm"]
        self._engine.mem_protect(itcm.base, itcm.bytes, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)

    # ---- running ----

    def run(self) -> None:
        """Let the firmware run until it waits for input. Raises UnicornFault, or TargetError at the limit."""
        self._machine.arm(self.instruction_limit)
        pc = self._engine.reg_read(arm_const.UC_ARM_REG_PC)
        self._bad_access = None
        try:
            self._engine.emu_start(pc | 1, 0xFFFFFFFF)
        except unicorn.UcError as error:
            raise self._fault(error) from None
        if self._machine.stop_reason == STOP_POWER:
            raise PowerCut("power went during a flash operation")
        if self._machine.stop_reason != STOP_INPUT:
            limit = self._machine.stop_reason == STOP_LIMIT
            what = f"did not answer within {self.instruction_limit} instructions" if limit else "went to sleep"
            pc = self._engine.reg_read(arm_const.UC_ARM_REG_PC)
            raise TargetError(f"the firmware {what}; it is in {self.firmware.function_name(pc)}")

    def _on_bad_access(self, engine: Any, access: int, address: int, size: int, value: int, data: Any) -> bool:
        self._bad_access = access, address
        return False

    def _fault(self, error: unicorn.UcError) -> UnicornFault:
        pc = self._engine.reg_read(arm_const.UC_ARM_REG_PC)
        name = self.firmware.function_name(pc)
        if self._bad_access is None:
            return UnicornFault(f"{error}", pc, name)
        access, address = self._bad_access
        bottom, top = self.firmware.stack
        stack_pointer = self._engine.reg_read(arm_const.UC_ARM_REG_SP)
        what = f"{_ACCESS[access]} {address:#010x}"
        if bottom - STACK_REACH <= address < bottom and stack_pointer < bottom + 256:
            what = f"stack overflow ({top - bottom} bytes are reserved): {what}"
        return UnicornFault(what, pc, name, address)

    # ---- power ----

    @property
    def storage(self) -> bytes:
        """What the slots of SAVE hold now; it outlives the power."""
        return bytes(self._memories["flash"][self._slots])

    @property
    def flash_operations(self) -> int:
        """Sectors erased and words programmed since power-on."""
        return self._machine.flash_operations

    def cut_power(self, operation: int) -> None:
        """The ``operation``th erasure or programming from now (1 is the next) is left half done and raises PowerCut."""
        self._machine.cut_power(operation)

    # ---- measuring ----

    @property
    def instructions(self) -> int:
        """Instructions retired since power-on, exact at the boundaries of basic blocks."""
        return self._machine.instructions

    def reset_profile(self) -> None:
        """Forget executions; ``instructions`` goes on."""
        self._machine.reset_profile()

    def profile(self) -> list[BlockRow]:
        """Executed basic blocks since ``reset_profile()``: (address, size, region, executions)."""
        rows = self._machine.rows()
        columns = (rows[name].tolist() for name in BlockRow._fields)
        return [BlockRow(*row) for row in zip(*columns, strict=True)]

    def functions(self) -> list[FunctionProfile]:
        """Instructions by function and region since ``reset_profile()``, most first."""
        sums: dict[tuple[str, int], int] = defaultdict(int)
        for row in self._machine.rows():
            name = self.firmware.function_name(int(row["address"]))
            sums[name, int(row["region"])] += int(row["executions"]) * int(row["instructions"])
        profiles = [FunctionProfile(name, self.regions[region], count) for (name, region), count in sums.items()]
        return sorted(profiles, key=lambda profile: (-profile.instructions, profile))

    def read_memory(self, address: int, size: int) -> bytes:
        """Memory as the core sees it. Code of a profile row, for a disassembler, too."""
        return bytes(self._engine.mem_read(address, size))

    def paint_arena(self) -> None:
        """Fill the arena with noise, so that ``memory_report`` can say how much of it gets written.

        Paint before each of several steps: a byte that happens to be written with its own noise goes unseen
        once in 256 times, and the report keeps the highest mark.
        """
        self._scan_arena()
        start, end = self.firmware.span("arena")
        seed = 0 if self._arena_used is None else self._arena_used + 1
        self._noise = np.random.default_rng(seed).integers(0, 256, end - start, np.uint8)
        self._engine.mem_write(start, self._noise.tobytes())
        self._arena_used = self._arena_used or 0

    def _scan_arena(self) -> None:
        if self._arena_used is None:
            return
        start, end = self.firmware.span("arena")
        changed = np.flatnonzero(np.frombuffer(self.read_memory(start, end - start), np.uint8) != self._noise)
        self._arena_used = max(self._arena_used, int(changed[-1]) + 1 if changed.size else 0)

    def memory_report(self) -> MemoryReport:
        """SRAM by kind, reserved and used, since power-on."""
        self._scan_arena()
        bottom, top = self.firmware.stack
        painted = np.frombuffer(self.read_memory(bottom, top - bottom), "<u4") == 0xA5A5A5A5
        margin = int(np.argmin(painted)) * 4 if not painted.all() else top - bottom
        return MemoryReport(
            data=self.firmware.bytes_of("data"),
            bss=self.firmware.bytes_of("bss"),
            arena=self.firmware.bytes_of("arena"),
            arena_used=self._arena_used,
            stack=top - bottom,
            stack_used=top - bottom - margin,
            flash=self.firmware.flash_bytes,
            itcm=self.firmware.bytes_of("itcm"),
        )
