"""Python's side of ``native/machine.c``: block counting and peripherals for Unicorn, at native speed.

The C file is compiled at first use by the pinned compiler (into the build cache). Unicorn's own functions
are handed over as addresses, so nothing is linked against it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from tinytrain_lite.toolchain import build_native

ROW = np.dtype(
    [("address", "u4"), ("size", "u4"), ("region", "u4"), ("instructions", "u4"), ("enters", "u4"),
     ("padding", "u4"), ("executions", "u8")]
)  # fmt: skip  # struct row of machine.c

STOP_INPUT, STOP_LIMIT, STOP_POWER = 1, 2, 3
# enum kind of machine.c; all others are plain storage
WINDOW_KINDS = {"rcc": 1, "pwr": 2, "usart1": 3, "usart3": 3, "dwt": 4, "flash_interface": 5}


class BlockRow(NamedTuple):
    """One basic block in one region: how often it ran since the profile was reset. ``size`` in bytes."""

    address: int
    size: int
    region: int
    executions: int


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build_native(Path(__file__).parent / "native" / "machine.c")))
    pointer, u32, u64, size = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
    for name, result, arguments in [
        ("machine_new", pointer, [pointer, pointer]),
        ("machine_free", None, [pointer]),
        ("machine_window", pointer, [pointer, u32]),
        ("machine_window_free", None, [pointer]),
        ("machine_mark_regions", None, [pointer, pointer, u32]),
        ("machine_flash", None, [pointer, pointer, pointer, u32, u32]),
        ("machine_flash_operations", u64, [pointer]),
        ("machine_cut_power", None, [pointer, u64]),
        ("machine_reset_profile", None, [pointer]),
        ("machine_rows", pointer, [pointer, ctypes.POINTER(u32)]),
        ("machine_instructions", u64, [pointer]),
        ("machine_arm", None, [pointer, u64]),
        ("machine_stop_reason", u32, [pointer]),
        ("machine_feed", None, [pointer, ctypes.c_char_p, size]),
        ("machine_take", pointer, [pointer, ctypes.POINTER(size)]),
    ]:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _check(status: int) -> None:
    if status != unicorn.UC_ERR_OK:
        raise unicorn.UcError(status)


class Machine:
    """Counters and peripherals of one ``unicorn.Uc``. Keep it until the engine is gone; then ``close()``."""

    def __init__(self, engine: unicorn.Uc) -> None:
        self._engine = engine._uch
        self._native = _library()
        self._handle = self._native.machine_new(_address(uclib.uc_mem_read), _address(uclib.uc_emu_stop))
        self._named: dict[str, int] = {}
        hook = ctypes.c_size_t()
        _check(
            uclib.uc_hook_add(
                self._engine, ctypes.byref(hook), unicorn.UC_HOOK_BLOCK, _address(self._native.machine_on_block),
                self._handle, ctypes.c_uint64(1), ctypes.c_uint64(0),
            )
        )  # fmt: skip

    def map_peripheral(self, name: str, base: int, size: int) -> None:
        """Map the register window of a peripheral; ``name`` decides how it behaves."""
        window = self._native.machine_window(self._handle, WINDOW_KINDS.get(name, 0))
        self._named[name] = window
        read, write = _address(self._native.machine_on_read), _address(self._native.machine_on_write)
        _check(uclib.uc_mmio_map(self._engine, base, size, read, window, write, window))

    def map_flash(self, bases: Sequence[int], size: int, flash: mmap.mmap, origin: int, sectors: Sequence[int]) -> None:
        """Map the part of ``flash`` that firmware may erase and program: ``size`` bytes from ``origin``, seen at each
        of ``bases``. ``sectors`` are the sizes of all sectors of the flash. Map ``flash_interface`` first."""
        self._sectors = np.array(sectors, np.uint32)  # the native side keeps a pointer
        start = ctypes.addressof(ctypes.c_char.from_buffer(flash))
        self._native.machine_flash(self._handle, start, self._sectors.ctypes.data, len(sectors), origin)
        read, write = _address(self._native.machine_on_flash_read), _address(self._native.machine_on_flash_write)
        window = self._named["flash_interface"]
        for base in bases:
            _check(uclib.uc_mmio_map(self._engine, base, size, read, window, write, window))

    @property
    def flash_operations(self) -> int:
        """Sectors erased and words programmed since creation."""
        return int(self._native.machine_flash_operations(self._handle))

    def cut_power(self, operation: int) -> None:
        """Stop, with STOP_POWER, in the middle of the ``operation``th flash operation from now (1 is the next)."""
        self._native.machine_cut_power(self._handle, operation)

    def mark_regions(self, entries: dict[int, int]) -> None:
        """``{address of a function: region}``; forgets the profile. Region 0 is where execution begins."""
        pairs = np.array(list(entries.items()), np.uint32).reshape(-1, 2)
        self._native.machine_mark_regions(self._handle, pairs.ctypes.data, len(pairs))

    @property
    def instructions(self) -> int:
        """Instructions retired since creation, exact at the boundaries of basic blocks."""
        return int(self._native.machine_instructions(self._handle))

    def arm(self, budget: int) -> None:
        """Allow ``budget`` more instructions before ``stop_reason`` becomes STOP_LIMIT."""
        self._native.machine_arm(self._handle, budget)

    @property
    def stop_reason(self) -> int:
        return int(self._native.machine_stop_reason(self._handle))

    def feed(self, data: bytes) -> None:
        """Queue bytes for the firmware's USART."""
        self._native.machine_feed(self._handle, data, len(data))

    def take(self) -> bytes:
        """What the firmware has sent since the last call."""
        count = ctypes.c_size_t()
        data = self._native.machine_take(self._handle, ctypes.byref(count))
        return ctypes.string_at(data, count.value) if count.value else b""

    def rows(self) -> np.ndarray:
        """Executed blocks as a structured array of dtype ``ROW``, sorted by region, then address."""
        count = ctypes.c_uint32()
        address = self._native.machine_rows(self._handle, ctypes.byref(count))
        table = np.frombuffer(ctypes.string_at(address, count.value * ROW.itemsize), ROW)
        return np.sort(table[table["executions"] > 0], order=["region", "address", "size"])

    def reset_profile(self) -> None:
        self._native.machine_reset_profile(self._handle)

    def close(self) -> None:
        """Free the native memory. The engine must not run afterwards."""
        for window in self._named.values():
            self._native.machine_window_free(window)
        self._named.clear()
        self._native.machine_free(self._handle)


def _address(function: object) -> int:
    value = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert value is not None
    return value
